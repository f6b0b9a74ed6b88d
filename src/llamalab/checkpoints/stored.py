"""Tensors as they lie in a file: read one at a time, nothing kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from llamalab.checkpoints.ggml_types import GGML_TYPES
from llamalab.errors import ConfigError, ModelFileError

Array: TypeAlias = np.ndarray[Any, Any]

FLOAT_TYPES = ("F32", "F16", "BF16")
"""The types that are read as they are stored."""

_ALIGNMENT = 64
_GLANCE = 64 << 10
_STEP = 8 << 20
"""Bytes in hand at once while something is compared, or values while something is dequantised."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies.

    Attributes:
        path: of the file.
        offset: of its first byte.
        dtype: by ggml's name.
        shape: [out, in] of a matrix; rows lie one after the other.
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return byte_size(self.dtype, self.shape)


def byte_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; rows are whole blocks."""
    kind = GGML_TYPES[dtype]
    return math.prod(shape) // kind.values * kind.bytes


def numpy_type(dtype: str) -> np.dtype[Any]:
    """NumPy's type for F32, F16 or BF16.

    Raises:
        ConfigError: BF16 without ml_dtypes.
    """
    if dtype != "BF16":
        return np.dtype({"F32": np.float32, "F16": np.float16}[dtype])
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise ConfigError("bfloat16 needs one more package: pip install 'llamalab[jax]'.") from None
    kind: np.dtype[Any] = np.dtype(bfloat16)
    return kind


def read_values(stored: Stored) -> Array:
    """The tensor: F32, F16 and BF16 bit for bit as they are stored, every quantised type as float32.

    Raises:
        ModelFileError: the file has become shorter, or cannot be read.
    """
    if stored.dtype in FLOAT_TYPES:
        return _read_bytes(stored, 0, stored.nbytes).view(numpy_type(stored.dtype)).reshape(stored.shape)
    import gguf  # only here: it takes longer to import than a header takes to read

    kind = gguf.GGMLQuantizationType[stored.dtype]
    columns = stored.shape[-1]
    rows = math.prod(stored.shape[:-1])
    row_bytes = byte_size(stored.dtype, (columns,))
    values = aligned((rows, columns), np.dtype(np.float32))
    # In steps: the whole at once would stand in memory three times over.
    step = max(1, _STEP // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        packed = _read_bytes(stored, start * row_bytes, (stop - start) * row_bytes)
        values[start:stop] = gguf.quants.dequantize(packed.reshape(stop - start, row_bytes), kind)
    return values.reshape(stored.shape)


def aligned(shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
    """Memory of unknown content that XLA's CPU backend can take over as it is, without a copy."""
    nbytes = math.prod(shape) * kind.itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(kind).reshape(shape)


def same_bytes(one: Stored, other: Stored) -> bool:
    """Whether two tensors are equal, bit for bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if (one.path, one.offset) == (other.path, other.offset):
        return True
    steps = ((at, min(_STEP, one.nbytes - at)) for at in range(0, one.nbytes, _STEP))
    return all(np.array_equal(_read_bytes(one, *step), _read_bytes(other, *step)) for step in steps)


def looks_same(one: Stored, other: Stored) -> bool:
    """Whether two tensors begin and end alike, 64 KiB of each: copies of each other, unless somebody made them so."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    count = min(one.nbytes, _GLANCE)
    starts = (0, one.nbytes - count)
    return all(np.array_equal(_read_bytes(one, at, count), _read_bytes(other, at, count)) for at in starts)


def _read_bytes(stored: Stored, start: int, count: int) -> Array:
    # Read, not mapped: a mapping counts as this process's memory, and a file cut short would end the process.
    content = aligned((count,), np.dtype(np.uint8))
    n_read = 0
    try:
        with stored.path.open("rb", buffering=0) as file:
            file.seek(stored.offset + start)
            while n_read < count and (piece := file.readinto(content[n_read:].data)):
                n_read += piece
    except OSError as error:
        raise ModelFileError(f"{stored.path} cannot be read: {error.strerror or error}.") from error
    if n_read != count:
        raise ModelFileError(f"{stored.path} has become shorter: a tensor of {stored.nbytes:,} bytes is not whole.")
    return content
