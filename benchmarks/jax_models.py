"""Llamas of published shapes with random weights, made on the device: for benchmarks of the JAX model."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llamalab.llama.config import LlamaConfig, RopeScaling
from llamalab.llama.weights import LayerWeights, XfmrWeights


def _shape(dim: int, layers: int, heads: int, ffn: int, factor: float) -> LlamaConfig:
    return LlamaConfig(
        dim=dim,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=8,
        head_dim=dim // heads,
        ffn_dim=ffn,
        vocab_size=128_256,
        max_seq_len=8192,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(factor),
    )


SHAPES = {
    "1b": _shape(2048, 16, 32, 8192, 32.0),
    "3b": _shape(3072, 28, 24, 8192, 32.0),
    "8b": _shape(4096, 32, 32, 14336, 8.0),
    "tiny": LlamaConfig(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=128, vocab_size=256, max_seq_len=4096
    ),
}
TIED = {"1b", "3b", "tiny"}


def random_weights(config: LlamaConfig, dtype: Any, *, tied: bool) -> XfmrWeights:
    """Normal matrices scaled by their width, norms one; each drawn in `dtype`, so nothing larger is ever held."""
    D, F = config.dim, config.ffn_dim
    N, M = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    keys = iter(jax.random.split(jax.random.key(0, impl="rbg"), 2 + 7 * config.n_layers))

    def layer() -> LayerWeights:
        shapes = ((N, D), (M, D), (M, D), (D, N), (F, D), (D, F), (F, D))
        return LayerWeights(
            *(_matrix(next(keys), shape, dtype) for shape in shapes), jnp.ones(D, dtype), jnp.ones(D, dtype)
        )

    embedding = _matrix(next(keys), (config.vocab_size, D), dtype)
    output = None if tied else _matrix(next(keys), (config.vocab_size, D), dtype)
    return XfmrWeights(embedding, jnp.ones(D, dtype), output, tuple(layer() for _ in range(config.n_layers)))


def bytes_per_token(weights: XfmrWeights) -> int:
    """Of all weights that one token needs: every matrix once; of an embedding that is not the output one row."""
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    return total if weights.output is None else total - weights.tok_embeddings.nbytes


@partial(jax.jit, static_argnums=(1, 2))
def _matrix(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    drawn: jax.Array = jax.random.normal(key, shape, dtype) * shape[1] ** -0.5
    return drawn.astype(dtype)


def huggingface_shape(config: LlamaConfig, *, tied: bool) -> dict[str, Any]:
    """The same shape in the words of transformers' `LlamaConfig`."""
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": tied,
    }
