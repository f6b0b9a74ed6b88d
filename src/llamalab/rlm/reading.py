"""Reading bytes as text: UTF-8 is taken as it is, a few wrong bytes are replaced, and what is no text is refused."""

from __future__ import annotations

import codecs
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llamalab.errors import InputError
from llamalab.rlm.marks import STEP, Bytes, Positions, is_continuation

_BLOCK = 1 << 20
_WRONG = "\N{REPLACEMENT CHARACTER}"
_MARK = b"\xef\xbb\xbf"  # byte order mark
_IN_MEMORY = 16 << 20
_MANY = 10  # places; so many are hardly an accident
_CONVERT = "iconv -f latin1 -t utf-8"
_MOST_WRONG = 0.1  # of the bytes; texts in an old encoding of Western languages have fewer


@dataclass(frozen=True, slots=True)
class Reading:
    """A text, and how many newlines and continuation bytes stand before each multiple of `STEP`, and at last in all."""

    data: Bytes
    newlines: Positions
    continuations: Positions
    notes: tuple[str, ...] = ()


def read_text(data: Bytes, name: str) -> Reading:
    """Check and count a text.

    Where bytes are not UTF-8, or a byte order mark leads, the reading is of a repaired copy.

    Raises:
        InputError: it is binary.
    """
    if data[:3] == _MARK:
        return read_text(_copy(block for block in _blocks(data, 3)), name)
    newlines, continuations = [0], [0]
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        for block in _blocks(data):
            if b"\0" in block:
                _refuse(data, name)
            newlines += [block.count(b"\n", at, at + STEP) for at in range(0, len(block), STEP)]
            if block.isascii():
                continuations += [0] * -(-len(block) // STEP)
                if decoder.getstate()[0]:
                    decoder.decode(block)  # raises: a character was begun and did not go on
            else:
                decoder.decode(block)
                marks = is_continuation(np.frombuffer(block, np.uint8))
                continuations += [int(np.count_nonzero(marks[at : at + STEP])) for at in range(0, len(block), STEP)]
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return _repaired(data, name)
    return Reading(data, np.cumsum(newlines, dtype=np.int64), np.cumsum(continuations, dtype=np.int64))


def _blocks(data: Bytes, start: int = 0) -> Iterator[bytes]:
    return (data[at : at + _BLOCK] for at in range(start, len(data), _BLOCK))


def _refuse(data: Bytes, name: str) -> None:
    if data[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        raise InputError(f"{name} is UTF-32. Convert it: iconv -f UTF-32 -t UTF-8.")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{name} is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8.")
    raise InputError(f"{name} is binary: byte {data.find(bytes(1))} is zero. Only text can be read; convert it first.")


def _repaired(data: Bytes, name: str) -> Reading:
    """The reading of a copy in which what is not UTF-8 is U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    there = wrong = line = 0
    first = None

    def blocks() -> Iterator[bytes]:
        nonlocal there, wrong, line, first
        for block in _with_end(data):
            text = decoder.decode(block, final=not block)
            there += block.count(_WRONG.encode())
            wrong += text.count(_WRONG)
            if first is None and wrong > there:
                first = line + text.count("\n", 0, text.index(_WRONG)) + 1
            line += text.count("\n")
            yield text.encode()

    copy = _copy(blocks())
    replaced = max(wrong - there, 1)
    if replaced > _MOST_WRONG * len(data) and len(data) > 1:
        raise InputError(
            f"{name} is no text in UTF-8: it is wrong in {replaced:,} places. Convert it first, for example with: "
            f"{_CONVERT}."
        )
    found = read_text(copy, name)
    where = f"in line {first}" if replaced == 1 else f"in {replaced:,} places, first in line {first}"
    note = f"{name} is not all UTF-8: U+FFFD stands for what is wrong {where}"
    if replaced >= _MANY:
        note += f". If it is in another encoding, convert it first, for example with: {_CONVERT}"
    return Reading(found.data, found.newlines, found.continuations, (note,))


def _with_end(data: Bytes) -> Iterator[bytes]:
    yield from _blocks(data)
    yield b""


def _copy(blocks: Iterator[bytes]) -> Bytes:
    """Blocks as one text: in memory, or, where it is large, in a file without a name that is mapped."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        for block in blocks:
            file.write(block)
        if file.tell() <= _IN_MEMORY:
            file.seek(0)
            return file.read()
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
