"""results.json: what is written is what is read, and nothing else is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamalab.arena.evaluation import evaluate
from llamalab.arena.results import Results, read_results, write_results
from llamalab.errors import InputError
from tests.arena.rows_cases import made_rows


@pytest.fixture(scope="module")
def results() -> Results:
    return evaluate(made_rows())


def changed(path: Path, results: Results, change: Any) -> Path:
    write_results(results, path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def test_what_is_written_is_read_back(tmp_path: Path, results: Results) -> None:
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, results: Results) -> None:
    for name, found in (("a.json", results), ("b.json", evaluate(made_rows()))):
        write_results(found, tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("base"), "The field 'base' is missing"),
        (lambda data: data.update(extra=1), "The field 'extra' is not known"),
        (lambda data: data.update(rows="many"), "The field 'rows' must be a whole number, not text"),
        (lambda data: data.update(rows=True), "The field 'rows' must be a whole number, not true or false"),
        (lambda data: data.update(outcome_range=[0.0]), "The field 'outcome_range' must be a list of 2"),
        (lambda data: data.update(scale="other"), "The field 'scale' must be one of oracle, judge"),
        (lambda data: data["policies"][1]["verdict"].update(state=1), r"'policies\[1\].verdict.state' must be one of"),
        (lambda data: data["policies"][0]["values"][0].pop("se"), r"'policies\[0\].values\[0\].se' is missing"),
    ],
)
def test_another_layout_is_refused_by_field(tmp_path: Path, results: Results, change: Any, message: str) -> None:
    path = changed(tmp_path / "results.json", results, change)
    with pytest.raises(InputError, match=message):
        read_results(path)


def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path, results: Results) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(replace(results, level=math.nan), tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_are_said(tmp_path: Path, results: Results) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_results(results, tmp_path / "none" / "results.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_results(tmp_path / "results.json")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_results(tmp_path / "results.json")
