"""The weights of a Llama as a plain pytree, every matrix as [out, in].

Query and key rows stand in Meta's interleaved order: rows 2i and 2i+1 of a head turn together.

Dimension key: V vocabulary, D dim, N n_heads * head_dim, M n_kv_heads * head_dim, F ffn_dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from llamalab.llama.config import LlamaConfig


class Int8Matrix(NamedTuple):
    """A [out, in] matrix in eight bits: row o is `scale[o]` times whole numbers from -127 to 127.

    Attributes:
        parts: int8; side by side along the in axis they are the whole matrix. One part, unless products want less.
        scale: (out,) float32.
    """

    parts: tuple[Array, ...]
    scale: Array

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        return self.parts[0].shape[0], sum(part.shape[1] for part in self.parts)


Matrix: TypeAlias = Array | Int8Matrix


class LayerWeights(NamedTuple):
    """One block: attention (wq ND, wk MD, wv MD, wo DN), SwiGLU (w1 FD gate, w2 DF down, w3 FD up), two norms (D)."""

    wq: Matrix
    wk: Matrix
    wv: Matrix
    wo: Matrix
    w1: Matrix
    w2: Matrix
    w3: Matrix
    attention_norm: Array
    ffn_norm: Array


class XfmrWeights(NamedTuple):
    """A whole model. `output` is None where the output projection is the embedding itself."""

    tok_embeddings: Array
    norm: Array
    output: Matrix | None
    layer_weights: tuple[LayerWeights, ...]


def init_weights(config: LlamaConfig, key: Array, *, tied: bool = True) -> XfmrWeights:
    """Random float32 weights to train from.

    Args:
        config: the shape.
        key: of the random generator.
        tied: use the embedding as output projection.

    Returns:
        Matrices normal with standard deviation 1/sqrt(in), those that write to the residual stream further
        divided by sqrt(2 n_layers), embedding 0.02, norms 1.

    Source: the scaling of residual projections is Radford et al. 2019, section 2.3.
    """
    D, F = config.dim, config.ffn_dim
    N, M = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    residual = (2 * config.n_layers) ** -0.5
    keys = iter(jax.random.split(key, 2 + 7 * config.n_layers))

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Array:
        drawn: Array = jax.random.normal(next(keys), (rows, columns), jnp.float32)
        scaled: Array = drawn * (scale * columns**-0.5)
        return scaled

    def layer() -> LayerWeights:
        return LayerWeights(
            wq=matrix(N, D),
            wk=matrix(M, D),
            wv=matrix(M, D),
            wo=matrix(D, N, residual),
            w1=matrix(F, D),
            w2=matrix(D, F, residual),
            w3=matrix(F, D),
            attention_norm=jnp.ones(D),
            ffn_norm=jnp.ones(D),
        )

    return XfmrWeights(
        tok_embeddings=jax.random.normal(next(keys), (config.vocab_size, D), jnp.float32) * 0.02,
        norm=jnp.ones(D),
        output=None if tied else matrix(config.vocab_size, D),
        layer_weights=tuple(layer() for _ in range(config.n_layers)),
    )


def count_parameters(weights: XfmrWeights) -> int:
    """Exact number of parameters, a tied matrix counted once."""
    leaves = jax.tree.leaves(weights, is_leaf=lambda x: isinstance(x, Int8Matrix))
    return sum(math.prod(leaf.shape) for leaf in leaves)
