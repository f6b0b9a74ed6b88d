"""An arena with known truth: distributions over finite lists, and studies drawn from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamalab.arena.candidate_scores import candidates_of, normalised, score
from llamalab.arena.candidates import Table, draw, population_ess, study, truth
from llamalab.arena.config import load_config
from llamalab.arena.settings import ArenaConfig
from llamalab.errors import ConfigError, InputError
from llamalab.scoring.teacher_forcing import TeacherForcing

P0 = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]])
PI = np.array([[0.1, 0.3, 0.6], [0.5, 0.5, 0.0]])
OUTCOME = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0]])


def world(base: np.ndarray = P0, target: np.ndarray = PI) -> Table:
    with np.errstate(divide="ignore"):
        return Table(("a", "b"), "p0", {"p0": np.log(base), "pi": np.log(target)}, 1 - OUTCOME, OUTCOME)


def write_config(folder: Path, model: str, *, policies: str = "", oracle: str = "") -> ArenaConfig:
    (folder / "mine.py").write_text(
        "def judge(prompt, response, row):\n    return len(response) / 10\n"
        "def oracle(prompt, response, row):\n    return float(response == row['reference'])\n"
    )
    path = folder / "arena.yaml"
    path.write_text(
        f"policies:\n  p0: {{model: {model}}}\n  pi: {{model: {model}, temperature: 0.5}}\n{policies}"
        "candidates: {num: 3}\nprompts: {file: prompts.jsonl}\njudge: {kind: python:mine.judge, range: [0, 1]}\n"
        + (oracle or "oracle: {judge: {kind: python:mine.oracle, range: [0, 1]}, fraction: 0.5}\n")
    )
    return load_config(path)


PROMPTS = [
    {"prompt_id": "a", "prompt": "hello", "reference": "world", "candidates": ["world", "the", "code", "unused"]},
    {"prompt_id": "b", "prompt": "name", "reference": "age", "candidates": ["age", "her", "true and false"[:9]]},
]


def scored(config: ArenaConfig, prompts: Sequence[Mapping[str, Any]] = PROMPTS) -> list[dict[str, Any]]:
    return list(score(config, prompts))


def test_the_truth_is_the_sum_over_candidates() -> None:
    assert truth(world()) == pytest.approx({"p0": (0.5 + 0.15 + 0.1) / 2, "pi": (0.1 + 0.15 + 0.5) / 2}, abs=1e-15)


def test_without_an_oracle_the_truth_is_the_mean_judge_score() -> None:
    found = truth(replace(world(), label_PK=None))
    assert found["p0"] == pytest.approx(((P0 * (1 - OUTCOME)).sum(axis=1)).mean(), abs=1e-15)


def test_population_ess_is_what_large_studies_come_to() -> None:
    table = world()
    weights = np.exp(study(table, np.random.default_rng(0), prompts=100_000).log_ratio["pi"])
    share = weights.sum() ** 2 / (weights**2).sum() / len(weights)
    assert population_ess(table, "pi") == pytest.approx(share, rel=0.02)
    assert population_ess(table, "p0") == 1.0


def test_a_target_that_says_what_the_base_never_does_has_no_effective_sample() -> None:
    assert population_ess(world(target=np.array([[0.1, 0.3, 0.6], [0.4, 0.4, 0.2]])), "pi") == 0.0


def test_candidates_are_drawn_as_often_as_they_are_probable() -> None:
    with np.errstate(divide="ignore"):
        picked = draw(np.log(P0), np.random.default_rng(1), 100_000)
    for row, expected in zip(picked, P0, strict=True):
        share = np.bincount(row, minlength=3) / 100_000
        assert np.abs(share - expected).max() < 4 * math.sqrt(0.25 / 100_000)
    assert (picked[1] < 2).all()


def test_rounding_never_draws_an_impossible_candidate() -> None:
    class Highest:
        def random(self, size: tuple[int, int]) -> np.ndarray:
            return np.full(size, 1.0)

    with np.errstate(divide="ignore"):
        assert draw(np.log(P0), Highest(), 1).ravel().tolist() == [2, 1]  # type: ignore[arg-type]


def test_a_study_has_the_weights_and_outcomes_of_its_candidates() -> None:
    found = study(world(), np.random.default_rng(2), prompts=500, per_prompt=2, draws=3, label_probability=0.4)
    allowed = {
        (round(math.log(PI[p, k] / P0[p, k]), 9), 1 - OUTCOME[p, k], OUTCOME[p, k])
        for p, k in itertools.product(range(2), range(3))
        if P0[p, k] > 0
    }
    rows = zip(found.log_ratio["pi"], found.judge, found.label, strict=True)
    assert {(round(ratio, 9), s, y) for ratio, s, y in rows if not math.isnan(y)} == allowed
    assert np.bincount(found.prompt).tolist() == [2] * 500
    assert 0.3 < found.labelled.mean() < 0.5
    assert len(found.draws["pi"].judge) == 1500


def test_fresh_draws_come_from_the_target() -> None:
    found = study(world(), np.random.default_rng(3), prompts=20_000, draws=1)
    expected = (PI * (1 - OUTCOME)).sum(axis=1).mean()
    assert found.draws["pi"].judge.mean() == pytest.approx(expected, abs=0.01)


def test_estimates_from_many_studies_are_right_on_average() -> None:
    """The mean of w Y over 400 studies of 200 rows, against the sum over candidates: within four standard errors."""
    table = world()
    rng = np.random.default_rng(4)
    found = []
    for _ in range(400):
        one = study(table, rng, prompts=200)
        found.append((np.exp(one.log_ratio["pi"]) * one.label).mean())
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - truth(table)["pi"]) < 4 * error


def test_renormalised_log_probabilities_are_those_of_the_shares() -> None:
    values = [-700.0, -701.0, -math.inf]
    assert np.exp(normalised(values)) == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0.0], rel=1e-12)
    assert normalised([-3.0, -math.inf]) == [0.0, -math.inf]
    with pytest.raises(ValueError, match="none"):
        normalised([-math.inf, -math.inf])


def test_candidates_are_scored_as_teacher_forcing_scores_them(tmp_path: Path, tiny_gguf: Path) -> None:
    """Bit by bit: what two policies share, and on how many threads, changes nothing."""
    rows = scored(write_config(tmp_path, str(tiny_gguf)))
    assert [row["prompt_id"] for row in rows] == ["a", "b"]
    with TeacherForcing(model=str(tiny_gguf), temperature=0.5) as forcing:
        for row, prompt in zip(rows, PROMPTS, strict=True):
            for candidate, text in zip(row["candidates"], prompt["candidates"], strict=False):
                expected = forcing.compute_log_prob(str(prompt["prompt"]), str(text))
                found = candidate["policies"]["pi"]
                assert candidate["response"] == text
                assert found["model_logprob"] == expected.value
                assert found["raw_logprob"] == expected.raw_total
                assert found["texts"] == [token.text for token in expected.tokens]
                assert found["logprobs"] == [token.logprob for token in expected.tokens]


def test_each_candidate_is_judged_and_labelled_and_each_list_sums_to_one(tmp_path: Path, tiny_gguf: Path) -> None:
    for row, prompt in zip(scored(write_config(tmp_path, str(tiny_gguf))), PROMPTS, strict=True):
        assert [each["label"] for each in row["candidates"]] == [1.0, 0.0, 0.0]
        assert [each["judge"] for each in row["candidates"]] == [len(text) / 10 for text in prompt["candidates"][:3]]
        for name in ("p0", "pi"):
            total = math.fsum(math.exp(each["policies"][name]["logprob"]) for each in row["candidates"])
            assert total == pytest.approx(1.0, abs=1e-12)


def test_a_sampler_that_cuts_a_candidate_off_gives_it_nothing(tmp_path: Path, tiny_gguf: Path) -> None:
    config = write_config(tmp_path, str(tiny_gguf), policies=f"  cut: {{model: {tiny_gguf}, top_k: 260}}\n")
    cut = [each["policies"]["cut"] for row in scored(config) for each in row["candidates"]]
    assert {each["logprob"] is None for each in cut} == {True, False}
    assert all((each["logprob"] is None) == (None in each["logprobs"]) for each in cut)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (None, "'candidates' must be a list"),
        (["one"], "at least 2"),
        (["one", "two", 3], "at least 2 answers, as text"),
        (["one", "two"], "has 2 candidates, and candidates.num asks for 3"),
        (["one", "two", "one"], "'one' is there twice"),
    ],
)
def test_a_list_that_is_no_distribution_is_refused(tmp_path: Path, candidates: Any, message: str) -> None:
    config = write_config(tmp_path, "pico")
    with pytest.raises(InputError) as refused:
        candidates_of({"prompt_id": "a", "prompt": "?", "candidates": candidates}, config)
    assert message in str(refused.value)
    assert "prompt 'a'" in str(refused.value)


def test_a_candidate_that_the_oracle_cannot_label_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    config = write_config(tmp_path, str(tiny_gguf))
    with pytest.raises(InputError, match=r"Candidate 'world' of prompt 'a' has no score of the oracle"):
        scored(config, [{key: value for key, value in PROMPTS[0].items() if key != "reference"}])


def test_a_candidate_that_the_model_cannot_score_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    config = write_config(tmp_path, str(tiny_gguf))
    with pytest.raises(InputError, match=r"prompt 'a' cannot be scored under policy 'p0'"):
        scored(config, [{**PROMPTS[0], "prompt": "x" * 3000}])


def test_policies_and_oracles_that_know_no_truth_are_refused(tmp_path: Path) -> None:
    remote = write_config(tmp_path, "pico", policies="  far: {model: openai:gpt}\n")
    with pytest.raises(ConfigError, match="'far' runs elsewhere"):
        scored(remote)
    by_file = write_config(tmp_path, "pico", oracle="oracle: {file: labels.jsonl, range: [0, 1], fraction: 0.5}\n")
    with pytest.raises(ConfigError, match=r"oracle\.file.*labels of some responses only"):
        scored(by_file)
