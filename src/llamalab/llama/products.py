"""Every matrix product of the model, in the form that is fast on the device at hand.

XLA's CPU backend is twenty times slower at a product written the wrong way: it then makes a transposed or widened
copy of the whole matrix for every token. The figures beside the forms are of one token through layers of
Llama 3.2 1B's shape on two cores (AMD EPYC, jaxlib 0.10.2), as bytes of weights read per second; the memory gave
25 GB/s. GPUs and TPUs take the plain product in every case.

Matrices in 8 or 16 bits have products of their own on a CPU (`native_products.py`), which read them at the memory's
speed; the forms of XLA's that stand here are for machines without a C++ compiler, and for several devices.

Dimension key: B rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import optimization_barrier
from jax.typing import DTypeLike

from llamalab.llama import native_products as native
from llamalab.llama.weights import Int8Matrix, LayerWeights, Matrix, XfmrWeights

COMPILER_OPTIONS = {"xla_cpu_prefer_vector_width": 512}
"""Of every step of generation: the int8 product gains a third from the widest vectors of a CPU that has them."""

FEW_ROWS = 8
"""On a CPU so many rows are multiplied with a narrow matrix as it is; for more it is widened once for all."""


def project(x: Array, weight: Matrix, dtype: DTypeLike | None = None) -> Array:
    """x times the transpose of a [out, in] matrix, summed in float32.

    Args:
        x: (..., K), float.
        weight: [N, K]; of x's dtype, int8, or on a CPU bfloat16 where x is float32: then as if it were float32.
        dtype: of the result; by default that of x.
    """
    (y,) = project_each(x, (weight,), dtype)
    return y


def project_each(x: Array, weights: Sequence[Matrix], dtype: DTypeLike | None = None) -> tuple[Array, ...]:
    """`project` by several matrices, [N, K] each with an N of its own: what they share is done once."""
    x_BK = x.reshape(-1, x.shape[-1])
    if isinstance(weights[0], Int8Matrix) and on_cpu() and not native.available() and x_BK.shape[0] <= FEW_ROWS:
        x_BK = _settled(x_BK.astype(jnp.float32))
    products = (_int8_product(x_BK, w) if isinstance(w, Int8Matrix) else _product(x_BK, w) for w in weights)
    return tuple(y_BN.astype(dtype or x.dtype).reshape(*x.shape[:-1], -1) for y_BN in products)


def looked_up(matrix_ND: Array, rows: Array, dtype: DTypeLike) -> Array:
    """These rows of a matrix, (..., D), in `dtype`, which has all its values."""
    if matrix_ND.dtype == jnp.bfloat16 and dtype == jnp.float32 and native.available():
        return native.widened_rows(matrix_ND, rows)  # XLA's CPU backend widens all of it before it takes rows
    return matrix_ND[rows].astype(dtype)


def on_cpu() -> bool:
    """Whether computations run on the CPU."""
    return jax.default_backend() == "cpu"


def exact(dtype: DTypeLike) -> jax.lax.Precision | None:
    """The precision that a product needs to be one in `dtype`: GPUs and TPUs round float32 factors to fewer bits."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 and not on_cpu() else None


def fused_attention(q_BTHK: Array, cur_pos: Array | int) -> bool:
    """Whether attention over a fresh prompt goes to cuDNN, which never writes the scores to memory.

    It takes half precision only, and query lengths that fill its tiles.
    """
    T, K = q_BTHK.shape[1], q_BTHK.shape[3]
    return (
        jax.default_backend() == "gpu"
        and isinstance(cur_pos, int)
        and cur_pos == 0
        and q_BTHK.dtype in (jnp.bfloat16, jnp.float16)
        and T % 64 == 0
        and K % 8 == 0
        and K <= 128
    )


def quantize_int8(weights: XfmrWeights) -> XfmrWeights:
    """Weights whose matrices take a quarter of float32's memory: eight bits per value, one scale per output row.

    No value moves by more than half a step: half of its row's largest magnitude / 127. The embedding stays as it is;
    a tied output projection becomes an eight-bit copy of it. Norms stay.
    """

    def layer(old: LayerWeights) -> LayerWeights:
        attention = old._replace(
            wq=_quantized(old.wq), wk=_quantized(old.wk), wv=_quantized(old.wv), wo=_quantized(old.wo)
        )
        return attention._replace(w1=_quantized(old.w1), w2=_quantized(old.w2), w3=_quantized(old.w3))

    output = weights.tok_embeddings if weights.output is None else weights.output
    return weights._replace(output=_quantized(output), layer_weights=tuple(layer(old) for old in weights.layer_weights))


def _quantized(matrix: Matrix) -> Int8Matrix:
    if isinstance(matrix, Int8Matrix):
        return matrix
    N, K = matrix.shape
    # XLA multiplies a single row without a copy only where a part has no more columns than rows.
    n_parts = -(-K // N) if on_cpu() and not native.available() and K % -(-K // N) == 0 else 1
    rounded: Int8Matrix = _rounded(jnp.asarray(matrix), n_parts)
    return rounded


@partial(jax.jit, static_argnums=1)
def _rounded(matrix_NK: Array, n_parts: int) -> Int8Matrix:
    wide_NK = matrix_NK.astype(jnp.float32)
    scale_N = jnp.max(jnp.abs(wide_NK), axis=1) / 127
    steps_NK = jnp.round(wide_NK / jnp.where(scale_N == 0, 1, scale_N)[:, None]).astype(jnp.int8)
    return Int8Matrix(tuple(jnp.split(steps_NK, n_parts, axis=1)), scale_N)


def _product(x_BK: Array, weight_NK: Array) -> Array:
    if weight_NK.dtype == jnp.bfloat16 and native.available():
        if x_BK.shape[0] <= FEW_ROWS:
            return native.bfloat16_rows(x_BK.astype(jnp.float32), weight_NK)  # 20-25 GB/s
        if x_BK.dtype == jnp.float32:
            return native.widened_product(x_BK, weight_NK)
    if on_cpu() and weight_NK.dtype != jnp.float32 and x_BK.shape[0] == 1 and weight_NK.shape[0] >= x_BK.shape[1]:
        return _widened_inside(x_BK, weight_NK)  # bfloat16: 22-30 GB/s; every other form 0.6-1.5
    # float32 on a CPU: 17-26 GB/s for every shape of a Llama; `x @ weight.T` 1.0 where N < K.
    return jnp.einsum("bk,nk->bn", x_BK, weight_NK, precision=exact(x_BK.dtype), preferred_element_type=jnp.float32)


def _int8_product(x_BK: Array, weight: Int8Matrix) -> Array:
    """The scale of a row comes after its sum, so whole numbers are what is read and multiplied."""
    few = x_BK.shape[0] <= FEW_ROWS
    if native.available() and len(weight.parts) == 1:
        if few:
            return native.int8_rows(x_BK.astype(jnp.float32), weight.parts[0], weight.scale)  # 20-25 GB/s
        if x_BK.dtype == jnp.float32:
            return native.widened_product(x_BK, weight.parts[0]) * weight.scale
    if on_cpu() and few:
        rows = [_int8_row(x_1K, weight) for x_1K in jnp.split(x_BK, x_BK.shape[0])]
        return jnp.concatenate(rows) * weight.scale
    whole_NK = weight.parts[0] if len(weight.parts) == 1 else jnp.concatenate(weight.parts, axis=1)
    y_BN = jnp.einsum(
        "bk,nk->bn",
        x_BK,
        whole_NK.astype(x_BK.dtype),
        precision=exact(x_BK.dtype),
        preferred_element_type=jnp.float32,
    )
    return y_BN * weight.scale


def _int8_row(x_1K: Array, weight: Int8Matrix) -> Array:
    pieces = jnp.split(x_1K, len(weight.parts), axis=1)
    return sum((_widened_inside(x, part) for x, part in zip(pieces, weight.parts, strict=True)), jnp.float32(0))


def _widened_inside(x_1K: Array, weight_NK: Array) -> Array:
    """One row times a narrow matrix that is widened value by value inside the product.

    XLA fuses the two only for one row, N >= K and this way of writing it: int8 12-17 GB/s, and 20-24 with vectors of
    512 bits; every other form 0.4-0.8 (two cores of an Intel Xeon with AVX-512; float32 22-24). The barriers keep
    neighbours out of the fusion, and the widening inside a loop over tokens.
    """
    x_1K, weight_NK = optimization_barrier((x_1K.astype(jnp.float32), weight_NK))  # type: ignore[no-untyped-call]
    y_1N: Array = optimization_barrier(x_1K @ weight_NK.astype(jnp.float32).T)  # type: ignore[no-untyped-call]
    return y_1N


def _settled(x_BK: Array) -> Array:
    """The same values, in memory before a product begins.

    What makes the rows (a norm, silu, heads laid side by side) would else be fused into the product and computed again
    for every weight; XLA drops barriers before it fuses. A branch it cannot decide is never fused. [A step of four
    layers of Llama 3.2 1B's shape, two cores of an Intel Xeon with AVX-512, jaxlib 0.10.2: 54.9 ms in float32; int8
    38.9, with this and `wo` 29.5; with vectors of 512 bits 58.1, 35.4 and 29.0.]
    """
    settled: Array = jax.lax.cond(x_BK[0, 0] == x_BK[0, 0], lambda x: x, jnp.negative, x_BK)
    return settled
