"""The lines that support an answer: those that a run has looked at, and of these the ones that hold the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import re2

from llamalab.rlm.answer import Evidence
from llamalab.rlm.protocol import NOT_FOUND
from llamalab.rlm.search import FUNCTION_WORDS
from llamalab.rlm.text import Context, Document, Span

Pieces: TypeAlias = tuple[Evidence, ...]
MOST = 5
"""Pieces of evidence."""
LONGEST = 400
"""Of one piece, characters."""
_READ = 1 << 16  # characters that are searched at once
_OVERLAP = LONGEST + 2  # a phrase and what stands around it, where it lies across two of these
_MOST_READ = 1 << 26  # characters of one span that are searched


@dataclass(frozen=True, slots=True)
class Looked:
    """A result that the root has seen.

    Attributes:
        spans: where its first pieces stand.
        text: of the result, its head included.
    """

    spans: Sequence[Span]
    text: str = ""


def evidence_for(answer: str, looked_at: Sequence[Looked], context: Context, *, value: Any = None) -> Pieces:
    """The evidence for an answer.

    Args:
        answer: its text.
        looked_at: what the root has seen, in order.
        context: the documents.
        value: of a typed answer: each of its texts and numbers is looked for.

    Returns:
        Lines that hold the answer as whole words, in any case, those the root saw last first. Where none does: what the
        last result was made from that does (a number of matches is in no line). Else lines that hold at least half of
        its words. Nothing for "not found", or where the answer has nothing to do with what the root has seen.
    """
    if answer.strip().casefold() == NOT_FOUND:
        return ()
    documents = {document.name: document for document in context.documents}
    seen = [
        (documents[span.document], span)
        for looked in reversed(looked_at)
        for span in looked.spans
        if span.document in documents
    ]
    phrases = [phrase for part in _parts(answer, value) if (phrase := _phrase(part)) is not None]
    found: dict[tuple[str, int, int], Evidence] = {}
    for phrase in phrases:
        for document, span in seen:
            piece = _around(document, span, phrase)
            if piece is not None:
                found.setdefault((piece.document, piece.start, piece.end), piece)
            if len(found) == MOST:
                return tuple(found.values())
    if found:
        return tuple(found.values())
    for at in range(len(looked_at) - 1, -1, -1):
        if any(phrase.search(looked_at[at].text) for phrase in phrases):
            made_from = next((looked.spans for looked in reversed(looked_at[: at + 1]) if looked.spans), ())
            return tuple(_first(documents[s.document], s) for s in made_from[:MOST] if s.document in documents)
    return _sharing(answer, seen)


def stands_in_a_result(answer: str, looked_at: Sequence[Looked], *, value: Any = None) -> bool:
    """Whether a result says an answer that no line holds, such as a count.

    It does where it holds the answer, or a part of its value, as whole words; all numbers of the answer; or half of its
    words.
    """
    parts = _parts(answer, value)
    phrases = [phrase for part in parts if (phrase := _phrase(part)) is not None]
    words = set().union(*map(_words, parts))
    numbers = {word for word in words if word.isdecimal()}
    for looked in looked_at:
        said = _words(looked.text)
        if (numbers and numbers <= said) or (words and 2 * len(words & said) >= len(words)):
            return True
        if any(phrase.search(looked.text) for phrase in phrases):
            return True
    return False


def _parts(answer: str, value: Any) -> list[str]:
    """What an answer says: its text, or the texts and numbers of its value."""
    if isinstance(value, Mapping):
        return [part for each in value.values() for part in _parts("", each)]
    if isinstance(value, list):
        return [part for each in value for part in _parts("", each)]
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return [str(value)]
    return [answer] if value is None else []


def _sharing(answer: str, seen: Sequence[tuple[Document, Span]]) -> tuple[Evidence, ...]:
    """Lines that hold at least half of the words of an answer, those with the most first."""
    words = _words(answer)
    found: dict[Evidence, int] = {}
    for document, span in seen if words else ():
        piece = _first(document, span)
        shared = len(words & _words(piece.text))
        if 2 * shared >= len(words):
            found.setdefault(piece, shared)
    return tuple(sorted(found, key=lambda piece: -found[piece])[:MOST])


def whole(context: Context) -> list[Span]:
    """Every line of a context that was shown as a whole."""
    spans = []
    for document in context.documents:
        at = 0
        for number, text in enumerate(document.lines(1, document.n_lines), 1):
            spans.append(Span(document.name, at, at + len(text), number))
            at += len(text) + 1
    return spans


def _words(text: str) -> set[str]:
    return {word.casefold() for word in re2.findall(r"[\pL\pN_]+", text)} - FUNCTION_WORDS


def _phrase(answer: str) -> re2._Regexp[str] | None:
    words = answer.strip().strip(".\"'").strip()
    if not words or len(words) > LONGEST:
        return None
    return re2.compile(rf"(?i)(?:^|[^\pL\pN_])({re2.escape(words)})(?:$|[^\pL\pN_])")


def _around(document: Document, span: Span, holding: re2._Regexp[str]) -> Evidence | None:
    """The line in which a span holds the phrase, or a window of it."""
    start, end = _line(document, span)
    position = _position(document, start, end, holding)
    if position is None:
        return None
    line = span.line + document.text(start, position).count("\n") if start == span.start else span.line
    first = max(position - LONGEST - 1, start)
    text = document.text(first, min(position + LONGEST + 1, end))
    at = position - first
    before, after = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    after = len(text) if after < 0 else after
    if after - before > LONGEST:
        before = max(before, at - LONGEST // 4)
        after = min(after, before + LONGEST)
    return Evidence(document.name, line, first + before, first + after, text[before:after])


def _position(document: Document, start: int, end: int, holding: re2._Regexp[str]) -> int | None:
    """Where the phrase first stands between two characters, read piece by piece: a line may have 50 MB."""
    for at in range(start, end, _READ):
        first = max(at - _OVERLAP, start)
        match = holding.search(document.text(first, min(at + _READ, end)))
        if match is not None:
            return first + int(match.start(1))
    return None


def _line(document: Document, span: Span) -> tuple[int, int]:
    """The span, grown to its whole line where it is a short piece of one."""
    position = document.byte_of(span.start)
    begin, end = document.line_bounds(position)
    if end - begin <= _READ and span.end - span.start <= end - begin:
        return document.char_of(begin), document.char_of(end)
    return span.start, min(span.end, span.start + _MOST_READ)


def _first(document: Document, span: Span) -> Evidence:
    end = min(span.end, span.start + LONGEST)
    text = document.text(span.start, end)
    cut = text.split("\n", 1)[0] if text.strip("\n") else text
    return Evidence(document.name, span.line, span.start, span.start + len(cut), cut)
