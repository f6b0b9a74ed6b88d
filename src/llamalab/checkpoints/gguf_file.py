"""The container of a GGUF file: metadata, and where its tensors lie.

Parsed here and not by gguf-py, whose reader makes several arrays for every token of the vocabulary (seconds and half a
gigabyte for Llama 3) and believes the lengths that a file claims.

Source: the GGUF specification of ggml, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from llamalab.checkpoints.stored import Stored
from llamalab.errors import ModelFileError, ModelNotFound

_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT, _STRING, _ARRAY = 6, 8, 9
_SMALLEST_ENTRY, _SMALLEST_TENSOR = 13, 24
"""Bytes that one metadata entry or one tensor's description takes at least."""

_MOST_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What one file holds.

    Attributes:
        path: of the file.
        fields: metadata by key, as plain Python values.
        tensors: by ggml's name.
    """

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def read_gguf_file(path: Path) -> GgufFile:
    """Parse the header of one file; every length is checked before it is believed.

    Raises:
        ModelNotFound: no such file.
        ModelFileError: not a GGUF, damaged, of another version or byte order, or cut off.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                raise ModelFileError(f"{path} is empty.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Cursor(data, path), size)
    except FileNotFoundError:
        raise ModelNotFound(f"There is no file {path}.") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error


def _parse(cursor: _Cursor, size: int) -> GgufFile:
    path = cursor.path
    magic = cursor.bytes(min(4, size))
    if magic != b"GGUF":
        raise ModelFileError(f"{path} is not a GGUF file (it starts with {magic!r}, not b'GGUF').")
    version = cursor.number("I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
        why = "is written for a machine of the other byte order" if swapped in _VERSIONS else f"is of version {version}"
        raise ModelFileError(f"{path} {why}; GGUF 2 and 3, little-endian, can be read. Convert the model again.")
    n_tensors, n_fields = cursor.count(_SMALLEST_TENSOR), cursor.count(_SMALLEST_ENTRY)
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        key = cursor.string()
        if key in fields:
            raise cursor.damaged(f"the key {key!r} stands there twice")
        fields[key] = cursor.value(cursor.number("I"), key)
    described = [_tensor_info(cursor) for _ in range(n_tensors)]
    alignment = fields.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}, not a power of two")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, Stored] = {}
    for name, dtype, shape, offset in described:
        if name in tensors:
            raise cursor.damaged(f"the tensor {name!r} stands there twice")
        tensors[name] = Stored(path, start + offset, dtype, shape)
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=0)
    if end > size:
        raise ModelFileError(
            f"{path} is cut off: its tensors end at byte {end}, the file has {size}. Download or copy it again."
        )
    return GgufFile(path, fields, tensors)


def _tensor_info(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int]:
    name = cursor.string()
    n_dimensions = cursor.number("I")
    if not 1 <= n_dimensions <= _MOST_DIMENSIONS:
        raise cursor.damaged(f"the tensor {name!r} has {n_dimensions} dimensions")
    shape = tuple(int(cursor.number("Q")) for _ in range(n_dimensions))[::-1]
    kind, offset = cursor.number("I"), int(cursor.number("Q"))
    try:
        dtype = gguf.GGMLQuantizationType(kind)
        block, _ = gguf.GGML_QUANT_SIZES[dtype]
    except (ValueError, KeyError):
        raise ModelFileError(f"{cursor.path}: the tensor {name!r} is of an unknown type (number {kind}).") from None
    if min(shape) < 1 or shape[-1] % block:
        raise cursor.damaged(f"the tensor {name!r} of type {dtype.name} has the shape {list(shape)}")
    return name, str(dtype.name), shape, offset


class _Cursor:
    """Reads value after value from mapped bytes, never past their end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.at = 0

    def damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path} is a damaged GGUF file: {what} (byte {self.at}).")

    def require(self, n_bytes: int) -> None:
        if n_bytes > len(self.data) - self.at:
            raise ModelFileError(
                f"{self.path} is cut off or damaged: its header asks for {n_bytes:,} bytes at byte {self.at:,}, the "
                f"file has {len(self.data):,}. Download or copy it again."
            )

    def bytes(self, n_bytes: int) -> bytes:
        self.require(n_bytes)
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def number(self, layout: str) -> Any:
        (value,) = struct.unpack(f"<{layout}", self.bytes(struct.calcsize(f"<{layout}")))
        return value

    def count(self, smallest: int) -> int:
        """How many things of at least `smallest` bytes follow."""
        found = int(self.number("Q"))
        self.require(found * smallest)
        return found

    def string(self) -> str:
        text = self.bytes(int(self.number("Q")))
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{text[:40]!r} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.number("I"), key)
        if kind not in _SCALARS:
            raise self.damaged(f"the value of {key!r} is of an unknown type (number {kind})")
        value = self.number(_SCALARS[kind])
        # The shortest decimal that is this float32: 1e-05, and not 9.999999747378752e-06.
        return float(str(np.float32(value))) if kind == _FLOAT else value

    def array(self, kind: int, key: str) -> list[Any]:
        if kind == _STRING:
            return [self.string() for _ in range(self.count(8))]
        if kind not in _SCALARS:
            raise self.damaged(f"the array {key!r} is of an unknown type (number {kind})")
        n_items = self.count(struct.calcsize(f"<{_SCALARS[kind]}"))
        layout = f"<{n_items}{_SCALARS[kind]}"
        return list(struct.unpack(layout, self.bytes(struct.calcsize(layout))))


