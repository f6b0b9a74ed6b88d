"""The documents of a run: UTF-8 in mapped files, addressed by characters and lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a document.

    Attributes:
        document: its name.
        start: first character, from 0.
        end: after the last character.
        line: on which it begins, from 1.
    """

    document: str
    start: int
    end: int
    line: int


class Document:
    """A text that can be read anywhere without being held in memory.

    Attributes:
        name: what it is called, in a run and in evidence.
        n_chars: characters.
        n_bytes: bytes of its UTF-8.
        n_lines: lines; what follows the last newline is a line if it is not empty.
        sha256: of the bytes as they were given.
        notes: what had to be done to read it ("2 bytes that are not UTF-8 were read as U+FFFD ...").
    """

    name: str
    n_chars: int
    n_bytes: int
    n_lines: int
    sha256: str
    notes: tuple[str, ...]

    @classmethod
    def open(cls, path: Path | str, name: str | None = None) -> Document:
        """Map a file.

        Raises:
            InputError: it is missing, no file, cannot be read, or is binary.
        """
        raise NotImplementedError

    @classmethod
    def of(cls, content: str | bytes, name: str) -> Document:
        """A document of text that is in memory.

        Raises:
            InputError: it is binary.
        """
        raise NotImplementedError

    def text(self, start: int = 0, end: int | None = None) -> str:
        """Characters `start` to `end`, clipped to what is there."""
        raise NotImplementedError

    def lines(self, first: int, last: int) -> list[str]:
        """Lines `first` to `last`, both included and counted from 1, without their newlines; clipped."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the file."""
        raise NotImplementedError


class Context:
    """The documents of a run, in order. Offsets without a document run over all of them, one after the other.

    In commands the documents are called `doc1`, `doc2`, ... in this order.

    Attributes:
        documents: in order.
        n_chars: of all.
        n_lines: of all.
        sha256: of the names and hashes of all.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        """Take documents.

        Raises:
            InputError: there are none, they hold no text, or two have one name.
        """
        self.documents = tuple(documents)
        self.n_chars = sum(document.n_chars for document in documents)
        self.n_lines = sum(document.n_lines for document in documents)
        self.sha256 = ""
