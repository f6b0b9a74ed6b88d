"""The container of a safetensors file: a JSON header, then the bytes of the tensors.

Source: the format's description in huggingface/safetensors: 8 bytes length of the header, little-endian; the header,
{name: {dtype, shape, data_offsets}}; the data, without holes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llamalab.checkpoints.checkpoint import Tensor
from llamalab.checkpoints.stored import FLOAT_TYPES, Stored, byte_size
from llamalab.errors import ModelFileError

_LONGEST_HEADER = 100_000_000
_PREFIX = 8
_MOST_DIMENSIONS = 8
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of a value; types that are not here are taken at their word."""


class Entry(NamedTuple):
    """One tensor of a file: its type by the format's name, its shape, its first byte and how many there are."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_entries(path: Path) -> dict[str, Entry]:
    """The tensors of one file, of whatever type; what the header says is checked against the file's size.

    Raises:
        ModelFileError: no such file, not safetensors, cut off, or damaged.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(_PREFIX), "little")
            if size < _PREFIX or length > min(size - _PREFIX, _LONGEST_HEADER):
                raise ModelFileError(
                    f"{path} is no safetensors file, or is cut off: its header should be {length:,} bytes long, the "
                    f"file is {size:,}."
                )
            header = file.read(length)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is no safetensors file, or is damaged: its header is not JSON.") from error
    if not isinstance(entries, dict):
        raise ModelFileError(f"{path} is a damaged safetensors file: its header is no JSON object.")
    entries.pop("__metadata__", None)
    start = _PREFIX + length
    tensors = {name: _entry(path, start, name, entry) for name, entry in entries.items()}
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=start)
    if end != size:
        what = "is cut off" if end > size else "is damaged"
        raise ModelFileError(
            f"{path} {what}: its tensors end at byte {end:,}, the file has {size:,}. Download or copy it again."
        )
    return tensors


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Where the tensors of one file of floats lie.

    Raises:
        ModelFileError: as `read_entries`; or a tensor that is empty, or of a type that is not F32, F16 or BF16.
    """
    tensors = {}
    for name, entry in read_entries(path).items():
        if entry.dtype not in FLOAT_TYPES:
            raise ModelFileError(
                f"{path}: the tensor {name} is of the type {entry.dtype}; {', '.join(FLOAT_TYPES)} can be read. "
                "A quantised model has to be dequantised by the tool that made it."
            )
        if 0 in entry.shape:
            raise _malformed(path, name)
        tensors[name] = Stored(path, entry.offset, entry.dtype, entry.shape)
    return tensors


def _entry(path: Path, start: int, name: str, entry: Any) -> Entry:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if all(
            type(n) is int and n >= 0 for n in shape
        ):
            pass
        case _:
            raise _malformed(path, name)
    fits = 0 <= begin <= end and len(shape) <= _MOST_DIMENSIONS
    if not fits or (dtype in _ITEM_BYTES and end - begin != math.prod(shape) * _ITEM_BYTES[dtype]):
        raise ModelFileError(
            f"{path} is a damaged safetensors file: the tensor {name} of the type {dtype} and the shape {shape} cannot "
            f"lie between the bytes {begin} and {end} of the data."
        )
    return Entry(dtype, tuple(shape), start + begin, end - begin)


def _malformed(path: Path, name: str) -> ModelFileError:
    return ModelFileError(f"{path} is a damaged safetensors file: what it says of {name!r} is malformed.")


def write_safetensors(path: Path, tensors: Sequence[Tensor]) -> None:
    """Write one file, one tensor in memory at a time.

    Args:
        path: of the file.
        tensors: under the names that they get; their `dtype` is what `read` gives.

    Raises:
        OSError: the disk is full or the folder not writable.
    """
    # Wide types first: then every tensor begins at a multiple of its item's size.
    ordered = sorted(tensors, key=lambda tensor: -byte_size(tensor.dtype, (1,)))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in ordered:
        nbytes = byte_size(tensor.dtype, tensor.shape)
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _PREFIX)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_PREFIX, "little") + text)
        for tensor in ordered:
            file.write(np.ascontiguousarray(tensor.read()).view(np.uint8).data)
