"""Finding lines in a text.

The rule of `find`: lines that hold the phrase, as whole words and in any case; where no line does, lines
that hold all its words that carry meaning. The best come first: the phrase, then the shorter line, then the
earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import re2

FUNCTION_WORDS = frozenset(
    "a an and are at by did do does for from has have in is it its of on or the to was with".split()
)
"""Words that do not count when a line is asked to hold all words."""


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


def _words(text: str) -> set[str]:
    return {word.casefold() for word in re2.findall(r"[\pL\pN_]+", text)}
