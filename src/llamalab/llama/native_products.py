"""Products with a matrix in 8 or 16 bits on a CPU, by `native/rows.cc` where that can be compiled.

Dimension key: B rows, K inputs, N outputs, n some of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax import Array

from llamalab.native.build import load_library

_TARGETS = ("int8_rows", "bfloat16_rows", "widen_int8", "widen_bfloat16", "take_bfloat16", "room")

_PIECE = 8 << 20
"""Bytes of a matrix in float32 that are widened at once: a fraction of a large one, not too many steps."""

_TILE = 64
"""XLA sums the outputs behind the last whole tile in another order: pieces are cut between tiles."""


def available() -> bool:
    """Whether this process has them: it computes on one CPU device, and the C++ could be compiled.

    XLA cuts a product for several devices itself, and cannot look into these.
    """
    return jax.default_backend() == "cpu" and jax.device_count() == 1 and _registered()


@jax.custom_vjp
def int8_rows(x_BK: Array, weight_NK: Array, scale_N: Array) -> Array:
    """A few rows times the transpose of an int8 matrix, output n times `scale_N[n]`: (B, N). All in float32."""
    return _call("int8_rows", (x_BK.shape[0], weight_NK.shape[0]), x_BK, weight_NK, scale_N)


@jax.custom_vjp
def bfloat16_rows(x_BK: Array, weight_NK: Array) -> Array:
    """A few rows times the transpose of a bfloat16 matrix: (B, N). All in float32."""
    return _call("bfloat16_rows", (x_BK.shape[0], weight_NK.shape[0]), x_BK, weight_NK)


@jax.custom_vjp
def widened_product(x_BK: Array, weight_NK: Array) -> Array:
    """Many rows times the transpose of an int8 or bfloat16 matrix, as of one in float32: (B, N).

    Piece by piece, so that no wide copy of the matrix is ever whole. [Matrices of Llama 3.2 1B, 304 rows, two cores of
    an Intel Xeon: 0-15% slower than the matrix in float32, pieces of 1 MiB 23-33%; widened as a whole 20-49%, most of
    it for fresh memory.]
    """
    N, K = weight_NK.shape
    step = _TILE * max(4, _PIECE // (4 * K * _TILE))
    n = min(N, step + N % _TILE)  # what stands behind a piece's last whole tile is computed again by the next
    kind = "widen_int8" if weight_NK.dtype == jnp.int8 else "widen_bfloat16"

    def piece(number: Array | int, y_BN: Array) -> Array:
        first = jnp.minimum(jnp.int32(number) * step, N - n)
        # x is not looked at: without it all matrices would be widened beforehand, and outside of a loop over tokens.
        wide_nK = _call(kind, (n, K), weight_NK, first, x_BK)
        y_Bn = jnp.einsum("bk,nk->bn", x_BK, wide_nK, preferred_element_type=jnp.float32)
        return y_Bn if n == N else jax.lax.dynamic_update_slice(y_BN, y_Bn, (0, first))

    y_BN = _call("room", (x_BK.shape[0], N), x_BK)  # zeros for all products would be made beforehand
    count = 1 - (n - N) // step
    return jax.lax.fori_loop(0, count, piece, y_BN) if count > 1 else piece(0, y_BN)


@jax.custom_vjp
def widened_rows(matrix_ND: Array, rows: Array) -> Array:
    """These rows of a bfloat16 matrix, (..., D) float32; a number below 0 or too large is that of the nearest row."""
    return _call("take_bfloat16", (*rows.shape, matrix_ND.shape[1]), matrix_ND, rows.astype(jnp.int32))


def _call(name: str, shape: tuple[int, ...], *arguments: Array) -> Array:
    result = jax.ShapeDtypeStruct(shape, jnp.float32)  # type: ignore[no-untyped-call]
    product: Array = jax.ffi.ffi_call(f"llamalab_{name}", result, vmap_method="sequential")(*arguments)
    return product


def _kept(function: Callable[..., Array]) -> Callable[..., tuple[Array, tuple[Array, ...]]]:
    """The forward pass of a gradient: everything that went in is kept."""
    return lambda *arguments: (function.__wrapped__(*arguments), arguments)  # type: ignore[attr-defined]


def _of_product(kept: tuple[Array, Array], g_BN: Array) -> tuple[Array, Array | np.ndarray]:
    """What a change of y means for x and for the matrix; whole numbers have no gradient."""
    x_BK, weight_NK = kept
    of_x_BK = (g_BN @ weight_NK.astype(jnp.float32)).astype(x_BK.dtype)
    if weight_NK.dtype == jnp.int8:
        return of_x_BK, np.zeros(weight_NK.shape, jax.dtypes.float0)
    return of_x_BK, jnp.einsum("bn,bk->nk", g_BN, x_BK).astype(weight_NK.dtype)


def _of_int8_rows(kept: tuple[Array, Array, Array], g_BN: Array) -> tuple[Array, Array | np.ndarray, Array]:
    x_BK, weight_NK, scale_N = kept
    of_x_BK, of_weight_NK = _of_product((x_BK, weight_NK), g_BN * scale_N)
    return of_x_BK, of_weight_NK, jnp.sum(g_BN * (x_BK @ weight_NK.astype(jnp.float32).T), axis=0)


def _of_rows(kept: tuple[Array, Array], g: Array) -> tuple[Array, np.ndarray]:
    matrix_ND, rows = kept
    of_matrix_ND = jnp.zeros(matrix_ND.shape, jnp.float32).at[rows].add(g).astype(matrix_ND.dtype)
    return of_matrix_ND, np.zeros(rows.shape, jax.dtypes.float0)


int8_rows.defvjp(_kept(int8_rows), _of_int8_rows)
bfloat16_rows.defvjp(_kept(bfloat16_rows), _of_product)
widened_product.defvjp(_kept(widened_product), _of_product)
widened_rows.defvjp(_kept(widened_rows), _of_rows)


@cache
def _registered() -> bool:
    library = load_library("rows", flags=(f"-I{jax.ffi.include_dir()}",), version=jaxlib.version.__version__)
    if library is None:
        return False
    for name in _TARGETS:
        target = f"llamalab_{name}"
        handler = jax.ffi.pycapsule(getattr(library, target))  # type: ignore[no-untyped-call]
        jax.ffi.register_ffi_target(target, handler, platform="cpu")
    return True
