from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.errors import InputError
from llamalab.rlm import marks
from llamalab.rlm.text import Context, Document, Span

characters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
contents = st.text(st.one_of(st.sampled_from("\n\r aéß€🌍"), characters), max_size=200)


def lines_of(text: str) -> list[str]:
    """What an editor counts: a newline ends a line."""
    return text.removesuffix("\n").split("\n") if text else []


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are kept every eight bytes, so that short texts have many."""
    for name, value in (("STEP", 8), ("_WIDE", 32), ("_FEW", 2)):
        monkeypatch.setattr(marks, name, value)
    monkeypatch.setattr("llamalab.rlm.reading.STEP", 8)
    monkeypatch.setattr("llamalab.rlm.reading._BLOCK", 16)


@pytest.mark.usefixtures("small_steps")
class TestAddresses:
    @given(contents, st.integers(-5, 210), st.integers(-5, 210))
    def test_characters_are_those_of_str(self, text: str, start: int, end: int) -> None:
        document = Document.of(text, "t")
        assert (document.n_chars, document.n_bytes) == (len(text), len(text.encode()))
        assert document.text(start, end) == text[max(start, 0) : max(end, start, 0)]

    @given(contents, st.integers(-3, 60), st.integers(-3, 60))
    def test_lines_are_those_between_newlines(self, text: str, first: int, last: int) -> None:
        document, lines = Document.of(text, "t"), lines_of(text)
        assert document.n_lines == len(lines)
        assert document.lines(first, last) == lines[max(first, 1) - 1 : max(last, 0)]

    @given(contents)
    def test_every_byte_has_its_character_and_line(self, text: str) -> None:
        document, data = Document.of(text, "t"), text.encode()
        begins = [len(text[:n].encode()) for n in range(len(text) + 1)]
        assert [document.byte_of(n) for n in range(len(text) + 1)] == begins
        assert [document.char_of(at) for at in begins] == list(range(len(begins)))
        expected = [data[:at].count(b"\n") + 1 for at in begins]
        assert [document.line_of(at) for at in begins] == expected
        assert document.chars_of(np.array(begins[::-1], np.int64)).tolist() == [*range(len(begins))][::-1]
        assert document.lines_of(np.array(begins[::-1], np.int64)).tolist() == expected[::-1]

    @given(contents)
    def test_a_file_reads_like_its_text(self, text: str) -> None:
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"llamalab-text-{os.getpid()}"
        path.write_bytes(text.encode())
        try:
            document = Document.open(path, "t")
            same = Document.of(text, "t")
            assert (document.text(), document.sha256, document.n_lines) == (same.text(), same.sha256, same.n_lines)
        finally:
            path.unlink()


def test_a_span_names_characters_and_the_line() -> None:
    document = Document.of("né\nßx€y", "notes")
    assert document.span(document.byte_of(4), document.byte_of(6)) == Span("notes", 4, 6, 2)


def test_a_large_file_is_mapped_and_let_go(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    text = "".join(f"line {n} é\n" for n in range(200_000))
    path.write_text(text, encoding="utf-8")
    document = Document.open(path)
    assert not isinstance(document.data, bytes)
    assert (document.n_chars, document.n_lines) == (len(text), 200_000)
    assert document.lines(123_456, 123_456) == ["line 123455 é"]
    assert document.text(1_000_000, 1_000_100) == text[1_000_000:1_000_100]
    document.close()


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "growing.log"
    path.write_bytes(b"line\n" * 300_000)
    context = Context([Document.open(path)])
    context.check()
    with path.open("ab") as file:
        file.write(b"more\n")
    with pytest.raises(InputError, match="changed while"):
        context.check()


@pytest.mark.parametrize("size", [3, 3_000_000])
def test_wrong_bytes_are_replaced_and_said(tmp_path: Path, size: int) -> None:
    content = b"first\n" + b"a" * size + b"\n\xff tail \xe2\x82\n" + "ü\n".encode()
    path = tmp_path / "mixed.txt"
    path.write_bytes(content * 3)
    document = Document.open(path, "mixed")
    assert document.text() == (content * 3).decode("utf-8", "replace")
    assert document.notes == ("mixed is not all UTF-8: U+FFFD stands for what is wrong in 6 places, first in line 3",)
    document.close()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"MZ\x90\0\x03", "binary: byte 3 is zero"),
        ("text".encode("utf-16"), "UTF-16. Convert it"),
        (bytes(range(128, 256)) * 4, "no text in UTF-8"),
        (b"x" * 2_000_000 + b"\0", "binary: byte 2000000"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InputError, match=why):
        Document.open(path)


def test_a_byte_order_mark_is_no_character() -> None:
    document = Document.of(b"\xef\xbb\xbffirst\n", "t")
    assert (document.text(), document.notes) == ("first\n", ())


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda _: None])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "it"
    make(path)
    with pytest.raises(InputError, match=r"it (cannot be read|is no file)"):
        Document.open(path)


def test_a_name_stays_on_one_line() -> None:
    assert Document.of("x", "a\nb\t c").name == "a b c"


@pytest.mark.parametrize(
    ("documents", "why"),
    [
        ([], "name a file"),
        ([Document.of("", "a"), Document.of("", "b")], "a and 1 more are empty"),
        ([Document.of("x", "a"), Document.of("y", "a")], "Two documents are called a"),
    ],
)
def test_a_context_has_text_and_distinct_names(documents: list[Document], why: str) -> None:
    with pytest.raises(InputError, match=why):
        Context(documents)


def test_a_context_is_known_by_its_names_and_contents() -> None:
    def digest(*pairs: tuple[str, str]) -> str:
        return Context([Document.of(text, name) for name, text in pairs]).sha256

    assert digest(("a", "x"), ("b", "y")) == digest(("a", "x"), ("b", "y"))
    assert len({digest(("a", "x"), ("b", "y")), digest(("b", "y"), ("a", "x")), digest(("a", "x"), ("c", "y"))}) == 3
