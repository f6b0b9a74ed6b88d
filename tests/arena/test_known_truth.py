"""The pipeline where the truth is known: from candidates to results, stopped and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamalab.arena.config import load_config
from llamalab.arena.pipeline import run
from llamalab.arena.results import read_results
from llamalab.arena.settings import ArenaConfig
from llamalab.errors import ConfigError

PROMPTS, CANDIDATES = 24, ("yes", "no", "the code", "her name")
JUDGE = """
def judge(prompt, response, row):
    return (len(response) + len(prompt)) % 7 / 6

def oracle(prompt, response, row):
    return {"yes": 1.0, "no": 0.5}.get(response, 0.0)
"""


class Stopped(Exception):
    """Stands for a process that is killed."""


def write(folder: Path, model: Path, *, seed: int = 0) -> ArenaConfig:
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(JUDGE)
    rows = [
        {"prompt_id": f"q{number}", "prompt": f"hello {number}", "candidates": CANDIDATES} for number in range(PROMPTS)
    ]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = folder / "arena.yaml"
    path.write_text(
        f"policies:\n  p0: {{model: {model}}}\n  pi_clone: {{model: {model}}}\n"
        f"  warm: {{model: {model}, temperature: 1.2}}\n"
        f"candidates: {{seed: {seed}}}\nprompts: {{file: prompts.jsonl}}\nresponses: {{per_prompt: 2, draws: 1}}\n"
        "judge: {kind: python:mine.judge, range: [0, 1]}\n"
        "oracle: {judge: {kind: python:mine.oracle, range: [0, 1]}, fraction: 0.5}\n"
        "estimators: {replicates: 100, names: [snips, dr], direct: false}\noutput: {folder: run}\n"
    )
    return load_config(path)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Path:
    return run(write(tmp_path_factory.mktemp("known") / "arena", tiny_gguf))


def test_the_report_has_estimates_beside_the_truth(finished: Path) -> None:
    results = read_results(finished / "results.json")
    truth = json.loads((finished / "truth.json").read_text())
    assert {policy.name: policy.truth for policy in results.policies} == truth
    assert (finished / "report.html").is_file()


def test_the_truth_is_the_sum_over_what_was_scored(finished: Path) -> None:
    worth = {"yes": 1.0, "no": 0.5}
    for name, value in json.loads((finished / "truth.json").read_text()).items():
        mean = 0.0
        for row in rows(finished / "candidates.jsonl"):
            for each in row["candidates"]:
                mean += np.exp(each["policies"][name]["logprob"]) * worth.get(each["response"], 0.0) / PROMPTS
        assert value == pytest.approx(mean, abs=1e-12)


def test_the_clone_is_scored_apart_and_agrees_bit_by_bit(finished: Path) -> None:
    scored = [row["policies"] for row in rows(finished / "logprobs.jsonl")]
    assert len(scored) == 2 * PROMPTS
    assert [each["pi_clone"]["logprob"] for each in scored] == [each["p0"]["logprob"] for each in scored]
    aa = read_results(finished / "results.json").aa
    assert aa is not None
    assert (aa.state, aa.share_equal, aa.ess, aa.mean_weight) == ("PASSED", 1.0, 1.0, 1.0)
    assert (finished / "clone.sqlite").is_file()


def test_a_drawn_response_carries_the_numbers_of_its_candidate(finished: Path) -> None:
    table = {row["prompt_id"]: row["candidates"] for row in rows(finished / "candidates.jsonl")}
    for row in rows(finished / "responses.jsonl"):
        candidate = table[row["prompt_id"]][row["candidate"]]
        assert row["response"] == candidate["response"]
        assert row["logprob"] == candidate["policies"]["p0"]["logprob"]


def test_another_seed_draws_other_responses_to_the_same_truth(finished: Path, tmp_path: Path, tiny_gguf: Path) -> None:
    other = run(write(tmp_path / "other", tiny_gguf, seed=1), only="prompts")
    run(write(tmp_path / "other", tiny_gguf, seed=1), only="responses")
    assert (other / "truth.json").read_bytes() == (finished / "truth.json").read_bytes()
    assert [row["candidate"] for row in rows(other / "responses.jsonl")] != [
        row["candidate"] for row in rows(finished / "responses.jsonl")
    ]


def test_stopped_at_any_row_it_goes_on_to_the_same_bytes(finished: Path, tmp_path: Path, tiny_gguf: Path) -> None:
    config = write(tmp_path / "arena", tiny_gguf)
    for stop in (5, 40, 130):
        seen = 0

        def stopping(_step: str, _done: int, _total: int, stop: int = stop) -> None:
            nonlocal seen
            seen += 1
            if seen == stop:
                raise Stopped

        with pytest.raises(Stopped):
            run(config, progress=stopping)
        with (tmp_path / "arena" / "run" / "candidates.jsonl").open("ab") as file:
            file.write(b'{"prompt_id": "q')  # what a kill leaves behind
    whole = run(config)
    for name in ("results.json", "responses.jsonl", "logprobs.jsonl", "candidates.jsonl", "labels.jsonl"):
        assert (whole / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_changed_judge_is_refused_not_mixed(tmp_path: Path, tiny_gguf: Path) -> None:
    config = write(tmp_path / "arena", tiny_gguf)
    run(config, only="prompts")
    run(config, only="responses")
    (tmp_path / "arena" / "mine.py").write_text(JUDGE + "\n# another\n")
    with pytest.raises(ConfigError, match=r"candidates\.jsonl was made with other settings \(judge\.source_sha256 was"):
        run(config, only="responses")
    with pytest.raises(ConfigError, match=r"judge\.source_sha256 was"):
        run(config, from_="estimate")


def test_the_benchmark_counts_how_often_the_truth_is_held(finished: Path) -> None:
    """What it counts is not asserted here: six studies say nothing."""
    benchmark = Path(__file__).parents[2] / "benchmarks" / "known_truth.py"
    options = ["--config", str(finished.parent / "arena.yaml"), "--studies", "6"]
    done = subprocess.run([sys.executable, benchmark, finished, *options], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("| warm |")]) == 5
