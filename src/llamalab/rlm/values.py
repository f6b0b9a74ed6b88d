"""What a variable of a run holds: pieces of text, and where they come from.

Pieces of a document are kept as places, and read when they are looked at: two hundred thousand matches take
a few MiB, however long they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from llamalab.rlm.text import Span

Kind: TypeAlias = Literal["text", "matches", "list", "number"]


@dataclass(frozen=True, slots=True)
class Item:
    """A piece of text.

    Attributes:
        text: its characters.
        span: where it stands in a document; None where it comes from no document (a model's words, a number).
    """

    text: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """What a variable holds.

    Attributes:
        kind: one text (of one item, or of several documents in order), matches of a search, a list, or a number.
        items: its pieces, best or first first. A sequence that may read its items only when they are asked for.
        total: how many there were; more than `items` where a limit kept the rest out.
    """

    kind: Kind
    items: Sequence[Item]
    total: int

    @classmethod
    def of_text(cls, text: str, span: Span | None = None) -> Value:
        """One piece of text."""
        return cls("text", (Item(text, span),), 1)

    @classmethod
    def of_number(cls, number: int | str) -> Value:
        """A number, written as it is shown."""
        return cls("number", (Item(str(number)),), 1)

    def spans(self, most: int) -> tuple[Span, ...]:
        """Where the first pieces stand, at most `most`."""
        return tuple(item.span for item in self._first(most) if item.span is not None)

    def _first(self, most: int) -> Iterator[Item]:
        return (self.items[at] for at in range(min(most, len(self.items))))
