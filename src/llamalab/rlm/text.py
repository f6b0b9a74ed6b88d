"""The documents of a run: UTF-8 in mapped files, addressed by characters and lines.

A file is read once, to check that it is text and to count; afterwards the system reads what is looked at. Lines end
with a newline; a carriage return before it belongs to the line.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llamalab.errors import InputError
from llamalab.rlm.marks import Bytes, Marks, Positions, char_position
from llamalab.rlm.reading import read_text

_MAPPED = 1 << 20  # a smaller file is copied: it needs no file handle, and nobody can cut it off under us


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
        name: what it is called, in a run and in evidence; one line.
        data: its UTF-8, for those who search it.
        n_chars: characters.
        n_bytes: bytes of its UTF-8.
        n_lines: lines; what follows the last newline is a line if it is not empty.
        ascii: all its characters are one byte long.
        sha256: of the bytes as they were given.
        notes: what had to be done to read it ("2 bytes that are not UTF-8 were read as U+FFFD ...").
    """

    def __init__(self, data: Bytes, name: str, file: Path | None = None) -> None:
        """Read a text.

        Args:
            data: its bytes.
            name: what it is called; white space in it becomes single spaces.
            file: that is mapped, to notice changes.

        Raises:
            InputError: it is binary.
        """
        self.name = " ".join(name.split()) or "text"
        self.sha256 = _digest(data)
        found = read_text(data, self.name)
        self.data = found.data
        self.notes = found.notes
        self._newlines = Marks(found.data, found.newlines, newlines=True)
        self._continuations = Marks(found.data, found.continuations, newlines=False)
        self.n_bytes = len(found.data)
        self.n_chars = self.n_bytes - self._continuations.total
        self.n_lines = self._newlines.total + (self.n_bytes > 0 and found.data[self.n_bytes - 1] != 10)
        self.ascii = self._continuations.total == 0
        self._file = file
        self._stamp = _stamp(file)

    @classmethod
    def open(cls, path: Path | str, name: str | None = None) -> Document:
        """Map a file; a small one is copied.

        Raises:
            InputError: it is missing, no file, cannot be read, or is binary.
        """
        path = Path(path)
        called = str(path) if name is None else name
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: that would wait for a pipe's writer
                raise InputError(f"{path} is no file. Pipes are read from standard input, with - as the file.")
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size < _MAPPED:
                    return cls(file.read(), called)
                return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), called, path.absolute())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:  # a zero byte in its name
            raise InputError(f"{called!r} is no name of a file: {error}.") from None

    @classmethod
    def of(cls, content: str | bytes, name: str) -> Document:
        """A document of text that is in memory.

        Raises:
            InputError: it is binary.
        """
        return cls(content.encode("utf-8", "replace") if isinstance(content, str) else bytes(content), name)

    def text(self, start: int = 0, end: int | None = None) -> str:
        """Characters `start` to `end`, clipped to what is there."""
        end = self.n_chars if end is None else end
        return self.read(self.byte_of(start), self.byte_of(max(start, end)))

    def lines(self, first: int, last: int) -> list[str]:
        """Lines `first` to `last`, both included and counted from 1, without their newlines; clipped."""
        first, last = max(first, 1), min(last, self.n_lines)
        if first > last:
            return []
        return self.read(self.line_start(first), self.line_start(last + 1)).removesuffix("\n").split("\n")

    def read(self, start: int, end: int) -> str:
        """The text of bytes `start` to `end`; both are where characters begin."""
        return self.data[start:end].decode("utf-8")

    def byte_of(self, char: int) -> int:
        """Where a character begins, in bytes; clipped."""
        char = min(max(char, 0), self.n_chars)
        return char if self.ascii else char_position(self._continuations, char)

    def line_start(self, line: int) -> int:
        """Where a line begins, in bytes; after the last line, where the text ends."""
        if line <= 1:
            return 0
        return self._newlines.select(line - 2) + 1 if line - 2 < self._newlines.total else self.n_bytes

    def char_of(self, position: int) -> int:
        """How many characters stand before a byte."""
        return position if self.ascii else position - self._continuations.rank(position)

    def chars_of(self, positions: Positions) -> Positions:
        """`char_of` many bytes."""
        return positions if self.ascii else positions - self._continuations.ranks(positions)

    def line_of(self, position: int) -> int:
        """The line of a byte, from 1."""
        return self._newlines.rank(position) + 1

    def lines_of(self, positions: Positions) -> Positions:
        """`line_of` many bytes."""
        return self._newlines.ranks(positions) + 1

    def line_bounds(self, position: int) -> tuple[int, int]:
        """Where the line of a byte begins and ends, without its newline, in bytes."""
        end = self.data.find(b"\n", position)
        return self.data.rfind(b"\n", 0, position) + 1, self.n_bytes if end < 0 else end

    def span(self, start: int, end: int) -> Span:
        """The place of bytes `start` to `end`."""
        return Span(self.name, self.char_of(start), self.char_of(end), self.line_of(start))

    def check(self) -> None:
        """See that the file is still the one that was opened.

        Raises:
            InputError: it was changed.
        """
        if self._file is not None and _stamp(self._file) != self._stamp:
            raise InputError(f"{self.name} was changed while it was being read. Ask again, of a copy if it is growing.")

    def close(self) -> None:
        """Let go of the file. The document cannot be read afterwards."""
        data, self.data, self._file = self.data, b"", None
        self._newlines = self._continuations = Marks(b"", np.zeros(1, np.int64), newlines=True)
        if isinstance(data, mmap.mmap):
            with suppress(BufferError):  # somebody still looks at it, and closes it by letting go
                data.close()


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
        if not any(document.n_bytes for document in documents):
            raise InputError(f"There is no text to ask about: {_empty([document.name for document in documents])}.")
        names = [document.name for document in documents]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise InputError(f"Two documents are called {twice}. Each needs a name of its own.")
        self.n_chars = sum(document.n_chars for document in documents)
        self.n_lines = sum(document.n_lines for document in documents)
        self.sha256 = hashlib.sha256("\n".join(f"{d.sha256} {d.name}" for d in documents).encode()).hexdigest()

    def check(self) -> None:
        """See that all files are still the ones that were opened.

        Raises:
            InputError: one was changed.
        """
        for document in self.documents:
            document.check()


def _empty(names: Sequence[str]) -> str:
    if not names:
        return "name a file"
    more = f" and {len(names) - 1:,} more are" if len(names) > 1 else " is"
    return f"{names[0]}{more} empty"


def _digest(data: Bytes) -> str:
    found = hashlib.sha256()
    for start in range(0, len(data), _MAPPED):
        found.update(data[start : start + _MAPPED])
    return found.hexdigest()


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    """What tells that a file was changed in place; None where there is nothing of that file any more."""
    try:
        status = None if file is None else file.stat()
    except OSError:
        return None
    return None if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)
