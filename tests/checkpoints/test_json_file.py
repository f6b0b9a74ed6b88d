"""JSON files of settings: read, or refused with the file's name and the key's."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamalab.checkpoints.json_file import Settings, read_json, read_json_if_there
from llamalab.errors import ModelFileError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"[3]", "it is no JSON object"),
        (b'{"a": "\xff"}', "it is not JSON"),
        (b'{"a": "\\ud83d"}', "surrogates not allowed"),
        (b'{"\\uDE00": 1}', "surrogates not allowed"),
        (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", "lists in lists"),
        (b'{"a": ' * 100_000, "it is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "it is not JSON"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"config\.json is damaged: .*{message}"):
        read_json(path)


def test_text_outside_of_ascii_is_read_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes('\ufeff{"a": "\\ud83d\\ude00", "\U0001f600": "é"}'.encode())
    assert read_json(path) == {"a": "\U0001f600", "\U0001f600": "é"}


def test_a_missing_file_is_empty_only_where_it_may_be_missing(tmp_path: Path) -> None:
    assert read_json_if_there(tmp_path / "none.json") == {}
    with pytest.raises(ModelFileError, match=r"none\.json cannot be read"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("value", [True, 0, -1, 2**31, 1.0, float("nan"), "1", [], {}])
def test_an_integer_is_a_positive_one_of_31_bits(value: object) -> None:
    with pytest.raises(ModelFileError, match=r"^a\.json: model\.n is .*, not a positive integer below 2\^31\.$"):
        Settings({"n": value}, Path("a.json"), "model").integer("n", 5)


@pytest.mark.parametrize("value", [True, 0, -1.5, 10**400, float("nan"), float("inf"), "1", []])
def test_a_number_is_positive_and_finite(value: object) -> None:
    with pytest.raises(ModelFileError, match=r"^a\.json: x is .*, not a positive number\.$"):
        Settings({"x": value}, Path("a.json")).number("x", 5)


def test_null_counts_as_missing() -> None:
    said = Settings({"n": None}, Path("a.json"))
    assert "n" not in said
    assert said.integer("n", 5) == 5
    with pytest.raises(ModelFileError, match=r"a\.json lacks the key 'n'"):
        said.integer("n")


def test_the_place_of_a_part_is_named() -> None:
    said = Settings({"model": {"vocab": {"a": "b" * 1000}}}, Path("a.json")).part("model").part("vocab")
    with pytest.raises(ModelFileError, match=r"^a\.json: model\.vocab\.a is 'b{59}\.\.\., not true or false\.$"):
        said.flag("a")
