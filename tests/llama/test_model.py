from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamalab.checkpoints.gguf import write_gguf
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig, RopeScaling
from llamalab.llama.model import rms_norm, xfmr
from llamalab.llama.rope import inverse_frequencies, rotate
from llamalab.llama.weights import XfmrWeights, count_parameters, init_weights
from llamalab.scored import ScoreRequest
from tests.checkpoints.test_gguf import byte_vocabulary
from tests.llama.random_weights import random_weights

CONFIG = LlamaConfig(
    dim=64, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, vocab_size=262, max_seq_len=256
)


@pytest.fixture(scope="module")
def weights() -> XfmrWeights:
    return random_weights(CONFIG, seed=1)


def tokens(n: int, seed: int = 0, batch: int = 1) -> jax.Array:
    return jnp.array(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (batch, n)))


def full(weights: XfmrWeights, ids: jax.Array) -> jax.Array:
    return _forward(weights, ids, 0, KVCache.new(CONFIG, *ids.shape))[0]


_forward = jax.jit(lambda weights, ids, position, cache: xfmr(weights, CONFIG, ids, position, cache))


def test_cached_decode_equals_full_forward(weights: XfmrWeights) -> None:
    """Token by token through the cache gives the logits of one full pass."""
    ids = tokens(40)
    cache = KVCache.new(CONFIG, 1, 64)
    stepped = []
    for position in range(ids.shape[1]):
        logits, cache = _forward(weights, ids[:, position : position + 1], position, cache)
        stepped.append(logits)
    np.testing.assert_allclose(jnp.concatenate(stepped, axis=1), full(weights, ids), atol=2e-5)


def test_shared_prefix_equals_repeated_prefix(weights: XfmrWeights) -> None:
    """A prefix computed once for a batch gives each row the logits, and a loss the gradient, of its own prefix."""
    prefix, rows = tokens(9), tokens(12, seed=1, batch=3)

    def shared(weights: XfmrWeights) -> jax.Array:
        _, cache = _forward(weights, prefix, 0, KVCache.new(CONFIG, 1, 21))
        return _forward(weights, rows, 9, cache.shared_by(3))[0]

    def repeated(weights: XfmrWeights) -> jax.Array:
        return full(weights, jnp.concatenate([jnp.repeat(prefix, 3, axis=0), rows], axis=1))[:, 9:]

    np.testing.assert_allclose(shared(weights), repeated(weights), atol=2e-5)
    gradients = [jax.jit(jax.grad(lambda w, f=f: jnp.sum(jnp.sin(f(w)))))(weights) for f in (shared, repeated)]
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(other).max()))


def test_later_tokens_do_not_change_earlier_logits(weights: XfmrWeights) -> None:
    """Attention is causal."""
    ids = tokens(20)
    changed = ids.at[0, 12].add(1) % CONFIG.vocab_size
    before, after = full(weights, ids), full(weights, changed)
    np.testing.assert_array_equal(before[:, :12], after[:, :12])
    assert float(jnp.abs(before[:, 12:] - after[:, 12:]).max()) > 0.1


@pytest.mark.parametrize(
    ("tied", "factor", "length"), [(True, None, 200), (False, None, 200), (True, 32.0, 2048), (False, 8.0, 2048)]
)
def test_log_probabilities_equal_llama_cpp(tmp_path: Path, tied: bool, factor: float | None, length: int) -> None:
    """A runtime nobody here wrote gives the same numbers from the file we wrote, Llama 3's scaled RoPE included."""
    scaling = None if factor is None else RopeScaling(factor)
    config = replace(CONFIG, max_seq_len=length, rope_scaling=scaling, rope_theta=500_000.0 if factor else 10_000.0)
    weights = random_weights(config, seed=3, tied=tied, embedding_scale=0.3 if tied else 1.0)
    path = tmp_path / "random.gguf"
    write_gguf(path, weights, config, byte_vocabulary(config.vocab_size), name="random")
    ids = np.asarray(tokens(length, seed=4))[0].tolist()
    forward = jax.jit(lambda weights, ids: xfmr(weights, config, ids, 0, KVCache.new(config, *ids.shape))[0])
    logprobs = np.asarray(jax.nn.log_softmax(forward(weights, jnp.array([ids])), axis=-1)[0])
    ours = [float(logprobs[t, ids[t + 1]]) for t in range(len(ids) - 1)]
    with LlamaCppEngine(path, type_k="f32", type_v="f32", flash_attn=False, n_ctx=length) as engine:
        (scored,) = engine.score([ScoreRequest(ids[:1], ids[1:])])
    np.testing.assert_allclose(ours, scored.logprobs, atol=1e-4)
    assert np.std(ours) > 0.3


def test_rotation_depends_on_distance_alone() -> None:
    """The product of a turned query and a turned key is a function of the distance between them."""
    frequencies = inverse_frequencies(16, 10_000.0)
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 16)) for i in (0, 1))

    def product(i: int, j: int) -> float:
        turned = [rotate(x, jnp.array([[float(p)]]) * frequencies) for x, p in ((q, i), (k, j))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(5, 2) == pytest.approx(product(103, 100), abs=1e-4)
    assert product(5, 2) != pytest.approx(product(5, 3), abs=1e-2)


def test_inverse_frequencies_have_their_closed_form() -> None:
    np.testing.assert_allclose(inverse_frequencies(8, 10_000.0), [1.0, 0.1, 0.01, 0.001], rtol=1e-6)


def test_rms_norm_has_its_closed_form() -> None:
    x = jnp.array([[3.0, 4.0]])
    np.testing.assert_allclose(rms_norm(x, jnp.array([1.0, 2.0]), 0.5), [[3 / 13**0.5, 8 / 13**0.5]], rtol=1e-6)


def test_initial_parameters_are_counted_once() -> None:
    draw = jax.jit(init_weights, static_argnums=0, static_argnames="tied")
    tied, untied = (draw(CONFIG, jax.random.key(0), tied=tied) for tied in (True, False))
    per_layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 + 2 * 64
    assert count_parameters(tied) == 262 * 64 + 3 * per_layer + 64
    assert count_parameters(untied) == count_parameters(tied) + 262 * 64
