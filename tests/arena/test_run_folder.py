"""Rows of a run folder: what was written is what is evaluated, and what cannot be names its line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from llamalab.arena.run_folder import read_run, token_ratios
from llamalab.errors import InputError
from tests.arena.rows_cases import failing, made_rows, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", made_rows(20))


def edit(path: Path, line: int, **fields: object) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **fields})
    path.write_text("\n".join(lines) + "\n")


def test_rows_come_back_as_they_are(folder: Path) -> None:
    made, found = made_rows(20), read_run(folder)
    assert found.rows == made.rows
    assert found.draws["near"][3].judge == made.draws["near"][3].judge
    assert (found.base, found.targets, found.clone) == (made.base, made.targets, made.clone)
    assert (found.judge_range, found.outcome_range, found.prompts) == ((0, 1), (0, 1), made.prompts)
    assert (found.settings.names, found.settings.level, found.settings.seed) == (("snips",), 0.9, 3)
    assert found.commands == ("x",)


def test_failures_and_minus_infinity_stay_what_they_are(tmp_path: Path) -> None:
    made = failing(failing(made_rows(20), "far", 2), "judge", 1)
    out = replace(made.rows[5], logprobs={**made.rows[5].logprobs, "near": -math.inf})
    made = replace(made, rows=(*made.rows[:5], out, *made.rows[6:]))
    made = replace(
        made, rows=(replace(made.rows[0], errors={**made.rows[0].errors, "far": "context_overflow"}), *made.rows[1:])
    )
    found = read_run(write_run(tmp_path / "run", made))
    assert found.rows[5].logprobs["near"] == -math.inf
    assert "far" not in found.rows[1].logprobs
    assert found.rows[1].errors == {"far": "context_overflow"}
    assert found.rows[0].judge is None
    assert found.rows[0].errors["judge"] == "judge"


def test_what_was_not_reached_yet_is_missing_not_zero(folder: Path) -> None:
    for name in ("logprobs.jsonl", "judged.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(line for line in lines if '"r19"' not in line))
    last = read_run(folder).rows[-1]
    assert (last.logprobs, last.judge) == ({}, None)
    assert set(last.errors.values()) == {"missing"}


def test_a_response_that_could_not_be_written_is_a_failure_under_every_policy(folder: Path) -> None:
    edit(folder / "responses.jsonl", 2, response=None, error="context_overflow")
    edit(folder / "draws" / "near.jsonl", 1, response=None, error="context_overflow")
    found = read_run(folder)
    assert found.rows[1].logprobs == {}
    assert set(found.rows[1].errors.values()) == {"context_overflow"}
    assert (found.draws["near"][0].judge, found.draws["near"][0].error) == (None, "context_overflow")


@pytest.mark.parametrize(
    ("name", "line", "fields", "message"),
    [
        ("judged.jsonl", 3, {"score": math.nan}, "line 3: the field 'score' must be a number, and is NaN"),
        ("judged.jsonl", 3, {"score": 1.5}, "line 3: the field 'score' is 1.5; it must be between 0 and 1"),
        ("labels.jsonl", 1, {"label": -1}, "line 1: the field 'label' is -1; it must be between 0 and 1"),
        ("labels.jsonl", 1, {"probability": 0}, "line 1: the field 'probability' is 0"),
        ("labels.jsonl", 1, {"probability": 1e-300}, "line 1: the field 'probability' is 1e-300; .* at least 1e-06"),
        ("labels.jsonl", 1, {"probability": None}, "line 1: the field 'probability' must be a number, and is null"),
        ("responses.jsonl", 2, {"response_id": "r0"}, "line 2: the response_id 'r0' is that of line 1 too"),
        ("responses.jsonl", 2, {"logprob": 0.5}, "line 2: the field 'logprob' is 0.5; it must be at most 0"),
        ("responses.jsonl", 2, {"logprob": -1e300}, "line 2: the field 'logprob' is -1e\\+300; no response"),
        ("prompts.jsonl", 2, {"prompt_id": "p0"}, "line 2: the prompt_id 'p0' is that of an earlier line too"),
        ("logprobs.jsonl", 2, {"policies": None}, "line 2: the field 'policies' must be an object"),
        (
            "logprobs.jsonl",
            2,
            {"policies": {"p0": {"logprob": 0.1}}},
            "line 2: the field 'policies.p0.logprob' is 0.1; it must be at most 0",
        ),
    ],
)
def test_a_line_that_cannot_be_is_named(
    folder: Path, name: str, line: int, fields: dict[str, object], message: str
) -> None:
    edit(folder / name, line, **fields)
    with pytest.raises(InputError, match=message) as error:
        read_run(folder)
    assert name in str(error.value)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run folder: it has neither"):
        read_run(tmp_path)


def test_log_ratios_of_tokens_are_differences_token_by_token(folder: Path) -> None:
    rows = read_run(folder)
    tokens = [{"id": 7, "text": "a", "logprob": -1.0}, {"id": 8, "text": "b", "logprob": -2.0}]
    moved = [{"id": 7, "text": "a", "logprob": -0.5}, {"id": 8, "text": "b", "logprob": None}]
    other = [{"id": 9, "text": "a", "logprob": -0.5}]
    edit(folder / "logprobs.jsonl", 1, policies={"p0": {"tokens": tokens}, "near": {"tokens": moved}})
    edit(folder / "logprobs.jsonl", 2, policies={"p0": {"tokens": tokens}, "near": {"tokens": other}})
    found = token_ratios(rows, {"near": {"r0", "r1", "r2"}, "far": {"r0"}})
    assert set(found) == {("near", "r0")}
    assert [(each.text, each.log_ratio) for each in found["near", "r0"]] == [("a", 0.5), ("b", None)]


@pytest.mark.parametrize(
    ("name", "field"), [("judged.jsonl", "response_id"), ("labels.jsonl", "response_id"), ("logprobs.jsonl", "id")]
)
def test_what_is_said_twice_of_a_response_is_refused(folder: Path, name: str, field: str) -> None:
    path = folder / name
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[0]]))
    with pytest.raises(InputError, match=rf"line {len(lines) + 1}: the {field} '.*' is that of line 1 too"):
        read_run(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("truth.json", '{"p0": "high"}', "the field 'p0' must be a number"),
        ("manifest.json", None, "the field 'estimators' is not as llamalab arena run writes it"),
    ],
)
def test_a_file_that_was_changed_by_hand_is_named(folder: Path, name: str, content: str | None, message: str) -> None:
    path = folder / name
    if content is None:
        manifest = json.loads(path.read_text())
        manifest["config"]["estimators"] = {"names": ["snips"], "bar": 1}
        content = json.dumps(manifest)
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_run(folder)
    assert str(path) in str(error.value)
