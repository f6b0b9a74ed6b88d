"""Finding lines in a text.

The rule of `find`: lines that hold the phrase, as whole words and in any case; where no line does, lines
that hold all its words that carry meaning. The best come first: the phrase, then the shorter line, then the
earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import re2

from llamalab.rlm.marks import Bytes
from llamalab.rlm.patterns import Pattern, Stop, boundary, compile_pattern, matching_lines, quote
from llamalab.rlm.places import Gathered, Places, Searched
from llamalab.rlm.state import Clock
from llamalab.rlm.values import Value

FUNCTION_WORDS = frozenset(
    "a an and are at by did do does for from has have in is it its of on or the to was with".split()
)
"""Words that do not count when a line is asked to hold all words."""

_UNEVEN = (
    r"[\x{df}\x{130}\x{149}\x{1f0}\x{390}\x{3b0}\x{587}\x{1e96}-\x{1e9e}\x{1f50}-\x{1f57}\x{1f80}-\x{1fff}"
    r"\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}]"
)
"""Characters that become several when case is folded (ß), and some others: RE2 folds one to one."""
_WORD = re2.compile(r"[\pL\pN_]")
_WORDS = re2.compile(r"[\pL\pN_]+")
_ASCII_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a text; `number` counts from 1."""

    number: int
    text: str


def find_lines(lines: Sequence[Line], text: str) -> list[Line]:
    """The lines that match `text`, best first. An empty or purely functional text is taken as a phrase."""
    words = re2.findall(r"[\pL\pN_]+", text)
    phrase = re2.compile(rf"(?i)(?:^|[^\pL\pN_]){re2.escape(text.strip())}(?:$|[^\pL\pN_])")
    found = [line for line in lines if phrase.search(line.text)]
    if not found:
        wanted = {word.casefold() for word in words} - FUNCTION_WORDS
        found = [line for line in lines if wanted and wanted <= _words(line.text)]
    return sorted(found, key=lambda line: (len(line.text), line.number))


def find(
    source: Value, text: str, clock: Clock, most: int, how: Literal["phrase", "all", "any"] | None = None
) -> Value:
    """The lines of a text that match, best first: `find_lines`, of any length, without reading what does not match.

    Args:
        source: the text; its pieces are searched one after the other.
        text: what to look for.
        clock: when to end early. The second reading, for the words, counts on.
        most: lines that are kept, the first ones; the others are counted.
        how: only the phrase, only all its words, or any of them, those with more of them first.
    """
    if how in (None, "phrase"):
        found = _gather(source, clock, most, _phrase_lines(text))
        if how == "phrase" or found.total or clock.partial_at is not None:
            return _ranked(found, None)
        clock.again(source)
    wanted = frozenset(word.casefold() for word in re2.findall(r"[\pL\pN_]+", text)) - FUNCTION_WORDS
    if not wanted:
        return Value("matches", (), 0)
    needed = 1 if how == "any" else len(wanted)
    words = sorted(wanted, key=lambda word: (-len(word.encode()), word))
    patterns = _candidates(words if how == "any" else words[:1])

    def lines(piece: Searched, stop: Stop) -> Iterator[tuple[int, int]]:
        pattern = patterns[0] if piece.ascii else patterns[1]
        for start, end in matching_lines(pattern, piece.data, stop, ascii=piece.ascii):
            line = piece.data[start:end].decode("utf-8")
            folded = line.casefold()
            there = {word for word in wanted if word in folded}  # most lines are out already, words or not
            if len(there) >= needed and len(there & _words(line)) >= needed:
                yield start, end

    return _ranked(_gather(source, clock, most, lines), wanted if how == "any" else None)


def _phrase_lines(text: str) -> Callable[[Searched, Stop], Iterator[tuple[int, int]]]:
    """Lines with a phrase between boundaries of words: RE2 is quick at the phrase, and the signs around are few."""
    phrase = text.strip()
    if not phrase:
        empty = compile_pattern(r"(?:^|[^\pL\pN_])(?:$|[^\pL\pN_])")
        return lambda piece, stop: matching_lines(empty, piece.data, stop, ascii=piece.ascii)
    pattern = compile_pattern(quote(phrase))

    def lines(piece: Searched, stop: Stop) -> Iterator[tuple[int, int]]:
        data = piece.data

        def between(begin: int, end: int) -> bool:
            return not _is_word(data, begin - 1) and not _is_word(data, end)

        return matching_lines(pattern, data, stop, ascii=piece.ascii, accept=between)

    return lines


def _is_word(data: Bytes, position: int) -> bool:
    """Whether the character at a byte is of a word; before the beginning and after the end there is none."""
    if not 0 <= position < len(data):
        return False
    byte = data[position]
    if byte < 128:
        return byte in _ASCII_WORD
    start = boundary(data, position)
    return _WORD.match(data[start : start + 4].decode("utf-8", "ignore")) is not None


def _candidates(words: Sequence[str]) -> tuple[Pattern, Pattern]:
    """Patterns that find every line with one of the words, in texts that are all ASCII and in others; and some more."""
    plain = "|".join(quote(word) for word in words)
    return compile_pattern(plain), compile_pattern(f"{plain}|{_UNEVEN}")


def _gather(
    source: Value, clock: Clock, most: int, lines: Callable[[Searched, Stop], Iterator[tuple[int, int]]]
) -> Gathered:
    found = Gathered(most)
    for piece, stop in clock.read_lines(source):
        matching = lines(piece, stop)
        while batch := list(islice(matching, _BATCH)):
            found.add(piece, batch)
    return found


def _ranked(found: Gathered, wanted: frozenset[str] | None) -> Value:
    """Lines, those with more of the words first, then the shorter, then the earlier."""
    items = found.items()
    if isinstance(items, Places):
        keys = [np.arange(len(items)), items.lengths()]
        if wanted is not None:
            keys.append(np.array([-len(wanted & _words(item.text)) for item in items]))
        return Value("matches", items.ordered(np.lexsort(keys)), found.total)
    ranked = sorted(items, key=lambda item: (-len((wanted or frozenset()) & _words(item.text)), len(item.text)))
    return Value("matches", tuple(ranked), found.total)


def _words(text: str) -> set[str]:
    return {match.group().decode().casefold() for match in _WORDS.finditer(text.encode())}
