"""CJE's layout, read and written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamalab.arena.cje_format import read_cje, write_cje
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
    assert scaled.judge_range == (2.0, 7.0)
    assert scaled.outcome_range is None


def test_a_missing_number_is_a_failure_not_a_zero(tmp_path: Path) -> None:
    row = {**ROW, "target_policy_logprobs": {"clone": None, "b": -2.5}, "judge_score": None}
    (found,) = read_cje(write(tmp_path, row)).rows
    assert "clone" not in found.logprobs
    assert found.judge is None
    assert found.errors == {"clone": "missing", "judge": "missing"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_policy_logprob": 0.2}, "line 2: the field 'base_policy_logprob' is 0.2; it must be at most 0"),
        ({"target_policy_logprobs": {"clone": -1.0, "b": 1.0}}, "line 2: the field 'b' is 1; it must be at most 0"),
        (
            {"target_policy_logprobs": {"clone": -1.0}},
            "line 2: the policy 'b' of 'target_policy_logprobs' is not in every",
        ),
        ({"judge_score": float("nan")}, "line 2: the field 'judge_score' must be a number, and is NaN"),
        ({"judge_score": 1e300}, r"line 2: the field 'judge_score' is beyond 1e\+12"),
        ({"judge_score": 10**400}, "line 2: the field 'judge_score' is beyond"),
        ({"base_policy_logprob": -1e300}, r"line 2: the field 'base_policy_logprob' is -1e\+300; no response"),
        ({"metadata": {}}, "line 2: the field 'prompt_id' must be text, and is missing"),
        ({"response": 3}, "line 2: the field 'response' must be text, and is 3"),
        ({"prompt": "other"}, "line 2: the prompt_id '1' stands for another prompt"),
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
