"""Keys and values of the tokens already seen.

Dimension key: B batch, S cache slots, T new tokens, G kv heads, K head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llamalab.llama.config import LlamaConfig


class KVCache(NamedTuple):
    """One array of keys and one of values per layer, each (B, S, G, K).

    Slot s holds the token at position s. A value like any other: `update` returns a new one, and gradients
    flow through it.
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]

    @classmethod
    def new(cls, config: LlamaConfig, batch: int, length: int, dtype: jnp.dtype = jnp.float32) -> KVCache:
        """An empty cache of `length` slots for `batch` sequences."""
        empty = jnp.zeros((batch, length, config.n_kv_heads, config.head_dim), dtype)
        return cls((empty,) * config.n_layers, (empty,) * config.n_layers)

    @property
    def length(self) -> int:
        """Number of slots."""
        return self.k[0].shape[1]

    def update(self, xk_BTGK: Array, xv_BTGK: Array, layer: int, cur_pos: Array | int) -> KVCache:
        """Write T tokens at positions cur_pos ... cur_pos + T - 1 of one layer.

        The caller keeps cur_pos + T within `length`: XLA would otherwise move the write back silently.
        """
        start = (0, cur_pos, 0, 0)
        k = jax.lax.dynamic_update_slice(self.k[layer], xk_BTGK.astype(self.k[layer].dtype), start)
        v = jax.lax.dynamic_update_slice(self.v[layer], xv_BTGK.astype(self.v[layer].dtype), start)
        return KVCache(
            (*self.k[:layer], k, *self.k[layer + 1 :]),
            (*self.v[:layer], v, *self.v[layer + 1 :]),
        )

    def shared_by(self, batch: int) -> KVCache:
        """The same keys and values for each of `batch` sequences: a prefix computed once."""
        def share(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
            return tuple(jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in arrays)

        return KVCache(share(self.k), share(self.v))
