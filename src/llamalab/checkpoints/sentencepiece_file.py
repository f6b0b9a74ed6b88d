"""SentencePiece's `tokenizer.model` (Llama 2, Mistral): the parts of its protobuf that a BPE needs.

Read and written here, field by field, so that a conversion needs neither SentencePiece nor protobuf.

Source: sentencepiece_model.proto of SentencePiece; the protobuf wire format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamalab.checkpoints.vocabulary import TokenType
from llamalab.errors import ModelFileError

TYPES: tuple[TokenType, ...] = ("normal", "unknown", "control", "user_defined", "unused", "byte")
"""By the number that the file writes, from 1."""

_BPE = 2


@dataclass(frozen=True, slots=True)
class SentencePieceFile:
    """What the file says.

    Attributes:
        pieces: by id.
        scores: one per piece; of two neighbours, those whose union scores highest are joined first.
        types: one per piece.
        bos_id: None where there is none; so the others.
        eos_id: end of sequence.
        pad_id: padding.
        unk_id: unknown.
        space_prefix: a space is put in front of a text.
    """

    pieces: Sequence[str]
    scores: Sequence[float]
    types: Sequence[TokenType]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    space_prefix: bool


def read_sentencepiece(path: Path) -> SentencePieceFile:
    """Read a SentencePiece model of type BPE.

    Raises:
        ModelFileError: damaged, of another type than BPE, or one that changes the text before cutting it.
    """
    pieces: list[str] = []
    scores: list[float] = []
    types: list[TokenType] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for field, value in _fields(path.read_bytes()):
            if field == 1 and isinstance(value, bytes):
                piece = dict(_fields(value))
                text, score = piece[1], piece.get(2, b"\0\0\0\0")
                if not isinstance(text, bytes) or not isinstance(score, bytes):
                    raise ValueError("a piece without text")
                pieces.append(text.decode())
                scores.append(struct.unpack("<f", score)[0])
                types.append(TYPES[_number(piece, 3, 1) - 1])
            elif field == 2 and isinstance(value, bytes):
                trainer = dict(_fields(value))
            elif field == 3 and isinstance(value, bytes):
                normalizer = dict(_fields(value))
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise ModelFileError(f"{path} is no SentencePiece model, or a damaged one ({error}).") from None
    if not pieces:
        raise ModelFileError(f"{path} is no SentencePiece model: it holds no pieces.")
    if _number(trainer, 3, 1) != _BPE:
        raise ModelFileError(f"{path} is a SentencePiece model, but not of the type BPE that Llamas have.")
    if normalizer.get(2) or _number(normalizer, 4, 1):
        raise ModelFileError(
            f"{path} rewrites text before cutting it (a character map, or spaces removed); Llamas' files do not."
        )
    return SentencePieceFile(
        pieces=pieces,
        scores=scores,
        types=types,
        unk_id=_id(trainer, 40, 0),
        bos_id=_id(trainer, 41, 1),
        eos_id=_id(trainer, 42, 2),
        pad_id=_id(trainer, 43, -1),
        space_prefix=bool(_number(normalizer, 3, 1)),
    )


def write_sentencepiece(path: Path, file: SentencePieceFile) -> None:
    """Write a BPE with byte fallback that leaves text as it is, spaces included."""
    out = bytearray()
    for text, score, kind in zip(file.pieces, file.scores, file.types, strict=True):
        piece = _bytes(1, text.encode()) + _tag(2, 5) + struct.pack("<f", score)
        out += _bytes(1, piece + _varint(3, TYPES.index(kind) + 1))
    ids = ((40, file.unk_id), (41, file.bos_id), (42, file.eos_id), (43, file.pad_id))
    trainer = _varint(3, _BPE) + _varint(4, len(file.pieces)) + _varint(35, int("byte" in file.types))
    out += _bytes(2, trainer + b"".join(_varint(field, -1 if id is None else id) for field, id in ids))
    normalizer = _bytes(1, b"identity") + _varint(3, int(file.space_prefix)) + _varint(4, 0) + _varint(5, 1)
    out += _bytes(3, normalizer)
    path.write_bytes(out)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message; fixed-width values as their bytes."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _read_varint(data, at)
            yield field, value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire} at byte {at}")
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            length, at = _read_varint(data, at)
        if at + length > len(data):
            raise ValueError("the file is cut off")
        yield field, data[at : at + length]
        at += length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("the file is cut off")
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def _number(message: dict[int, int | bytes], field: int, default: int) -> int:
    value = message.get(field, default)
    if not isinstance(value, int):
        raise ValueError(f"field {field} is no number")
    return value


def _id(message: dict[int, int | bytes], field: int, default: int) -> int | None:
    value = _number(message, field, default)
    return value if 0 <= value < 2**31 else None


def _tag(field: int, wire: int) -> bytes:
    return _encoded(field << 3 | wire)


def _varint(field: int, value: int) -> bytes:
    return _tag(field, 0) + _encoded(value % 2**64)


def _bytes(field: int, data: bytes) -> bytes:
    return _tag(field, 2) + _encoded(len(data)) + data


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
