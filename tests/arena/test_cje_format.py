"""CJE's layout, read and written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamalab.arena.cje_format import read_cje, write_cje
from llamalab.arena.evaluation import evaluate
from llamalab.errors import InputError
from tests.arena.rows_cases import failing, made_rows

ROW: dict[str, Any] = {
    "prompt": "p",
    "response": "r",
    "base_policy_logprob": -3.0,
    "target_policy_logprobs": {"clone": -3.0, "b": -2.5},
    "metadata": {"prompt_id": "1"},
    "judge_score": 0.5,
}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "logged_data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    made = failing(made_rows(40), "far", 1)
    write_cje(made, tmp_path)
    found = read_cje(tmp_path)
    assert found.targets == made.targets
    assert found.clone == "pi_clone"
    for one, other in zip(found.rows, made.rows, strict=True):
        assert (one.response_id, one.prompt_id, one.judge, one.label) == (
            other.response_id,
            other.prompt_id,
            other.judge,
            other.label,
        )
        assert one.logprobs.get("near") == other.logprobs["near"]
        assert one.logprobs.get("far") == other.logprobs.get("far")
    assert [draw.judge for draw in found.draws["near"]] == [draw.judge for draw in made.draws["near"]]


def test_the_library_itself_reads_what_is_written(tmp_path: Path) -> None:
    cje = pytest.importorskip("cje")
    made = made_rows(60)
    write_cje(replace(made, draws={"near": made.draws["near"], "far": made.draws["near"]}), tmp_path)
    config = {"inference_method": "cluster_robust"}
    found = cje.analyze_dataset(fresh_draws_dir=str(tmp_path / "fresh_draws"), estimator_config=config)
    mean = sum(draw.judge or 0.0 for draw in made.draws["near"]) / len(made.draws["near"])
    assert found.estimates[1] == pytest.approx(mean)


def test_what_the_layout_does_not_say_is_said_aloud(tmp_path: Path) -> None:
    found = read_cje(write(tmp_path / "a", {**ROW, "oracle_label": 0.7}, {**ROW, "metadata": {"prompt_id": "1"}}))
    assert found.rows[0].probability == 0.5
    assert any("taken for a random draw with probability 0.5" in note for note in found.notes)
    scaled = read_cje(write(tmp_path / "b", {**ROW, "judge_score": 7}, {**ROW, "judge_score": 2}))
    assert scaled.judge_range == (0.0, 10.0)
    assert scaled.outcome_range is None


def test_a_missing_number_is_a_failure_not_a_zero(tmp_path: Path) -> None:
    row = {**ROW, "target_policy_logprobs": {"clone": None, "b": -2.5}, "judge_score": None}
    (found,) = read_cje(write(tmp_path, row)).rows
    assert "clone" not in found.logprobs
    assert found.judge is None
    assert found.errors == {"clone": "missing", "judge": "missing"}


@pytest.mark.parametrize(
    ("scores", "range"),
    [
        ([0.2, 1.0], (0.0, 1.0)),
        ([2, 7], (0.0, 10.0)),
        ([1, 4.5], (0.0, 5.0)),
        ([40, 99], (0.0, 100.0)),
        ([-3.0, -0.5], (-3.0, -0.5)),
        ([5, 5], (2.5, 7.5)),
        ([-2, -2], (-3.0, -1.0)),
        ([0.3, 0.3], (0.0, 1.0)),
    ],
)
def test_a_range_is_taken_that_holds_the_scores(
    tmp_path: Path, scores: list[float], range: tuple[float, float]
) -> None:
    """Where all are one number, with room on both sides: else a mean that is a hair off could not be."""
    found = read_cje(write(tmp_path, *({**ROW, "judge_score": score} for score in scores)))
    assert found.judge_range == range


@pytest.mark.parametrize("seed", range(6))
def test_a_constant_score_is_every_policys_value(tmp_path: Path, seed: int) -> None:
    """Whatever the weights average to, and beside a note that this says nothing about other responses."""
    rng = np.random.default_rng(seed)
    rows = [
        {**ROW, "judge_score": 5.0, "metadata": {"prompt_id": str(at)}, "prompt": f"p{at}"}
        | {"target_policy_logprobs": {"clone": -3.0, "b": -3.0 + 0.4 * float(rng.standard_normal()) - 0.08}}
        for at in range(200)
    ]
    found = evaluate(read_cje(write(tmp_path, *rows)))
    assert {policy.verdict.state for policy in found.policies} == {"SHOWN"}
    assert [policy.headline and policy.headline.value for policy in found.policies] == pytest.approx([5.0] * 3)
    assert any(note.startswith("All outcomes are 5,") for note in found.notes)


def test_ids_may_be_whole_numbers(tmp_path: Path) -> None:
    assert read_cje(write(tmp_path, {**ROW, "metadata": {"prompt_id": 7}})).rows[0].prompt_id == "7"


def draws(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "fresh_draws").mkdir(exist_ok=True)
    (folder / "fresh_draws" / "b_responses.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


DRAW = {"prompt_id": "1", "prompt": "p", "response": "r", "judge_score": 0.5}


def test_draws_on_another_scale_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b_responses\.jsonl, line 2: the field 'judge_score' is 7, .*two scales"):
        read_cje(draws(write(tmp_path, ROW), DRAW, {**DRAW, "judge_score": 7}))


def test_draws_to_other_prompts_and_rows_that_repeat_are_noted(tmp_path: Path) -> None:
    found = read_cje(draws(write(tmp_path, ROW, ROW), DRAW, {**DRAW, "prompt_id": "2"}))
    assert any("1 fresh draws of b are to prompts without a logged response" in note for note in found.notes)
    assert any("1 of 2 rows repeat an earlier one" in note for note in found.notes)


def test_a_last_line_that_is_cut_off_is_no_row_less(tmp_path: Path) -> None:
    folder = write(tmp_path, ROW, ROW)
    path = folder / "logged_data.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"line 2: not valid JSON"):
        read_cje(folder)


def test_without_a_policy_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: the field 'target_policy_logprobs' names no policy"):
        read_cje(write(tmp_path, {**ROW, "target_policy_logprobs": {}}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_policy_logprob": 0.2}, "line 2: the field 'base_policy_logprob' is 0.2; it must be at most 0"),
        (
            {"target_policy_logprobs": {"clone": -1.0, "b": 1.0}},
            "line 2: the field 'target_policy_logprobs.b' is 1; it must",
        ),
        (
            {"target_policy_logprobs": {"clone": -1.0}},
            "line 2: the policy 'b' of 'target_policy_logprobs' is not in every",
        ),
        ({"judge_score": float("nan")}, "line 2: the field 'judge_score' must be a number, and is NaN"),
        ({"judge_score": 1e300}, r"line 2: the field 'judge_score' is beyond 1e\+12"),
        ({"judge_score": 10**400}, "line 2: the field 'judge_score' is beyond"),
        ({"base_policy_logprob": -1e300}, r"line 2: the field 'base_policy_logprob' is -1e\+300; no response"),
        ({"metadata": {}}, "line 2: the field 'metadata.prompt_id' must be text, and is missing"),
        ({"response": 3}, "line 2: the field 'response' must be text, and is 3"),
        ({"prompt": "other"}, "line 2: the prompt_id '1' stands for another prompt"),
        ({"response_id": "1"}, "line 2: the response_id '1' is that of line 1 too"),
        ({"base_policy_logprob": "-3.0"}, "line 2: the field 'base_policy_logprob' must be a number, and is \"-3.0\""),
        (
            {"target_policy_logprobs": {"clone": -1.0, "b": float("-inf")}},
            "line 2: the field 'target_policy_logprobs.b' must be a number, and is -Infinity",
        ),
    ],
)
def test_a_line_that_cannot_be_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write(tmp_path, ROW, {**ROW, **fields})
    with pytest.raises(InputError, match=message) as error:
        read_cje(tmp_path)
    assert "logged_data.jsonl" in str(error.value)


def test_a_file_without_rows_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no rows"):
        read_cje(write(tmp_path))


def test_rows_are_never_written_over_themselves(tmp_path: Path) -> None:
    folder = write(tmp_path, ROW, ROW)
    before = (folder / "logged_data.jsonl").read_bytes()
    with pytest.raises(InputError, match="is where the rows come from"):
        write_cje(read_cje(folder), folder)
    assert (folder / "logged_data.jsonl").read_bytes() == before
