"""Special strings: the texts of a vocabulary's control tokens, found in other text and hidden in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


class SpecialStrings:
    """The strings of a vocabulary's control tokens, and where they stand in a text.

    Attributes:
        strings: all of them.
        characters: all that occur in them.
        first_characters: what they begin with.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self.strings = frozenset(string for string in strings if string.strip())
        self.characters = frozenset("".join(self.strings))
        self.first_characters = "".join(sorted({string[0] for string in self.strings}))
        self._lengths: dict[str, list[int]] = {}
        for head in {string[:n] for string in self.strings for n in (1, 2)}:
            lengths = {len(string) for string in self.strings if string.startswith(head) or string == head[0]}
            self._lengths[head] = sorted(lengths, reverse=True)
        seconds = {
            first: "".join(sorted({string[1:2] for string in self.strings if string[0] == first}))
            for first in self.first_characters
        }
        self._head = re.compile(
            "|".join(
                re.escape(first) + ("" if first in self.strings else f"(?=[{re.escape(second)}])")
                for first, second in seconds.items()
            )
            or "(?!)"
        )

    def starts(self, text: str) -> Iterator[tuple[int, str]]:
        """Every position at which one begins, with the longest that begins there; they may overlap."""
        for match in self._head.finditer(text):
            start = match.start()
            for length in self._lengths.get(text[start : start + 2]) or self._lengths[match[0]]:
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


@dataclass(frozen=True, slots=True)
class Hiding:
    """A way to keep special strings in a text from being seen: their first characters become stand-ins.

    Called with a text, it hides them, and none is left; `undo` brings them back.

    Attributes:
        special: what to hide.
        stand_ins: one for each of `special.first_characters`, in that order, from outside the text.
    """

    special: SpecialStrings
    stand_ins: str

    def __call__(self, text: str) -> str:
        """`text` with the first character of each special string replaced."""
        stand_ins = dict(zip(self.special.first_characters, self.stand_ins, strict=True))
        parts: list[str] = []
        end = 0
        for start, string in self.special.starts(text):
            parts += text[end:start], stand_ins[string[0]]
            end = start + 1
        return "".join([*parts, text[end:]])

    def undo(self, text: str) -> str:
        """The text that was hidden."""
        for stand_in, character in zip(self.stand_ins, self.special.first_characters, strict=True):
            text = text.replace(stand_in, character)
        return text
