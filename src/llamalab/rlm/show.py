"""Values as the root is shown them: every line of a document behind its number, so that none can pass for our words."""

from __future__ import annotations

from dataclasses import dataclass

from llamalab.rlm.patterns import compile_pattern, first_match, quote
from llamalab.rlm.places import Places
from llamalab.rlm.state import State
from llamalab.rlm.text import Document, Span
from llamalab.rlm.values import Value

MAX_ITEM = 300
"""Longest match or item that is shown, characters; the rest is cut and marked."""
PARTS = "behind @ stands the offset, in its document, at which the part of a line that is shown begins"
_AROUND = 120
_BREAKS = dict.fromkeys(map(ord, "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), " ")


@dataclass(frozen=True, slots=True)
class Shown:
    """A value in words.

    Attributes:
        text: lines, each behind its number.
        items: how many of the items are in it.
        whole: nothing was left out or cut.
        parts: of some lines a part is shown, with the offset at which it begins.
    """

    text: str
    items: int
    whole: bool
    parts: bool = False

    @property
    def notes(self) -> list[str]:
        """What explains the text."""
        return [PARTS] if self.parts else []


def show(value: Value, state: State, *, around: bool = False, phrase: str = "") -> Shown:
    """A value, as far as `Limits.output` characters go.

    Args:
        value: to show.
        state: that it is shown in; with several documents each line says which it is of.
        around: matches are shown with the line around them.
        phrase: of a line that is too long, what is around this is shown, and not the beginning.
    """
    most = state.limits.output
    if value.kind == "text":
        return _text(value, state, most)
    lines: list[str] = []
    whole, parts = True, False
    for at in range(len(value.items)):
        line, cut, part = _item(value, at, state, around=around, phrase=phrase)
        most -= len(line) + 1
        if most < 0:
            return Shown("\n".join(lines), at, whole=False, parts=parts)
        lines.append(line)
        whole, parts = whole and not cut, parts or part
    return Shown("\n".join(lines), len(value.items), whole and value.total == len(value.items), parts)


def _text(value: Value, state: State, most: int) -> Shown:
    lines: list[str] = []
    for at in range(len(value.items)):
        item = value.head(at, most + 1)
        for n, line in enumerate(item.text.removesuffix("\n").split("\n")):
            found = f"{_place(item.span, state, n)}{line.translate(_BREAKS)}"
            if len(found) > most:
                if most > len(found) - len(line):
                    lines.append(found[: most - 1] + "…")
                return Shown("\n".join(lines), at, whole=False)
            lines.append(found)
            most -= len(found) + 1
    return Shown("\n".join(lines), len(value.items), whole=True)


def _item(value: Value, at: int, state: State, *, around: bool, phrase: str) -> tuple[str, bool, bool]:
    """An item in a line; whether it is cut; whether it is shown as a part of its line."""
    if value.kind == "number":
        return value.items[at].text, False, False
    item = value.head(at, MAX_ITEM + 1)
    text, offset = item.text, None
    if isinstance(value.items, Places):
        document, start, end = value.items.place(at)
        if around and len(text) < MAX_ITEM:
            text, offset = _line_around(document, start, end)
        elif phrase and len(text) > MAX_ITEM and (found := _first(phrase, document, start, end)) is not None:
            text, offset = _line_around(document, *found)
        elif len(text) > MAX_ITEM:
            offset = document.char_of(start)
    text = " ".join(text.split())
    cut = len(text) > MAX_ITEM
    place = _place(item.span, state, 0, offset) if item.span is not None else f"{at + 1}: "
    return place + (text[: MAX_ITEM - 1] + "…" if cut else text), cut, offset is not None


def _first(phrase: str, document: Document, start: int, end: int) -> tuple[int, int] | None:
    """Where a phrase, or the longest of its words that is there, first stands between two bytes."""
    data = document.data[start:end]
    for wanted in (phrase.strip(), *sorted(phrase.split(), key=len, reverse=True)):
        found = first_match(compile_pattern(quote(wanted)), data, ascii=document.ascii) if wanted else None
        if found is not None:
            return start + found[0], start + found[1]
    return None


def _line_around(document: Document, start: int, end: int) -> tuple[str, int | None]:
    """The line of a match, cut where it is far from it; and at which offset what is left begins, if anything is cut."""
    data = document.data
    first, last = max(start - _AROUND, 0), min(end + _AROUND, document.n_bytes)
    begin = data.rfind(b"\n", first, start) + 1 or first
    until = data.find(b"\n", end, last)
    until = last if until < 0 else until
    before = "…" if begin == first and begin > 0 and data[begin - 1] != 10 else ""
    after = "…" if until == last and until < document.n_bytes and data[until] != 10 else ""
    while begin < until and data[begin] & 0xC0 == 0x80:  # the middle of a character
        begin += 1
    offset = document.char_of(begin) if before or after else None
    return before + data[begin:until].decode("utf-8", "ignore") + after, offset


def _place(span: Span | None, state: State, lines_below: int, offset: int | None = None) -> str:
    """What stands before a line: its number, of several documents which, and of a part of a line where it begins."""
    if span is None:
        return f"{lines_below + 1}: "
    documents = state.context.documents
    names = [document.name for document in documents] if len(documents) > 1 else []
    which = f"doc{names.index(span.document) + 1} " if span.document in names else ""
    at = "" if offset is None else f"@{offset}"
    return f"{which}L{span.line + lines_below}{at}: "
