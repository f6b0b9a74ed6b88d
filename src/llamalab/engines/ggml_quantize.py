"""ggml's own quantiser for rows of values."""

from __future__ import annotations

import ctypes
from typing import Any, TypeAlias

import numpy as np

from llamalab.checkpoints.ggml_types import GGML_TYPES
from llamalab.checkpoints.stored import byte_size
from llamalab.engines.gguf_header import prototype

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]


def quantised(values_RC: Floats, type: str, *, importance: Floats | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Rows in a type, as ggml writes them; shape (R, bytes of a row).

    Args:
        values_RC: R rows of C values, C a multiple of the type's block.
        type: by ggml's name: "F16", "Q4_K", "IQ2_XXS", ...
        importance: how much each column matters, shape (C,). A type that cannot be without takes all alike.

    Raises:
        ValueError: rows that are no whole blocks, or a type that ggml does not write.
    """
    number, block, _ = GGML_TYPES[type]
    n_rows, n_columns = values_RC.shape
    rows = np.ascontiguousarray(values_RC, np.float32)
    if importance is None and _needs_importance(number):
        importance = np.ones(n_columns, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    packed = np.empty((n_rows, byte_size(type, (n_columns,))), np.uint8)
    # ggml ends the process where it meets a row that is no whole blocks: asked before.
    done = 0
    if n_columns % block == 0:
        address = None if weights is None else weights.ctypes.data
        done = _quantize(number, rows.ctypes.data, packed.ctypes.data, 0, n_rows, n_columns, address)
    if done != packed.nbytes:
        raise ValueError(f"{n_columns} columns cannot be stored as {type}")
    return packed


_needs_importance = prototype("ggml_quantize_requires_imatrix", ctypes.c_bool, ctypes.c_int)
_quantize = prototype(
    "ggml_quantize_chunk",
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_void_p,
)
