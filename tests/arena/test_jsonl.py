"""Every fault of a line names its file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamalab.arena.jsonl import read_lines, read_object
from llamalab.errors import InputError


def only_line(tmp_path: Path, text: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 0}}\n\n{text}\n')
    return list(read_lines(path))[-1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NaN", "the field 'x' must be a number, and is NaN"),
        ("Infinity", "the field 'x' must be a number, and is Infinity"),
        ("true", "must be a number, and is true"),
        ('"1"', 'must be a number, and is "1"'),
        ("null", "must be a number, and is null"),
        ("1.5", "the field 'x' is 1.5; it must be between 0 and 1"),
    ],
)
def test_a_number_that_is_none_is_refused_with_its_place(tmp_path: Path, value: str, message: str) -> None:
    line = only_line(tmp_path, f'{{"x": {value}}}')
    with pytest.raises(InputError, match=message) as error:
        line.real("x", 0.0, 1.0)
    assert f"{tmp_path / 'rows.jsonl'}, line 3: " in str(error.value)


def test_a_missing_field_is_said_to_be_missing(tmp_path: Path) -> None:
    line = only_line(tmp_path, '{"y": 1}')
    assert line.number_or_none("x") is None
    for read in (line.real, line.text, line.object):
        with pytest.raises(InputError, match=r"line 3: the field 'x' must be .*, and is missing"):
            read("x")


def test_one_bound_is_said_alone(tmp_path: Path) -> None:
    line = only_line(tmp_path, '{"x": 0.5}')
    with pytest.raises(InputError, match=r"'x' is 0.5; it must be at most 0\."):
        line.real("x", most=0.0)
    with pytest.raises(InputError, match=r"'x' is 0.5; it must be at least 1\."):
        line.real("x", least=1.0)


@pytest.mark.parametrize(("line", "message"), [("{", "not valid JSON"), ("[1]", "no JSON object")])
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{{}}\n{line}\n{{}}\n")
    with pytest.raises(InputError, match=f"line 2: {message}"):
        list(read_lines(path))


def test_a_last_line_that_was_cut_off_is_none(tmp_path: Path) -> None:
    """What a killed process leaves: the rows before it count."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a":')
    assert [line.fields["a"] for line in read_lines(path)] == [1, 2]


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        list(read_lines(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_object(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="holds no JSON object"):
        read_object(tmp_path / "list.json")
