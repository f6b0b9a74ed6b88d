from __future__ import annotations

from collections.abc import Sequence

from llamalab.rlm.evidence import LONGEST, Looked, evidence_for, whole
from llamalab.rlm.text import Context, Document, Span
from tests.rlm.scripted import TEXT, text

LINES = TEXT.split("\n")


def span(line: int, content: str = TEXT, name: str = "log.txt") -> Span:
    start = sum(len(each) + 1 for each in content.split("\n")[: line - 1])
    return Span(name, start, start + len(content.split("\n")[line - 1]), line)


def lines_for(answer: str, looked_at: Sequence[Looked], **how: object) -> list[int]:
    found = evidence_for(answer, looked_at, text(), **how)  # type: ignore[arg-type]
    for piece in found:
        assert piece.text == TEXT[piece.start : piece.end] == LINES[piece.line - 1]
    return [piece.line for piece in found]


SEEN = Looked([span(n) for n in (1, 2, 3, 4)])


def test_lines_that_hold_the_answer_as_whole_words_support_it() -> None:
    assert lines_for("48213", [SEEN]) == [3]
    assert lines_for("Blue harbor", [SEEN]) == [3]
    assert lines_for("8213", [SEEN]) == lines_for("4821", [SEEN]) == []


def test_a_line_that_the_root_has_not_seen_supports_nothing() -> None:
    assert lines_for("logout of ada", [Looked([span(1)])]) == [1]  # two of three words
    assert lines_for("logout", [Looked([span(1)])]) == []


def test_a_number_that_was_computed_is_supported_by_what_it_was_computed_from() -> None:
    errors = Looked([span(2), span(4)], "2 matches in e")
    assert lines_for("38", [SEEN, errors, Looked([], "sum: 38")]) == [2, 4]
    assert lines_for("39", [SEEN, errors, Looked([], "sum: 38")]) == []


def test_each_part_of_a_typed_answer_is_looked_for() -> None:
    assert lines_for('{"who":"ada","code":48213}', [SEEN], value={"who": "ada", "code": 48213, "b": True}) == [1, 3]


def test_not_found_has_no_evidence() -> None:
    assert lines_for("not found", [SEEN]) == []


def test_of_a_very_long_line_the_piece_around_the_answer_is_shown() -> None:
    content = "x" * 50_000 + " the code is 48213 " + "y" * 50_000
    context = text(content)
    (piece,) = evidence_for("48213", [Looked([Span("log.txt", 49_000, 60_000, 1)])], context)
    assert "48213" in piece.text
    assert len(piece.text) <= LONGEST
    assert piece.text == content[piece.start : piece.end]


def test_offsets_are_characters_of_their_document() -> None:
    context = Context([Document.of("ä\nöö one\n", "a"), Document.of("two ü\nthree\n", "b")])
    found = evidence_for("three", [Looked(whole(context))], context)
    assert [(piece.document, piece.line, piece.start, piece.end, piece.text) for piece in found] == [
        ("b", 2, 6, 11, "three")
    ]
    (piece,) = evidence_for("one", [Looked([Span("a", 0, 8, 1)])], context)
    assert (piece.line, piece.text) == (2, "öö one")


def test_far_into_a_line_of_any_length_the_answer_is_found() -> None:
    head = "the first line\n"
    for before in (200_000, (1 << 16) - 3, (1 << 16) - 25, (1 << 16) + 1):
        content = head + "é" + "x " * (before // 2) + "x" * (before % 2) + "the code is 48213 " + "y " * 50_000
        context = text(content)
        (piece,) = evidence_for("48213", [Looked([Span("log.txt", len(head), len(content), 2)])], context)
        assert "the code is 48213" in piece.text
        assert (piece.line, piece.text) == (2, content[piece.start : piece.end])
        assert len(piece.text) <= LONGEST
