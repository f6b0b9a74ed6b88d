"""Commands that read: `slice`, `lines`, `len`, `count`, `split`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from llamalab.errors import InputError
from llamalab.rlm.commands import Count, Len, Lines, Slice, Split
from llamalab.rlm.marks import Bytes
from llamalab.rlm.patterns import BLOCK, Stop, boundary
from llamalab.rlm.places import Gathered, Piece, Places
from llamalab.rlm.show import show
from llamalab.rlm.state import LAST, SPANS_KEPT, Clock, Result, State
from llamalab.rlm.values import Value

_BATCH = 4096
_BLANK, _TAB, _CONTROLS = np.uint8(32), np.uint8(9), np.uint8(5)


def slice_(command: Slice, state: State, _clock: Clock) -> Result:
    """Characters of a text, counted over all its pieces."""
    source = state.source(command.on)
    starts = source.char_starts()
    total = int(starts[-1])
    end = total if command.end is None else command.end
    first, last, notes = _clipped(_from_end(command.start, total), _from_end(end, total), 0, total, "character")
    found = Gathered(len(source.items))
    for at in range(int(np.searchsorted(starts, first, side="right")) - 1, len(source.items)):
        if starts[at] >= last:
            break
        piece, before = source.piece(at), int(starts[at])
        span = piece.byte_of(first - before), piece.byte_of(last - before)
        if span[0] < span[1]:
            found.add(piece, [span])
    value = Value("text", found.items(), found.total)
    return _text(value, state, f"characters {first} to {last} of {total}", notes)


def lines(command: Lines, state: State, _clock: Clock) -> Result:
    """Lines of a text, counted over all its pieces."""
    source = state.source(command.on)
    ends = np.cumsum(_line_counts(source))
    total = int(ends[-1]) if len(ends) else 0
    start = 1 if command.start is None else command.start
    end = total if command.end is None else command.end
    first, last, notes = _clipped(_from_end(start, total + 1), _from_end(end, total + 1), 1, total, "line")
    found = Gathered(len(source.items))
    for at in range(int(np.searchsorted(ends, first)), len(source.items)):
        before = int(ends[at - 1]) if at else 0
        if before >= last:
            break
        piece = source.piece(at)
        begin, until = _line_start(piece, max(first - before, 1)), _line_start(piece, last - before + 1)
        is_end = last <= int(ends[at])
        if is_end and until > begin and piece.data[until - 1] == 10:
            until -= 1
        if begin < until or is_end:
            found.add(piece, [(begin, until)])
    value = Value("text" if source.kind == "text" else "list", found.items(), found.total)
    what = f"line {first}" if first == last else f"lines {first} to {last}"
    return _text(value, state, f"{what} of {total}" if last >= first else f"no lines of {total}", notes)


def len_(command: Len, state: State, _clock: Clock) -> Result:
    """How many characters."""
    return number(int(state.source(command.on).char_starts()[-1]), "characters", state.source(command.on))


def count(command: Count, state: State, clock: Clock) -> Result:
    """How many lines, characters, words or pieces.

    Raises:
        InputError: there is nothing to count.
    """
    if command.what == "matches":
        if command.on is None and LAST not in state.variables:
            raise InputError('nothing was searched yet: use find or regex with "store", then count on that name')
        source = state.source(command.on or LAST)
        return number(source.total, "matches", source)
    source = state.source(command.on)
    if command.what == "chars":
        return number(int(source.char_starts()[-1]), "characters", source)
    if command.what == "lines":
        return number(int(_line_counts(source).sum()), "lines", source)
    return number(sum(_words(piece.data, stop) for piece, stop in clock.read_lines(source)), "words", source)


def split(command: Split, state: State, clock: Clock) -> Result:
    """The pieces between delimiters. At the ends of a text they may be empty, and are left out there as elsewhere."""
    source = state.source(command.on)
    found = Gathered(state.limits.matches)
    delimiter = command.delimiter.encode()
    for piece, stop in clock.read(source):
        batch: list[tuple[int, int]] = []
        for span in _between(piece.data, delimiter, stop):
            batch.append(span)
            if len(batch) == _BATCH:
                found.add(piece, batch)
                batch = []
        found.add(piece, batch)
    value = Value("list", found.items(), found.total)
    return listed(value, state, "piece", "pieces")


def number(n: int | str, what: str, source: Value | None = None) -> Result:
    """A number as a result, with the places it was counted over."""
    value = Value.of_number(n)
    return Result(value, f"{what}: {n}", spans=source.spans(5) if source is not None else ())


def listed(value: Value, state: State, one: str, many: str, *, around: bool = False, phrase: str = "") -> Result:
    """Pieces as a result: how many there are, and the first of them."""
    shown = show(value, state, around=around, phrase=phrase)
    notes = []
    if len(value.items) < value.total:
        notes.append(f"the first {len(value.items)} are kept; the others were counted")
    if shown.items < len(value.items):
        notes.append(f"the first {shown.items} are shown")
    head = f"{value.total} {one if value.total == 1 else many}"
    return Result(value, head, shown.text, (*notes, *shown.notes), value.spans(SPANS_KEPT))


def _text(value: Value, state: State, head: str, notes: list[str]) -> Result:
    shown = show(value, state)
    if not shown.whole:
        notes.append(f"cut after {state.limits.output} characters; all of it is kept")
    return Result(value, head, shown.text, tuple(notes), value.spans(SPANS_KEPT))


def _from_end(offset: int, total: int) -> int:
    return offset + total if offset < 0 else offset


def _clipped(start: int, end: int, least: int, most: int, what: str) -> tuple[int, int, list[str]]:
    """A range within what there is, and a note where it had to be changed; empty where it ends before it begins."""
    first, last = min(max(start, least), most + (least == 1)), min(max(end, least - (least == 1)), most)
    notes = []
    if (first, last) != (start, end):
        notes.append(f"there are {what}s {least} to {most}: {what}s {start} to {end} were clipped")
    if last < first - (least == 1):
        notes.append(f"the range ends before it begins: {start} to {end}")
        last = first - (least == 1)
    return first, last, notes


def _line_counts(source: Value) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if isinstance(source.items, Places):
        return source.items.line_counts()
    texts = (item.text for item in source.items)
    counts = [text.count("\n") + (not text.endswith("\n") and text != "") for text in texts]
    return np.array(counts, np.int64)


def _line_start(piece: Piece, line: int) -> int:
    """Where a line of a piece begins, in bytes; after the last one, where the piece ends."""
    if line <= 1:
        return 0
    if piece.document is not None:
        of_document = piece.document.line_of(piece.offset) + line - 1
        return min(piece.document.line_start(of_document) - piece.offset, len(piece.data))
    at = 0
    for _ in range(line - 1):
        found = piece.data.find(b"\n", at)
        if found < 0:
            return len(piece.data)
        at = found + 1
    return at


def _words(data: Bytes, stop: Stop) -> int:
    """Runs of characters between white space (of ASCII)."""
    total, at = 0, 0
    inside = False
    while at < len(data):
        if stop.at(at):
            break
        end = boundary(data, min(at + BLOCK, len(data)))
        content = np.frombuffer(data, np.uint8, end - at, at)
        space = (content == _BLANK) | (content - _TAB < _CONTROLS)  # unsigned: what is below a tab wraps around
        total += int(np.count_nonzero(space[:-1] > space[1:])) + (not inside and not space[0])
        inside = not space[-1]
        at = end
    return total


def _between(data: Bytes, delimiter: bytes, stop: Stop) -> Iterator[tuple[int, int]]:
    begin, deadline = 0, stop.deadline
    while begin < len(data):
        if begin >= stop.position or time.monotonic() > deadline:
            stop.reached = begin
            return
        end = data.find(delimiter, begin)
        end = len(data) if end < 0 else end
        if end > begin:
            yield begin, end
        begin = end + len(delimiter)
