"""The products in C++: right for every shape, the same bits however many threads and rows there are."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamalab.llama import native_products as native
from llamalab.llama.products import _quantized as quantize
from llamalab.llama.products import looked_up, project, project_each
from llamalab.llama.weights import Int8Matrix
from tests.llama.compilations import compilations
from tests.llama.random_weights import random_weights
from tests.llama.test_products import CONFIG, logits

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler, or no CPU")

# Inputs that fill no vector, and none, and odd numbers of outputs; more bytes than one thread takes at a time.
SHAPES = [(1, 1), (3, 5), (7, 16), (5, 63), (64, 64), (9, 65), (33, 200), (257, 1024), (2, 5000), (301, 515)]


def matrix(N: int, K: int, kind: str) -> tuple[jax.Array | Int8Matrix, np.ndarray]:
    """A matrix in few bits, and its values in float64."""
    rng = np.random.default_rng(N * 10_000 + K)
    if kind == "bfloat16":
        narrow = jnp.asarray(rng.standard_normal((N, K)), jnp.bfloat16)
        return narrow, np.asarray(narrow, np.float64)
    whole, scale = rng.integers(-127, 128, (N, K)).astype(np.int8), rng.random(N).astype(np.float32)
    return Int8Matrix((jnp.asarray(whole),), jnp.asarray(scale)), whole * scale.astype(np.float64)[:, None]


def rows_of(B: int, K: int) -> np.ndarray:
    return np.random.default_rng(B).standard_normal((B, K)).astype(np.float32)


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_a_product_is_right_for_every_shape_and_number_of_rows(N: int, K: int, kind: str) -> None:
    narrow, values_NK = matrix(N, K, kind)
    x_BK = rows_of(9, K)
    for B in range(1, 10):  # 9 rows: by way of float32
        found = np.asarray(project(jnp.asarray(x_BK[:B]), narrow))
        exact = x_BK[:B].astype(np.float64) @ values_NK.T
        size = np.abs(x_BK[:B]).astype(np.float64) @ np.abs(values_NK).T
        assert np.all(np.abs(found - exact) <= 1e-6 * size + 1e-30)


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_a_row_has_the_same_bits_alone_and_among_others(kind: str) -> None:
    for N, K in ((33, 200), (257, 1024)):
        narrow, _ = matrix(N, K, kind)
        x_BK = jnp.asarray(rows_of(8, K))
        alone = np.concatenate([np.asarray(project(x_BK[b : b + 1], narrow)) for b in range(8)])
        for B in range(2, 9):
            np.testing.assert_array_equal(np.asarray(project(x_BK[:B], narrow)), alone[:B])


def digest() -> str:
    """Of products of all kinds, whole and large enough for several threads."""
    found = hashlib.sha256()
    for kind in ("int8", "bfloat16"):
        for B in (1, 3, 40):
            narrow, _ = matrix(1500, 515, kind)
            found.update(np.asarray(project(jnp.asarray(rows_of(B, 515)), narrow)).tobytes() if B < 9 else b"")
            held = narrow.parts[0] if isinstance(narrow, Int8Matrix) else narrow
            found.update(np.asarray(native.widened_product(jnp.eye(16, 515), held)).tobytes())
    return found.hexdigest()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_the_number_of_threads_changes_no_bit() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    code += "from tests.llama.test_native_products import digest; print(digest())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest()


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_and_in_its_row(kind: str, bad: float) -> None:
    narrow, values_NK = matrix(33, 200, kind)
    x_BK = rows_of(3, 200)
    x_BK[1, 199] = bad
    found = np.asarray(project(jnp.asarray(x_BK), narrow))
    assert np.isfinite(found[[0, 2]]).all()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(np.isnan(found[1]), np.isnan(bad * values_NK[:, 199]))
    assert not np.isfinite(found[1]).any()


@pytest.mark.parametrize(("N", "K"), [(5, 63), (300, 16), (700, 3100)])
def test_many_rows_have_the_bits_of_the_matrix_in_float32(N: int, K: int) -> None:
    """Whole, or in pieces of which the last overlaps: K = 3100 makes three."""
    narrow, _ = matrix(N, K, "bfloat16")
    assert isinstance(narrow, jax.Array)
    for B in (9, 33):
        x_BK = jnp.asarray(rows_of(B, K))
        np.testing.assert_array_equal(project(x_BK, narrow), project(x_BK, narrow.astype(jnp.float32)))


def test_rows_of_an_embedding_are_taken_exactly() -> None:
    narrow, values_NK = matrix(33, 200, "bfloat16")
    assert isinstance(narrow, jax.Array)
    ids = np.array([[0, 32, 7], [7, 7, 1]])
    found = looked_up(narrow, jnp.asarray(ids), jnp.float32)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values_NK[ids].astype(np.float32))


def test_they_run_inside_a_loop_on_the_device_and_leave_no_wide_copy() -> None:
    """XLA takes what does not change out of a loop: the matrix in float32 must not be such a thing."""
    narrow, _ = matrix(512, 512, "bfloat16")
    for B, limit in ((1, 1e5), (16, 512 * 512 * 4 * 1.5)):

        @jax.jit
        def steps(x_BK: jax.Array, narrow: list[jax.Array]) -> jax.Array:
            def step(_: int, x_BK: jax.Array) -> jax.Array:
                for matrix_NK in narrow:
                    x_BK = jnp.tanh(project(x_BK, matrix_NK))
                return x_BK

            return jax.lax.fori_loop(0, 3, step, x_BK)

        given = jnp.asarray(rows_of(B, 512)), [narrow + jnp.bfloat16(i) for i in range(4)]
        compiled = steps.lower(*given).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < limit
        expected = given[0]
        for _ in range(3):
            for matrix_NK in given[1]:
                expected = np.tanh(np.asarray(expected) @ np.asarray(matrix_NK, np.float32).T)
        np.testing.assert_allclose(compiled(*given), expected, atol=1e-4)


def test_matrices_that_share_rows_and_other_dtypes_go_the_same_way() -> None:
    one, _ = matrix(33, 200, "int8")
    other, _ = matrix(7, 200, "int8")
    x_BTK = jnp.asarray(rows_of(4, 200)).reshape(2, 2, 200)
    both = project_each(x_BTK, (one, other))
    for found, each in zip(both, (one, other), strict=True):
        np.testing.assert_array_equal(found, project(x_BTK, each))
    half = project(x_BTK.astype(jnp.bfloat16), one)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), project(x_BTK, one), rtol=0.02, atol=3)


def test_nothing_is_compiled_twice() -> None:
    narrow, _ = matrix(33, 200, "bfloat16")
    product = jax.jit(lambda x_BK, narrow: project(x_BK, narrow))
    x_BK = jnp.asarray(rows_of(2, 200))
    product(x_BK, narrow)
    with compilations() as seen:
        product(x_BK + 0, narrow)
    assert len(seen) <= 1  # the sum, if it is new


def test_a_model_in_bfloat16_gives_the_logits_of_the_same_values_in_float32() -> None:
    """A prompt bit for bit, a single token to the last bits."""
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16) if x.ndim > 1 else x, random_weights(CONFIG, seed=2))
    wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), narrow)
    np.testing.assert_array_equal(logits(narrow, 20), logits(wide, 20))
    np.testing.assert_allclose(logits(narrow, 1), logits(wide, 1), atol=1e-5)


@pytest.mark.parametrize("B", [4, 16])
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_gradients_are_those_of_the_matrix_in_float32(kind: str, B: int) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x_BK, w_NK = jax.random.normal(keys[0], (B, 48)), jax.random.normal(keys[1], (40, 48)).astype(jnp.bfloat16)
    aim_BN = jax.random.normal(keys[2], (B, 40))
    held = quantize(w_NK) if kind == "int8" else w_NK
    wide_NK = held.scale[:, None] * held.parts[0].astype(jnp.float32) if kind == "int8" else w_NK.astype(jnp.float32)
    found = jax.grad(lambda x: jnp.sum((project(x, held) - aim_BN) ** 2))(x_BK)
    expected = jax.grad(lambda x: jnp.sum((x @ wide_NK.T - aim_BN) ** 2))(x_BK)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    if kind == "bfloat16":
        of_w_NK = jax.grad(lambda w: jnp.sum((project(x_BK, w) - aim_BN) ** 2))(w_NK)
        wide = jax.grad(lambda w: jnp.sum((x_BK @ w.T - aim_BN) ** 2))(wide_NK)
        assert of_w_NK.dtype == jnp.bfloat16
        np.testing.assert_allclose(of_w_NK.astype(jnp.float32), wide, rtol=1e-2, atol=0.5)


def test_rows_that_were_looked_up_have_gradients_and_can_be_batched() -> None:
    matrix_ND = jax.random.normal(jax.random.key(0), (30, 8)).astype(jnp.bfloat16)
    rows = jnp.array([[3, 7, 3], [1, 29, 0]])
    found = jax.grad(lambda m: jnp.sum(looked_up(m, rows, jnp.float32) ** 2))(matrix_ND)
    expected = jax.grad(lambda m: jnp.sum(m[rows] ** 2))(matrix_ND.astype(jnp.float32))
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=1e-2)
    batched = jax.vmap(lambda r: looked_up(matrix_ND, r, jnp.float32))(rows)
    np.testing.assert_array_equal(batched, matrix_ND[rows].astype(jnp.float32))
    products = jax.vmap(lambda x: project(x, matrix_ND))(jnp.ones((3, 2, 8)))
    assert products.shape == (3, 2, 30)
