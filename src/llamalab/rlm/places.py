"""Pieces of text, and where they come from.

Pieces of a document are kept as places, and read when they are looked at: two hundred thousand matches take
a few MiB, however long they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from llamalab.rlm.marks import Bytes, Positions
from llamalab.rlm.text import Document, Span


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
class Piece:
    """A piece of text as bytes that can be searched.

    Attributes:
        data: its UTF-8, and nothing around it.
        ascii: it has no other characters.
        document: that it stands in, from byte `offset` on; None where it is a text of its own.
        offset: bytes.
        span: for a text of its own: what it was made from.
    """

    data: Bytes
    ascii: bool
    document: Document | None = None
    offset: int = 0
    span: Span | None = None

    def char_of(self, position: int) -> int:
        """How many of its characters stand before a byte."""
        if self.ascii:
            return position
        if self.document is None:
            return len(self.data[:position].decode("utf-8"))
        return self.document.char_of(self.offset + position) - self.document.char_of(self.offset)

    def byte_of(self, char: int) -> int:
        """Where a character begins, in bytes; clipped."""
        if self.ascii:
            return min(max(char, 0), len(self.data))
        if self.document is None:
            return len(self.data[:].decode("utf-8")[: max(char, 0)].encode())
        before = self.document.char_of(self.offset)
        return min(self.document.byte_of(before + max(char, 0)) - self.offset, len(self.data))

    def item(self, start: int, end: int) -> Item:
        """Its bytes `start` to `end`."""
        if self.document is None:
            return Item(self.data[start:end].decode("utf-8"), self.span)
        start, end = self.offset + start, self.offset + end
        return Item(self.document.read(start, end), self.document.span(start, end))

    def places(self, spans: Positions) -> Places | None:
        """Parts of it, given as rows of first and last byte, as places; None for a text of its own."""
        if self.document is None:
            return None
        which = np.zeros(len(spans), np.int32)
        return Places([self.document], which, spans[:, 0] + self.offset, spans[:, 1] + self.offset)


@dataclass(frozen=True, slots=True)
class Joined:
    """Many pieces as one text with a line for each, to be searched at once; what is found keeps its place.

    Attributes:
        data: their UTF-8, with newlines between.
        ascii: it has no other characters.
        items: the pieces.
        starts: at which byte of the text each begins.
    """

    data: bytes
    ascii: bool
    items: Sequence[Item]
    starts: Positions

    @classmethod
    def of(cls, items: Sequence[Item]) -> Joined:
        """Join pieces."""
        if isinstance(items, Places):
            parts = [document.data[start:end] for document, start, end in map(items.place, range(len(items)))]
        else:
            parts = [item.text.encode() for item in items]
        lengths = np.array([len(part) + 1 for part in parts], np.int64)
        data = b"\n".join(parts)
        return cls(data, data.isascii(), items, np.cumsum(lengths) - lengths)

    @property
    def n_chars(self) -> int:
        """Characters of the text."""
        return self.char_of(len(self.data))

    def char_of(self, position: int) -> int:
        """How many of its characters stand before a byte."""
        return position if self.ascii else len(self.data[:position].decode("utf-8"))

    def byte_of(self, char: int) -> int:
        """Where a character begins, in bytes; clipped."""
        return (
            min(max(char, 0), len(self.data)) if self.ascii else len(self.data.decode("utf-8")[: max(char, 0)].encode())
        )

    def item(self, start: int, end: int) -> Item:
        """Its bytes `start` to `end`, which are of one line."""
        places = self.places(np.array([[start, end]], np.int64))
        if places is not None:
            return places[0]
        at = int(np.searchsorted(self.starts, start, side="right")) - 1
        return Item(self.data[start:end].decode("utf-8"), self.items[at].span)

    def places(self, spans: Positions) -> Places | None:
        """Parts of it, given as rows of first and last byte, as places; None where the pieces are in no document."""
        if not isinstance(self.items, Places):
            return None
        at = np.searchsorted(self.starts, spans[:, 0], side="right") - 1
        offset = self.items.start[at] - self.starts[at]
        return Places(self.items.documents, self.items.which[at], spans[:, 0] + offset, spans[:, 1] + offset)


Searched: TypeAlias = Piece | Joined
"""A text that is searched."""


class Places(Sequence[Item]):
    """Pieces of documents, in any order.

    Attributes:
        documents: in which they stand.
        which: index of the document of each.
        start: first byte of each.
        end: after the last byte of each.
    """

    __slots__ = ("documents", "end", "start", "which")

    def __init__(
        self, documents: Sequence[Document], which: NDArray[np.int32], start: Positions, end: Positions
    ) -> None:
        self.documents = tuple(documents)
        self.which, self.start, self.end = which, start, end

    @classmethod
    def whole(cls, documents: Sequence[Document]) -> Places:
        """Each document as one piece."""
        n = len(documents)
        ends = np.array([document.n_bytes for document in documents], np.int64)
        return cls(documents, np.arange(n, dtype=np.int32), np.zeros(n, np.int64), ends)

    def __len__(self) -> int:
        return len(self.start)

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> Places: ...
    def __getitem__(self, at: int | slice) -> Item | Places:
        if isinstance(at, slice):
            return Places(self.documents, self.which[at], self.start[at], self.end[at])
        document, start, end = self.place(at)
        return Item(document.read(start, end), document.span(start, end))

    def place(self, at: int) -> tuple[Document, int, int]:
        """The document of a piece, its first byte, and the byte after its last."""
        return self.documents[self.which[at]], int(self.start[at]), int(self.end[at])

    def piece(self, at: int) -> Piece:
        """A piece as bytes."""
        document, start, end = self.place(at)
        whole = start == 0 and end == document.n_bytes
        return Piece(document.data if whole else document.data[start:end], document.ascii, document, start)

    def ordered(self, order: Positions) -> Places:
        """The same in another order."""
        return Places(self.documents, self.which[order], self.start[order], self.end[order])

    def lengths(self) -> Positions:
        """Characters of each."""
        found = self.end - self.start
        for n, document in enumerate(self.documents):
            if not document.ascii:
                here = self.which == n
                found[here] = document.chars_of(self.end[here]) - document.chars_of(self.start[here])
        return found

    def line_counts(self) -> Positions:
        """Lines of each; one that ends with a newline has no empty line after it."""
        found = np.zeros(len(self), np.int64)
        for n, document in enumerate(self.documents):
            here = np.flatnonzero((self.which == n) & (self.end > self.start))
            if len(here):
                last = self.end[here] - 1
                found[here] = document.lines_of(last) - document.lines_of(self.start[here]) + 1
        return found


class Gathered:
    """Pieces as a search finds them: at most so many are kept, all are counted.

    Attributes:
        total: how many there were.
    """

    def __init__(self, most: int) -> None:
        self.total = 0
        self._room = most
        self._parts: list[tuple[Searched, Positions]] = []

    def add(self, piece: Searched, spans: Sequence[tuple[int, int]]) -> None:
        """Take parts of a piece, given as bytes from its beginning."""
        self.total += len(spans)
        kept = spans[: self._room]
        self._room -= len(kept)
        if kept:
            self._parts.append((piece, np.array(kept, np.int64)))

    def items(self) -> Sequence[Item]:
        """What was kept, in the order it was added."""
        parts = [(piece, spans, piece.places(spans)) for piece, spans in self._parts]
        found = [places for _, _, places in parts if places is not None]
        if len(found) < len(parts):
            return tuple(piece.item(int(a), int(b)) for piece, spans, _ in parts for a, b in spans)
        if not found:
            return ()
        documents: dict[int, tuple[int, Document]] = {}
        for places in found:
            for document in places.documents:
                documents.setdefault(id(document), (len(documents), document))
        numbers = [np.array([documents[id(document)][0] for document in p.documents], np.int32)[p.which] for p in found]
        starts, ends = np.concatenate([p.start for p in found]), np.concatenate([p.end for p in found])
        return Places([document for _, document in documents.values()], np.concatenate(numbers), starts, ends)
