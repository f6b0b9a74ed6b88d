"""How many bytes of a kind stand before a position, and where the n-th of them stands.

Two kinds matter in UTF-8: newlines, which make lines, and continuation bytes, which are no characters of their own.
Their numbers are kept once per 8 KiB, so that 100 MB need 200 kB whatever is in them; the rest is counted when it is
asked for.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = bytes | mmap.mmap
Positions: TypeAlias = NDArray[np.int64]

STEP = 1 << 13
"""Bytes between two kept counts."""
_FEW = 32
_WIDE = 1 << 20
_NEWLINE = 10


@dataclass(frozen=True, slots=True)
class Marks:
    """Where the bytes of one kind stand in a text.

    Attributes:
        data: the text.
        before: how many of them stand before each multiple of `STEP`, and at last how many there are.
        newlines: newlines are meant; else continuation bytes.
    """

    data: Bytes
    before: Positions
    newlines: bool

    @property
    def total(self) -> int:
        """How many there are."""
        return int(self.before[-1])

    def rank(self, position: int) -> int:
        """How many stand before a byte."""
        step = min(position // STEP, len(self.before) - 2)
        if step < 0:
            return 0
        return int(self.before[step]) + int(np.count_nonzero(self._is(step * STEP, position)))

    def ranks(self, positions: Positions) -> Positions:
        """`rank` of many positions, of any order."""
        if not self.total or not len(positions):
            return np.zeros(len(positions), np.int64)
        if len(positions) <= _FEW:
            return np.array([self.rank(int(position)) for position in positions], np.int64)
        order = np.argsort(positions, kind="stable")
        ordered, found = positions[order], np.empty(len(positions), np.int64)
        at = 0
        while at < len(ordered):
            start = int(ordered[at]) // _WIDE * _WIDE
            until = int(np.searchsorted(ordered, start + _WIDE))
            marks = np.flatnonzero(self._is(start, min(int(ordered[until - 1]) + 1, len(self.data))))
            found[at:until] = self.before[start // STEP] + np.searchsorted(marks, ordered[at:until] - start)
            at = until
        result = np.empty_like(found)
        result[order] = found
        return result

    def select(self, n: int) -> int:
        """The position of the n-th, from 0; there must be so many."""
        step = int(np.searchsorted(self.before, n, side="right")) - 1
        marks = np.flatnonzero(self._is(step * STEP, min((step + 1) * STEP, len(self.data))))
        return step * STEP + int(marks[n - int(self.before[step])])

    def _is(self, start: int, end: int) -> NDArray[np.bool_]:
        found = np.frombuffer(self.data, np.uint8, end - start, start) if end > start else np.empty(0, np.uint8)
        return is_newline(found) if self.newlines else is_continuation(found)


def is_newline(content: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which bytes are newlines."""
    return np.equal(content, _NEWLINE)


def is_continuation(content: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which bytes of UTF-8 go on with a character: 0b10xxxxxx, as signed numbers all below -64."""
    signed: NDArray[Any] = content.view(np.int8)
    found: NDArray[np.bool_] = np.less(signed, -64)
    return found


def char_position(continuations: Marks, char: int) -> int:
    """The byte at which a character begins; the length of the text for the one after the last."""
    before = continuations.before
    chars = np.minimum(np.arange(len(before)) * STEP, len(continuations.data)) - before
    step = int(np.searchsorted(chars, char, side="right")) - 1
    if step >= len(before) - 1:
        return len(continuations.data)
    start, end = step * STEP, min((step + 1) * STEP, len(continuations.data))
    begins = np.flatnonzero(~is_continuation(np.frombuffer(continuations.data, np.uint8, end - start, start)))
    return start + int(begins[char - int(chars[step])])
