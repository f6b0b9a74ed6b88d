"""Keys and values of the tokens already seen.

Dimension key: B batch, S cache slots, T new tokens, G kv heads, K head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from llamalab.errors import ContextOverflow
from llamalab.llama.config import LlamaConfig


class KVCache(NamedTuple):
    """One array of keys and one of values per layer, each (B, G, S, K): a head's slots lie side by side.

    Slot s holds the token at position s. A value like any other: `update` returns a new one, and gradients
    flow through it. Donate it (`jax.jit(..., donate_argnames="cache")`) and it is written in place.
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]

    @classmethod
    def new(cls, config: LlamaConfig, batch: int, length: int, dtype: DTypeLike = jnp.float32) -> KVCache:
        """An empty cache of `length` slots for `batch` sequences."""
        shape = (batch, config.n_kv_heads, length, config.head_dim)
        # An array of its own for every layer: one that stands in two places cannot be donated.
        k, v = (tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layers)) for _ in "kv")
        return cls(k, v)

    @property
    def length(self) -> int:
        """Number of slots."""
        return self.k[0].shape[2]

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.k[0].shape[0]

    def update(self, xk_BTGK: Array, xv_BTGK: Array, layer: int, cur_pos: Array | int) -> KVCache:
        """Write T tokens of one layer at positions cur_pos ... cur_pos + T - 1; `cur_pos` is one for all, or (B,).

        With one position for all, the caller keeps cur_pos + T within `length` (`check_room`): XLA would otherwise
        move the write back silently. With one each, what lies past the end is dropped.
        """
        k = _written(self.k[layer], xk_BTGK, cur_pos)
        v = _written(self.v[layer], xv_BTGK, cur_pos)
        return KVCache(
            (*self.k[:layer], k, *self.k[layer + 1 :]),
            (*self.v[:layer], v, *self.v[layer + 1 :]),
        )

    def shared_by(self, batch: int) -> KVCache:
        """The same keys and values for each of `batch` sequences: a prefix computed once."""

        def share(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
            return tuple(jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in arrays)

        return KVCache(share(self.k), share(self.v))


def check_room(cache: KVCache, cur_pos: ArrayLike, n_tokens: int) -> None:
    """Refuse tokens that the cache cannot hold. For positions known on the host, before a step is dispatched.

    Raises:
        ContextOverflow: cur_pos + n_tokens is more than the cache's slots, for any sequence.
    """
    needed = int(np.max(np.asarray(cur_pos))) + n_tokens
    if needed > cache.length:
        raise ContextOverflow(
            f"{needed:,} tokens do not fit into a cache of {cache.length:,}: shorten the text or enlarge the context.",
            needed=needed,
            available=cache.length,
        )


def _written(slots_BGSK: Array, new_BTGK: Array, cur_pos: Array | int) -> Array:
    new_BGTK = new_BTGK.astype(slots_BGSK.dtype).transpose(0, 2, 1, 3)
    if isinstance(cur_pos, int) or cur_pos.ndim == 0:
        return jax.lax.dynamic_update_slice(slots_BGSK, new_BGTK, (0, 0, cur_pos, 0))

    def one(slots_GSK: Array, new_GTK: Array, start: Array) -> Array:
        return slots_GSK.at[:, start + jnp.arange(new_GTK.shape[1])].set(new_GTK, mode="drop", unique_indices=True)

    return jax.vmap(one)(slots_BGSK, new_BGTK, cur_pos)
