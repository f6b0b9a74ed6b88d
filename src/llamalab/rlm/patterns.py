"""Searching UTF-8 with RE2, piece by piece and against the clock.

A match lies within one line, so a text can be searched in blocks of whole lines, and `^` and `$` are the line's. A
line longer than a block is searched in windows that overlap: there a match ends where its window does. RE2 is linear in
one search, but finding all matches is not (`x(?:x*[0-9])?` looks to the end of the line for every x), so the clock is
read before each one. What one search may cost, bytes times size of the compiled pattern, is bounded by making blocks
smaller for larger patterns; nothing here depends on the clock but where a search stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from typing import Any

import re2

from llamalab.errors import InputError
from llamalab.rlm.marks import Bytes

BLOCK = 1 << 20
"""Longest stretch that is searched at once, bytes."""
OVERLAP = 64 << 10
"""By how much windows of a long line overlap, bytes."""
_COST = 32 << 20
_LARGEST = 16384
_SMALLEST = 4096
_FLAGS = "(?im)"
_ANYWHERE = re2._re2.RE2.Anchor.UNANCHORED

Spans = list[tuple[int, int]]
Match = Callable[[Any, Bytes, int, int], Spans]


@dataclass(frozen=True, slots=True)
class Machine:
    """A pattern compiled for one kind of text.

    Attributes:
        match: RE2's own search: (anchor, text, start, end) to the spans of the match and its groups, -1 for none.
        block: bytes that are searched at once; fewer for a larger pattern.
    """

    match: Match
    block: int

    def region(self, text: Bytes, position: int) -> tuple[int, int]:
        """What to search at once from a position on: up to where a match may begin, and end."""
        whole, block, overlap = len(text), self.block, min(OVERLAP, self.block // 4)
        if whole - position <= block:
            return whole, whole
        end = text.rfind(b"\n", position, position + block) + 1
        if end > position:
            return end, end
        line_end = text.find(b"\n", position + block, position + block + overlap)
        if line_end >= 0:
            return line_end + 1, line_end + 1
        if whole - position <= block + overlap:
            return whole, whole
        return boundary(text, position + block), boundary(text, position + block + overlap)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern.

    Attributes:
        source: as it was written.
        groups: how many it has.
    """

    source: str
    groups: int
    _unicode: Machine = field(repr=False)
    _ascii: Machine = field(repr=False)

    def machine(self, *, ascii: bool) -> Machine:
        """The one for UTF-8; for a text that is all ASCII the smaller and faster one without Unicode."""
        return self._ascii if ascii else self._unicode


@dataclass(slots=True)
class Stop:
    """When a search of one piece ends before the piece does.

    Attributes:
        deadline: on the monotonic clock, seconds.
        position: where it ended in an earlier run, bytes; searching stops there, and not by the clock.
        reached: where it stopped, bytes; None while it has not.
    """

    deadline: float = inf
    position: float = inf
    reached: int | None = None

    def at(self, position: int) -> bool:
        """Whether to stop before searching from a position on; remembers where."""
        if position >= self.position or time.monotonic() > self.deadline:
            self.reached = position
            return True
        return False


def compile_pattern(source: str, *, capture: bool = False) -> Pattern:
    """Compile a pattern: any case, `^` and `$` at line ends, no match across lines.

    Args:
        source: in RE2's syntax.
        capture: the groups will be asked for.

    Raises:
        InputError: it is no pattern, or too large; with what to write instead.
    """
    if _matches_bytes(source):
        raise InputError(r"\C matches a byte, which is no character: write . instead.")
    try:
        return _compiled(source, capture)
    except re2.error as error:
        raise InputError(_remedy(error)) from None
    except UnicodeEncodeError:
        raise InputError("the pattern holds half a character (a lone surrogate).") from None


def quote(text: str) -> str:
    """The pattern of a text as it stands."""
    return str(re2.escape(text))


def search(pattern: Pattern, text: Bytes, stop: Stop, *, ascii: bool, group: int = 0) -> Iterator[Spans]:
    """All matches from left to right that are not empty, without overlap: where they begin and end, in batches.

    Args:
        pattern: what to look for.
        text: UTF-8.
        stop: when to end early.
        ascii: the text has no other characters.
        group: the spans are of this group; matches in which it takes no part are left out.
    """
    machine = pattern.machine(ascii=ascii)
    match = machine.match
    now, deadline, last = time.monotonic, stop.deadline, stop.position
    position, whole = 0, len(text)
    while position < whole:
        limit, end = machine.region(text, position)
        found: Spans = []
        while position < limit:
            if position >= last or now() > deadline:
                stop.reached = position
                if found:
                    yield found
                return
            spans = match(_ANYWHERE, text, position, end)
            begin, position = spans[0]
            if begin < 0 or begin >= limit:
                position = limit
            elif begin == position:
                position = boundary_after(text, position)
            elif spans[group][0] >= 0:
                found.append(spans[group])
        if found:
            yield found


def first_match(pattern: Pattern, text: Bytes, *, ascii: bool) -> tuple[int, int] | None:
    """Where the first match that is not empty begins and ends, in bytes; None where there is none.

    Args:
        pattern: what to look for.
        text: UTF-8.
        ascii: the text has no other characters.
    """
    machine, position = pattern.machine(ascii=ascii), 0
    while position < len(text):
        limit, end = machine.region(text, position)
        begin, until = machine.match(_ANYWHERE, text, position, end)[0]
        if 0 <= begin < until:
            return begin, until
        position = limit
    return None


def matching_lines(
    pattern: Pattern, text: Bytes, stop: Stop, *, ascii: bool, accept: Callable[[int, int], bool] | None = None
) -> Iterator[tuple[int, int]]:
    """The lines that hold a match, each once: where they begin and end, in bytes, without their newlines.

    Args:
        pattern: what to look for; an empty match counts.
        text: UTF-8.
        stop: when to end early.
        ascii: the text has no other characters.
        accept: whether a match counts, by where it begins and ends; if not, the line is searched on.
    """
    machine = pattern.machine(ascii=ascii)
    match = machine.match
    position, whole = 0, len(text)
    while position < whole:
        limit, end = machine.region(text, position)
        while position < limit:
            if stop.at(position):
                return
            begin, until = match(_ANYWHERE, text, position, end)[0]
            if begin < 0 or begin >= limit or begin == whole:
                position = limit
            elif accept is None or accept(begin, until):
                line_end = text.find(b"\n", until)
                line_end = whole if line_end < 0 else line_end
                yield text.rfind(b"\n", 0, begin) + 1, line_end
                position = line_end + 1
            else:
                position = boundary_after(text, begin)


@lru_cache(64)
def _compiled(source: str, capture: bool) -> Pattern:
    unicode = _re2(source, capture, latin=False)
    if unicode._regexp.ProgramSize() > _LARGEST:
        raise re2.error("pattern too large")
    plain = unicode
    if source.isascii():
        try:
            plain = _re2(source, capture, latin=True)
        except re2.error:
            plain = unicode
    return Pattern(source, unicode.groups, _machine(unicode), _machine(plain))


def _machine(compiled: Any) -> Machine:
    size = compiled._regexp.ProgramSize()
    return Machine(compiled._regexp.Match, max(min(BLOCK, _COST // size), _SMALLEST))


def _re2(source: str, capture: bool, *, latin: bool) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_nl = True
    options.never_capture = not capture
    if latin:
        options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile((_FLAGS + source).encode(), options)


def _matches_bytes(source: str) -> bool:
    r"""Whether \C is in it: an escape pairs with the sign after it."""
    at = 0
    while (at := source.find("\\", at)) >= 0:
        if source[at + 1 : at + 2] == "C":
            return True
        at += 2
    return False


def _remedy(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    what = (said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)).replace(_FLAGS, "")
    if "perl operator" in what:
        return f"{what}: there is no lookaround. Match the surroundings too, and take the part with a group."
    if re2.search(r"escape sequence: \\[0-9]", what):
        return f"{what}: there are no back references. Write \\\\ for a backslash."
    if "repetition size" in what:
        return f"{what}: repeat at most 1000 times."
    if "too large" in what:
        return f"{what}: use shorter counted repetitions ({{n,m}})."
    return f"{what}. Put a backslash before signs that are meant as they stand."


def boundary(text: Bytes, position: int) -> int:
    """The last position up to this where a character begins."""
    while 0 < position < len(text) and text[position] & 0xC0 == 0x80:
        position -= 1
    return position


def boundary_after(text: Bytes, position: int) -> int:
    """The first position after this where a character begins."""
    position += 1
    while position < len(text) and text[position] & 0xC0 == 0x80:
        position += 1
    return position
