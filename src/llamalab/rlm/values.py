"""What a variable of a run holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from llamalab.rlm.marks import Positions
from llamalab.rlm.places import Item, Joined, Piece, Places
from llamalab.rlm.text import Context, Span

Kind: TypeAlias = Literal["text", "matches", "list", "number"]


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

    @classmethod
    def of_context(cls, context: Context) -> Value:
        """All documents."""
        return cls("text", Places.whole(context.documents), len(context.documents))

    def spans(self, most: int) -> tuple[Span, ...]:
        """Where the first pieces stand, at most `most`."""
        found = []
        for at in range(min(most, len(self.items))):
            if isinstance(self.items, Places):
                document, start, end = self.items.place(at)
                found.append(document.span(start, end))
            elif (span := self.items[at].span) is not None:
                found.append(span)
        return tuple(found)

    def piece(self, at: int) -> Piece:
        """An item as bytes."""
        if isinstance(self.items, Places):
            return self.items.piece(at)
        item = self.items[at]
        return Piece(item.text.encode(), item.text.isascii(), None, 0, item.span)

    def pieces(self) -> Iterator[Piece]:
        """The items as bytes, each made when it is asked for."""
        return (self.piece(at) for at in range(len(self.items)))

    def char_starts(self) -> Positions:
        """At which character each piece begins when they stand one after the other, and at last how many there are."""
        lengths = self.items.lengths() if isinstance(self.items, Places) else [len(item.text) for item in self.items]
        return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def joined_pieces(self, size: int) -> Iterator[Joined]:
        """The items joined into texts of about so many bytes, for searches that keep within lines."""
        if isinstance(self.items, Places):
            ends = np.cumsum(self.items.end - self.items.start + 1)
        else:
            ends = np.cumsum([len(item.text) + 1 for item in self.items], dtype=np.int64)
        at = 0
        while at < len(self.items):
            before = int(ends[at - 1]) if at else 0
            until = max(int(np.searchsorted(ends, before + size, side="right")), at + 1)
            yield Joined.of(self.items[at:until])
            at = until

    def head(self, at: int, most: int) -> Item:
        """The first `most` characters of an item: the rest is not read."""
        if not isinstance(self.items, Places):
            return Item(self.items[at].text[:most], self.items[at].span)
        document, start, end = self.items.place(at)
        if end - start > most:
            end = min(end, document.byte_of(document.char_of(start) + most))
        return Item(document.read(start, end), document.span(start, end))

    def joined(self, most: int) -> str:
        """The first `most` characters of all items: texts one after the other, others one to a line."""
        parts: list[str] = []
        between = "" if self.kind == "text" else "\n"
        for at in range(len(self.items)):
            if most <= 0:
                break
            parts.append(self.head(at, most).text)
            most -= len(parts[-1]) + len(between)
        return between.join(parts)
