"""Matrix products in eight and sixteen bits: how far values move, and that every form gives the right product."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamalab.engine import GenerateRequest, Generation, SamplingParams
from llamalab.engines.jax import JaxEngine
from llamalab.llama import native_products
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.model import xfmr
from llamalab.llama.products import FEW_ROWS, project, quantize_int8
from llamalab.llama.weights import Int8Matrix, Matrix, XfmrWeights, count_parameters
from tests.llama.random_weights import random_weights

CONFIG = LlamaConfig(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=128, vocab_size=100, max_seq_len=64
)


@pytest.fixture(scope="module", autouse=True)
def _quick(quick_compilation: None) -> None:
    """Compiled without optimisations."""


@pytest.fixture(scope="module", autouse=True, params=["native", "xla"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """With the products in C++, and without."""
    if request.param == "native" and not native_products.available():
        pytest.skip("no C++ compiler, or no CPU")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "xla":
            patch.setattr(native_products, "available", lambda: False)
        jax.clear_caches()
        yield request.param
    jax.clear_caches()


@pytest.fixture(scope="module")
def weights() -> XfmrWeights:
    return random_weights(CONFIG, seed=2)


@pytest.fixture(scope="module")
def narrow(weights: XfmrWeights, form: str) -> XfmrWeights:
    return quantize_int8(weights)


def widened(matrix: Matrix) -> Matrix:
    """What an eight-bit matrix stands for, by NumPy."""
    if not isinstance(matrix, Int8Matrix):
        return matrix
    whole = np.concatenate([np.asarray(part) for part in matrix.parts], axis=1)
    return whole.astype(np.float32) * np.asarray(matrix.scale)[:, None]


def all_widened(narrow: XfmrWeights) -> XfmrWeights:
    return jax.tree.map(widened, narrow, is_leaf=lambda x: isinstance(x, Int8Matrix))


def logits(weights: XfmrWeights, n_tokens: int) -> np.ndarray:
    ids = jnp.array(np.random.default_rng(n_tokens).integers(0, CONFIG.vocab_size, (1, n_tokens)))
    dtype = weights.norm.dtype
    forward = jax.jit(lambda weights: xfmr(weights, CONFIG, ids, 0, KVCache.new(CONFIG, 1, n_tokens, dtype))[0])
    return np.asarray(forward(weights)[0])


def test_no_value_moves_by_more_than_half_a_step(weights: XfmrWeights, narrow: XfmrWeights) -> None:
    """A step is a row's largest magnitude / 127."""
    pairs = [(weights.output, narrow.output)]
    for old, new in zip(weights.layer_weights, narrow.layer_weights, strict=True):
        pairs += [(getattr(old, name), getattr(new, name)) for name in ("wq", "wk", "wv", "w1", "w2", "w3")]
    for matrix, rounded in pairs:
        assert isinstance(rounded, Int8Matrix)
        assert rounded.shape == matrix.shape
        steps = np.abs(np.asarray(matrix)).max(axis=1, keepdims=True) / 127
        assert np.all(np.abs(widened(rounded) - matrix) <= steps * 0.5001)
        np.testing.assert_allclose(np.abs(widened(rounded)).max(axis=1), 127 * steps[:, 0], rtol=1e-6)


def test_whole_numbers_are_kept_exactly_and_a_row_of_zeros_stays_one() -> None:
    matrix = np.array([[127.0, -3.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    weights = random_weights(CONFIG)._replace(output=matrix)
    output = quantize_int8(weights).output
    assert isinstance(output, Int8Matrix)
    np.testing.assert_array_equal(widened(output), matrix)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how a CPU wants it")
def test_where_xla_multiplies_no_part_has_more_columns_than_rows(narrow: XfmrWeights, form: str) -> None:
    parted = {"w1": [(128, 64)], "w2": [(64, 64)] * 2, "wk": [(32, 32)] * 2}
    whole = {"w1": [(128, 64)], "w2": [(64, 128)], "wk": [(32, 64)]}
    for layer in narrow.layer_weights:
        for name, shapes in (parted if form == "xla" else whole).items():
            matrix = getattr(layer, name)
            assert isinstance(matrix, Int8Matrix)
            assert [part.shape for part in matrix.parts] == shapes


def test_norms_embedding_and_the_number_of_parameters_stay(weights: XfmrWeights, narrow: XfmrWeights) -> None:
    np.testing.assert_array_equal(narrow.tok_embeddings, weights.tok_embeddings)
    np.testing.assert_array_equal(narrow.norm, weights.norm)
    assert count_parameters(narrow) == count_parameters(weights)


@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1])
def test_a_product_is_that_of_the_matrix_it_stands_for(narrow: XfmrWeights, rows: int) -> None:
    """Row by row, or widened once for many; also where the matrix lies in two parts."""
    w2 = narrow.layer_weights[0].w2
    x = np.random.default_rng(rows).standard_normal((rows, 128)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(project)(x, w2), x @ np.asarray(widened(w2)).T, atol=1e-4)


@pytest.mark.parametrize("n_tokens", [1, 20])
def test_logits_are_those_of_the_rounded_weights(narrow: XfmrWeights, n_tokens: int) -> None:
    np.testing.assert_allclose(logits(narrow, n_tokens), logits(all_widened(narrow), n_tokens), atol=1e-4)


def test_logits_in_eight_bits_are_near_those_in_float32(weights: XfmrWeights, narrow: XfmrWeights) -> None:
    """Rounding moves a matrix by about half a percent of its size: a few percent after two layers."""
    exact, rounded = logits(weights, 20), logits(narrow, 20)
    assert 1e-4 < np.sqrt(np.mean((rounded - exact) ** 2)) / exact.std() < 0.05


@pytest.mark.parametrize("n_tokens", [1, 20])
def test_logits_in_bfloat16_are_near_those_in_float32(weights: XfmrWeights, n_tokens: int) -> None:
    """Eight bits of mantissa: each rounding is one of 2**-9, and there are a few dozen in a row."""
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), weights)
    exact, rounded = logits(weights, n_tokens), logits(half, n_tokens)
    assert rounded.dtype == np.float32
    assert 1e-4 < np.sqrt(np.mean((rounded - exact) ** 2)) / exact.std() < 0.05


@pytest.mark.parametrize("options", [{"int8": True}, {"dtype": "bfloat16"}])
def test_the_engine_runs_in_fewer_bits(options: dict[str, object], tiny_gguf: Path, xla_folder: None) -> None:
    """Smaller, near the float32 engine's logits, and its greedy text is the one its own logits say."""
    with JaxEngine(tiny_gguf, n_seq=1, n_ctx=32) as wide, JaxEngine(tiny_gguf, n_seq=1, n_ctx=32, **options) as engine:
        prompt = engine.tokenize("hello world, the code")
        exact, found = wide.logits(prompt), engine.logits(prompt)
        assert 1e-5 < np.sqrt(np.mean((found - exact) ** 2)) / exact.std() < 0.05
        assert engine.info.size_bytes < wide.info.size_bytes
        asked = GenerateRequest(prompt, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
        (done,) = (event for event in engine.generate([asked]) if isinstance(event, Generation))
        rows = engine.logits([*prompt, *done.ids])[len(prompt) - 1 : -1]
        chosen = rows[np.arange(4), list(done.ids)]
        assert np.all(rows.max(axis=1) - chosen < 0.03)  # bfloat16 rounds otherwise in another form of the product


@pytest.fixture
def xla_folder(tmp_path: Path) -> Iterator[None]:
    """Nothing is kept in the user's folder."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield
    jax.config.update("jax_compilation_cache_dir", None)
