"""From a checkpoint to weights on a device, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from llamalab.checkpoints.checkpoint import EMBEDDING, LAYER_NAMES, NORM, OUTPUT, Checkpoint, Tensor
from llamalab.checkpoints.dtypes import FloatType, values_in
from llamalab.checkpoints.stored import aligned
from llamalab.errors import ConfigError
from llamalab.llama.weights import LayerWeights, XfmrWeights

Place: TypeAlias = Callable[[str, np.ndarray[Any, Any]], jax.Array]

_TYPES: dict[str, FloatType] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def load_weights(
    checkpoint: Checkpoint,
    *,
    dtype: Literal["float32", "float16", "bfloat16"] | str = "float32",
    keep_bfloat16: bool = False,
    place: Place | None = None,
) -> XfmrWeights:
    """Read all tensors.

    The largest come first, while there is room: what is read, converted and not yet placed is one tensor at a time,
    so the peak stays close to the finished weights.

    Args:
        checkpoint: of any format.
        dtype: of the weights.
        keep_bfloat16: matrices that are stored in bfloat16 stay so whatever `dtype` is; norms do not.
        place: gets a tensor's name (Meta's) and values and gives its array on a device; by default the first device.

    Raises:
        ModelFileError: NaN or infinity, with the tensor's name; or a file that cannot be read to its end.
        ConfigError: an unknown dtype, or values too large for it.
    """
    if dtype not in _TYPES:
        raise ConfigError(f"Weights cannot be loaded as '{dtype}'; there are {', '.join(_TYPES)}.")
    place = place or _on_first_device
    arrays: dict[str, jax.Array] = {}
    for tensor in sorted(checkpoint.tensors.values(), key=lambda tensor: -math.prod(tensor.shape)):
        kept = keep_bfloat16 and stays_bfloat16(tensor)
        values = _owned(values_in(tensor, "BF16" if kept else _TYPES[dtype], checkpoint.path))
        # Waited for: the next tensor is read only when nothing of this one is left on the way.
        arrays[tensor.name] = place(tensor.name, values).block_until_ready()
        del values
    layers = tuple(
        LayerWeights(**{field: arrays[f"layers.{i}.{name}.weight"] for field, name in LAYER_NAMES.items()})
        for i in range(checkpoint.config.n_layers)
    )
    return XfmrWeights(arrays[EMBEDDING], arrays[NORM], arrays.get(OUTPUT), layers)


def stays_bfloat16(tensor: Tensor) -> bool:
    """Whether `keep_bfloat16` is about this tensor."""
    return tensor.dtype == "BF16" and len(tensor.shape) > 1


def _owned(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The values in memory of their own: XLA takes it over, and a mapped file could change or vanish."""
    if values.flags.writeable and values.flags.c_contiguous:
        return values
    copy = aligned(values.shape, values.dtype)
    copy[...] = values
    return copy


def _on_first_device(_: str, values: np.ndarray[Any, Any]) -> jax.Array:
    placed: jax.Array = jax.device_put(values, jax.devices()[0])
    return placed
