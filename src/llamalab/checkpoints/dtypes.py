"""The values of a checkpoint in the dtype they are asked for: finite, or refused by the tensor's name."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from llamalab.checkpoints.checkpoint import Checkpoint, Tensor
from llamalab.checkpoints.stored import FLOAT_TYPES, aligned, numpy_type
from llamalab.errors import ConfigError, ModelFileError

Array: TypeAlias = np.ndarray[Any, Any]
FloatType: TypeAlias = Literal["F32", "F16", "BF16"]

_STEP = 4 << 20
"""Values looked at together: a mask over a whole matrix would be memory for nothing."""

_INFINITY = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}
"""Bits of infinity; with the sign off, those of every NaN are above and those of every number below."""


def default_dtype(checkpoint: Checkpoint) -> FloatType:
    """What the matrices are stored in if that is one float type; F32 if they are quantised or of several types."""
    kinds = {tensor.dtype for tensor in checkpoint.tensors.values() if len(tensor.shape) > 1}
    only = next(iter(kinds)) if len(kinds) == 1 else "F32"
    return next((kind for kind in get_args(FloatType) if kind == only), "F32")


def in_dtype(checkpoint: Checkpoint, dtype: FloatType) -> Checkpoint:
    """The same checkpoint with its matrices in `dtype`, and its norms too where `dtype` holds them exactly.

    A norm that would be rounded stays F32: it costs nothing, and no round trip loses it.

    Raises:
        ModelFileError: a norm that is not finite. That of a matrix comes when it is read.
    """
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        kind = dtype if len(tensor.shape) > 1 or _holds(tensor, dtype, checkpoint.path) else "F32"
        read = partial(values_in, tensor, kind, checkpoint.path)
        tensors[name] = dataclasses.replace(tensor, dtype=kind, read=read)
    return dataclasses.replace(checkpoint, tensors=tensors)


def values_in(tensor: Tensor, dtype: FloatType, path: Path) -> Array:
    """The values of a tensor, all finite, rounded to `dtype`.

    Raises:
        ModelFileError: NaN or infinity in the file at `path`.
        ConfigError: a value is too large for `dtype`.
    """
    values = tensor.read()
    source = tensor.dtype if tensor.dtype in FLOAT_TYPES else "F32"
    at = _first_not_finite(values, source)
    if at is not None:
        place = ", ".join(str(i) for i in np.unravel_index(at, tensor.shape))
        raise ModelFileError(
            f"{path}: the tensor {tensor.name} holds {values.flat[at]} at [{place}]. Weights have to be finite: "
            "the file is damaged, or was written by a run that diverged."
        )
    if source == dtype:
        return values
    rounded = aligned(values.shape, numpy_type(dtype))
    with np.errstate(over="ignore"):
        rounded[...] = values
    at = _first_not_finite(rounded, dtype)
    if at is not None:
        raise ConfigError(
            f"{path}: the tensor {tensor.name} holds {values.flat[at]}, which is too large for {dtype} "
            f"(at most 65,504 in F16). Choose BF16 or F32."
        )
    return rounded


def _holds(norm: Tensor, dtype: FloatType, path: Path) -> bool:
    """Whether `dtype` has every value of a norm."""
    if norm.dtype == dtype:
        return True
    values = values_in(norm, "F32", path)
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(numpy_type(dtype)).astype(np.float32), values))


def _first_not_finite(values: Array, dtype: str) -> int | None:
    """Index into the flat array of the first NaN or infinity."""
    unsigned, infinity = _INFINITY[dtype]
    bits = values.reshape(-1).view(unsigned)
    number = unsigned((1 << 8 * np.dtype(unsigned).itemsize - 1) - 1)  # all but the sign
    for start in range(0, bits.size, _STEP):
        magnitude = bits[start : start + _STEP] & number
        if magnitude.size and magnitude.max() >= infinity:
            return start + int(np.argmax(magnitude >= infinity))
    return None
