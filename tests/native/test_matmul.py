"""Products of many rows: with quantised matrices against the gguf package, which takes them apart by other code."""

from __future__ import annotations

import ctypes
from typing import Any, TypeAlias

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalab.native.build import load_library

Array: TypeAlias = np.ndarray[Any, Any]

HALVES = {  # where a block has its float16 numbers; every other byte may be anything
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
LIBRARY = load_library("matmul", flags=("-fopenmp",))
if LIBRARY is None or not hasattr(LIBRARY, "llamalab_matmul"):
    pytest.skip("no AVX-512 VNNI, or no C++ compiler", allow_module_level=True)
LIBRARY.llamalab_matmul.restype = ctypes.c_bool


def matmul(kind: str, packed: Array, x_MK: Array, *, threads: int = 1) -> Array:
    y_MN = np.full((len(x_MK), len(packed)), np.nan, np.float32)
    done = LIBRARY.llamalab_matmul(
        int(GGMLQuantizationType[kind]),
        *(ctypes.c_void_p(array.ctypes.data) for array in (packed, x_MK, y_MN)),
        *(ctypes.c_int64(size) for size in (len(packed), x_MK.shape[1], len(x_MK))),
        threads,
    )
    assert done
    return y_MN


def random_matrix(kind: str, N: int, K: int, seed: int = 0) -> tuple[Array, Array]:
    """Packed as in a file, and the same in float32."""
    rng = np.random.default_rng(seed)
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    packed = rng.integers(0, 256, (N, K // weights, size), dtype=np.uint8)
    for at in HALVES[kind]:
        scales = rng.uniform(0.005, 0.02, (N, K // weights, 1)).astype(np.float16)
        packed[:, :, at : at + 2] = scales.view(np.uint8)
    packed = np.ascontiguousarray(packed.reshape(N, -1))
    return packed, dequantize(packed, GGMLQuantizationType[kind]).reshape(N, K)


@pytest.mark.parametrize(("N", "K", "M"), [(1, 256, 1), (33, 512, 7), (64, 768, 17)])
@pytest.mark.parametrize("kind", HALVES)
def test_whole_numbers_are_multiplied_exactly(kind: str, N: int, K: int, M: int) -> None:
    """Rows whose every 32 values are whole numbers up to 127 lose nothing when they are rounded to 127 steps."""
    packed, w_NK = random_matrix(kind, N, K)
    x_MK = np.random.default_rng(1).integers(-127, 128, (M, K)).astype(np.float32)
    x_MK[:, ::32] = 127
    expected = x_MK.astype(np.float64) @ w_NK.T.astype(np.float64)
    found = matmul(kind, packed, x_MK, threads=2)
    scale = np.abs(x_MK.astype(np.float64)) @ np.abs(w_NK.T.astype(np.float64))
    assert (np.abs(found - expected) <= 1e-6 * scale).all()


@pytest.mark.parametrize("kind", HALVES)
def test_other_rows_are_rounded_by_less_than_half_a_step(kind: str) -> None:
    packed, w_NK = random_matrix(kind, 40, 512)
    x_MK = np.random.default_rng(2).standard_normal((5, 512)).astype(np.float32)
    steps = np.abs(x_MK.reshape(5, -1, 32)).max(-1) / 127
    most = 0.51 * np.einsum("mb,nb->mn", steps, np.abs(w_NK).reshape(40, -1, 32).sum(-1))
    assert (np.abs(matmul(kind, packed, x_MK) - x_MK @ w_NK.T) <= most).all()


@settings(max_examples=25)
@given(kind=st.sampled_from(sorted(HALVES)), M=st.integers(1, 20), N=st.integers(1, 70), data=st.data())
def test_a_row_has_the_same_bits_beside_any_others(kind: str, M: int, N: int, data: st.DataObject) -> None:
    packed, _ = random_matrix(kind, N, 256)
    x_MK = np.random.default_rng(M).standard_normal((M, 256)).astype(np.float32)
    together = matmul(kind, packed, x_MK, threads=2)
    row = data.draw(st.integers(0, M - 1))
    assert (matmul(kind, packed, x_MK[row : row + 1].copy())[0] == together[row]).all()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none(kind: str, bad: float) -> None:
    """And it stays in its row; very small numbers and zeros are numbers."""
    packed, _ = random_matrix(kind, 20, 256)
    x_MK = np.zeros((4, 256), np.float32)
    x_MK[1, 40] = bad
    x_MK[2] = 1e-42
    found = matmul(kind, packed, x_MK)
    assert np.isnan(found[1]).all()
    assert (np.abs(found[[0, 2, 3]]) < 1e-30).all()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("N", "K", "M"), [(1, 1, 1), (33, 77, 5), (70, 600, 13)])
def test_floats_are_multiplied_as_float32_can(kind: str, N: int, K: int, M: int) -> None:
    rng = np.random.default_rng(3)
    w_NK = rng.standard_normal((N, K)).astype(np.float16 if kind == "F16" else np.float32)
    packed = w_NK
    if kind == "BF16":
        packed = (w_NK.view(np.uint32) >> 16).astype(np.uint16)
        w_NK = (packed.astype(np.uint32) << 16).view(np.float32)
    x_MK = rng.standard_normal((M, K)).astype(np.float32)
    exact, scale = (a(x_MK.astype(np.float64)) @ a(w_NK.T.astype(np.float64)) for a in (np.asarray, np.abs))
    found = matmul(kind, packed, x_MK, threads=2)
    assert (np.abs(found - exact) <= 1e-6 * scale).all()
    assert (matmul(kind, packed, x_MK[-1:].copy()) == found[-1:]).all()


def test_what_it_does_not_take_it_leaves() -> None:
    assert not LIBRARY.llamalab_matmul(21, None, None, None, *(ctypes.c_int64(256),) * 3, 1)  # IQ3_S
    assert not LIBRARY.llamalab_matmul(12, None, None, None, *(ctypes.c_int64(n) for n in (8, 128, 8)), 1)
