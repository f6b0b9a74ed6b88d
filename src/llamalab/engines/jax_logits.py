"""Whole rows of logits from the JAX Llama, and what passes between its blocks.

Dimension key: T tokens, R rows asked for, V vocabulary, D dim, L layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llamalab.engines.request import Ids
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.generate import bucket, fill
from llamalab.llama.model import unembed, xfmr
from llamalab.llama.weights import XfmrWeights

Logits = np.ndarray[Any, Any]


class LogitsReader:
    """Logits of one sequence at a time, on a cache of its own for each call."""

    def __init__(self, weights: XfmrWeights, config: LlamaConfig, dtype: Any, n_batch: int) -> None:
        self._weights, self._config, self._dtype = weights, config, dtype
        self._n_batch = n_batch
        self._last: tuple[bytes, Array] | None = None  # a text, and what leaves the last block for it

    def rows(self, ids: Ids, begin: int, end: int) -> Logits:
        """The rows begin ... end - 1 of one forward pass over `ids`: (end - begin, V).

        Asked for in blocks, as logits of a long text have to be, they cost one pass all the same.
        """
        text = ids.tobytes()
        if self._last is None or self._last[0] != text:
            self._last = None  # frees its memory before the next is made
            tokens_1T = self._padded(ids, 0, bucket(len(ids)))
            self._last = text, _blocks(self._weights, self._config, tokens_1T, self._dtype)[-1]
        wanted = np.minimum(np.arange(begin, begin + bucket(end - begin), dtype=np.int32), len(ids) - 1)
        logits_RV = _unembedded(self._weights, self._config, self._last[1], wanted)
        return np.array(np.asarray(logits_RV)[: end - begin])

    def stepped(self, ids: Ids, first: int) -> Logits:
        """The rows first ... T-1, each token after `first` in a step of its own: (T - first, V)."""
        cache = self._filled(ids, first, len(ids))
        found = np.empty((len(ids) - first, self._config.vocab_size), np.float32)
        for at in range(first, len(ids)):
            logits_1TV, cache = _next(self._weights, self._config, ids[None, at : at + 1], np.int32(at), cache)
            found[at - first] = np.asarray(logits_1TV)[0, 0]
        return found

    def hidden(self, ids: Ids) -> list[Logits]:
        """The residual stream after each block, (T, D) each."""
        tokens_1T = self._padded(ids, 0, bucket(len(ids)))
        blocks = _blocks(self._weights, self._config, tokens_1T, self._dtype)
        return [np.asarray(x_1TD[0, : len(ids)], np.float32) for x_1TD in blocks]

    def _filled(self, ids: Ids, end: int, room: int) -> KVCache:
        """A cache that holds the first `end` ids, with room for `room` and for padding behind any of them."""
        cache = KVCache.new(self._config, 1, bucket(room + min(self._n_batch, bucket(max(1, end)))), self._dtype)
        for at in range(0, end, self._n_batch):
            size = bucket(min(self._n_batch, end - at))
            cache = fill(self._weights, self._config, self._padded(ids, at, size), np.int32(at), cache)
        return cache

    def _padded(self, ids: Ids, at: int, size: int) -> Ids:
        tokens_1T = np.zeros((1, size), np.int32)
        part = ids[at : at + size]
        tokens_1T[0, : len(part)] = part
        return tokens_1T  # type: ignore[return-value]


@partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def _next(
    weights: XfmrWeights, config: LlamaConfig, tokens_1T: Array, cur_pos: Array, cache: KVCache
) -> tuple[Array, KVCache]:
    return xfmr(weights, config, tokens_1T, cur_pos, cache)


@partial(jax.jit, static_argnames=("config", "dtype"))
def _blocks(weights: XfmrWeights, config: LlamaConfig, tokens_1T: Array, dtype: Any) -> list[Array]:
    found: list[Array] = []
    cache = KVCache.new(config, 1, tokens_1T.shape[1], dtype)
    xfmr(weights, config, tokens_1T, 0, cache, rows_B=jnp.zeros(1, jnp.int32), on_block=found.append)
    return found


@partial(jax.jit, static_argnames=("config",))
def _unembedded(weights: XfmrWeights, config: LlamaConfig, x_1TD: Array, rows_R: Ids) -> Array:
    return unembed(x_1TD[0, rows_R], weights, config)
