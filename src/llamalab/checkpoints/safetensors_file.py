"""The container of a safetensors file: a JSON header, then the bytes of the tensors.

Source: the format's description in huggingface/safetensors: 8 bytes length of the header, little-endian; the header,
{name: {dtype, shape, data_offsets}}; the data, without holes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamalab.checkpoints.checkpoint import Tensor
from llamalab.checkpoints.stored import FLOAT_TYPES, Stored, byte_size
from llamalab.errors import ModelFileError

_LONGEST_HEADER = 100_000_000
_PREFIX = 8
_MOST_DIMENSIONS = 8


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Where the tensors of one file lie; whatever the header says is checked against the file's size.

    Raises:
        ModelFileError: no such file, not safetensors, cut off, damaged, or a tensor of a type that is not F32, F16 or
            BF16.
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
    tensors = {name: _stored(path, start, name, entry) for name, entry in entries.items()}
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=start)
    if end != size:
        what = "is cut off" if end > size else "is damaged"
        raise ModelFileError(
            f"{path} {what}: its tensors end at byte {end:,}, the file has {size:,}. Download or copy it again."
        )
    return tensors


def _stored(path: Path, start: int, name: str, entry: Any) -> Stored:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if all(
            type(n) is int and n > 0 for n in shape
        ):
            pass
        case _:
            raise ModelFileError(f"{path} is a damaged safetensors file: what it says of {name!r} is malformed.")
    if dtype not in FLOAT_TYPES:
        raise ModelFileError(
            f"{path}: the tensor {name} is of the type {dtype}; {', '.join(FLOAT_TYPES)} can be read. "
            "A quantised model has to be dequantised by the tool that made it."
        )
    nbytes = byte_size(dtype, tuple(shape)) if len(shape) <= _MOST_DIMENSIONS else -1
    if begin < 0 or end - begin != nbytes:
        raise ModelFileError(
            f"{path} is a damaged safetensors file: the tensor {name} of the type {dtype} and the shape {shape} cannot "
            f"lie between the bytes {begin} and {end} of the data."
        )
    return Stored(path, start + begin, dtype, tuple(shape))


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
