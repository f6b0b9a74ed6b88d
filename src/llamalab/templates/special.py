"""Special strings: the texts of a vocabulary's control tokens, found in other text and hidden in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping


class SpecialStrings:
    """The strings of a vocabulary's control tokens, and where they stand in a text.

    Attributes:
        strings: all of them.
        first_characters: what they begin with.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self.strings = frozenset(string for string in strings if string.strip())
        self.first_characters = "".join(sorted({string[0] for string in self.strings}))
        self._lengths = {
            first: sorted({len(string) for string in self.strings if string[0] == first}, reverse=True)
            for first in self.first_characters
        }
        self._first = re.compile(f"[{re.escape(self.first_characters)}]") if self.strings else re.compile("(?!)")

    def starts(self, text: str) -> Iterator[tuple[int, str]]:
        """Every position at which one begins, with the longest that begins there; they may overlap."""
        for match in self._first.finditer(text):
            start = match.start()
            for length in self._lengths[match[0]]:
                if (string := text[start : start + length]) in self.strings:
                    yield start, string
                    break

    def find(self, text: str) -> Iterator[tuple[int, str]]:
        """Those that a tokenizer would see: from the left, the longest first, none inside another."""
        end = 0
        for start, string in self.starts(text):
            if start >= end:
                end = start + len(string)
                yield start, string

    def hide(self, text: str, stand_ins: Mapping[str, str]) -> str:
        """`text` with the first character of each of them replaced, so that none is left."""
        parts: list[str] = []
        end = 0
        for start, string in self.starts(text):
            parts += text[end:start], stand_ins[string[0]]
            end = start + 1
        return "".join([*parts, text[end:]])
