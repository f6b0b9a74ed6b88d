"""Log probabilities of given tokens from the JAX Llama: one pass, logits at the response's rows only.

`strict`: a text lies in blocks of `BLOCK` tokens counted from its first one, and every block is one program of the same
shapes over a cache of one length; so a token is always computed in the same place of the same program, and its bits
depend on the ids before it alone. Blocks that a request shares with the one before it are not computed again.

`fast`: many texts at once, each whole, and the reduction on the device: no logits leave it.

Dimension key: B texts, T tokens, R rows of logits, V vocabulary, D dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llamalab.engines.reduction import Reduced, joined, reduce, scored
from llamalab.engines.request import Asked, Ids, common_prefix, in_order
from llamalab.errors import EngineError
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.generate import bucket
from llamalab.llama.model import unembed, xfmr
from llamalab.llama.weights import XfmrWeights
from llamalab.scored import Decoding, Scored, ScoreMode

BLOCK = 128
"""Tokens of a block."""

_WINDOW_VALUES = 2**24  # logits of one window: 64 MiB
_FAST_TOKENS = {"cpu": 2048}  # of one pass
_FAST_TOKENS_ELSEWHERE = 16_384


class JaxScorer:
    """Scores on a cache of its own.

    Args:
        weights: of the model.
        config: its shape.
        dtype: of the cache.
        n_ctx: longest text, tokens.
    """

    def __init__(self, weights: XfmrWeights, config: LlamaConfig, dtype: Any, n_ctx: int) -> None:
        self._weights, self._config, self._dtype = weights, config, dtype
        self._slots = -(-n_ctx // BLOCK) * BLOCK
        fitting = max(16, _WINDOW_VALUES // config.vocab_size)
        self._window = min(BLOCK, 1 << (fitting.bit_length() - 1))  # divides a block
        self._cache: KVCache | None = None
        self._held: Ids = np.empty(0, np.int32)

    def score(self, asked: Sequence[Asked], mode: ScoreMode) -> list[Scored]:
        """One result for each."""
        order = in_order(asked)
        results = self._fast(asked, order) if mode == "fast" else (self._strict(asked[number]) for number in order)
        found = dict(zip(order, results, strict=True))
        return [found[number] for number in range(len(asked))]

    def _strict(self, asked: Asked) -> Scored:
        ids, first = asked.ids, asked.first
        end = asked.end
        parts: list[Reduced] = []
        begin = min(common_prefix(self._held, ids), first) // BLOCK * BLOCK
        cache, self._cache, self._held = self._cache, None, self._held[:0]
        if cache is None:
            cache, begin = KVCache.new(self._config, 1, self._slots, self._dtype), 0
        for at in range(begin, end if end > first else 0, BLOCK):
            tokens_1T = np.zeros((1, BLOCK), np.int32)
            part = ids[at : min(at + BLOCK, end)]
            tokens_1T[0, : len(part)] = part
            x_1TD, cache = _pass(self._weights, self._config, tokens_1T, np.int32(at), cache)
            for window in range(at, at + BLOCK, self._window):
                low, high = max(first, window), min(end, window + self._window)
                if low < high:
                    rows_RV = np.asarray(_rows(self._weights, self._config, x_1TD, np.int32(window - at), self._window))
                    rows_RV = rows_RV[low - window : high - window]
                    parts.append(reduce(rows_RV, ids[low + 1 : high + 1], asked.decodings))
        self._cache, self._held = cache, ids[:end]
        reduced = joined(parts, asked.decodings)
        return scored(reduced, unscored=len(asked.response) - len(reduced.raw))

    def _fast(self, asked: Sequence[Asked], order: Sequence[int]) -> Iterator[Scored]:
        """Texts of similar lengths share a pass; results come in `order`."""
        found: dict[int, Scored] = {}
        most = _FAST_TOKENS.get(jax.default_backend(), _FAST_TOKENS_ELSEWHERE)
        waiting = sorted(order, key=lambda number: len(asked[number].ids))
        while waiting:
            length = bucket(max(1, len(asked[waiting[-1]].ids)))
            count = max(1, most // length)
            group, waiting = waiting[-count:], waiting[:-count]
            found |= zip(group, self._together([asked[number] for number in group], length, count), strict=True)
        return (found[number] for number in order)

    def _together(self, group: Sequence[Asked], length: int, count: int) -> Iterator[Scored]:
        """One pass over some texts, padded to `length` tokens and to `count` of them."""
        tokens_BT = np.zeros((count, length), np.int32)
        for row, each in zip(tokens_BT, group, strict=False):
            row[: len(each.ids)] = each.ids
        x_BTD = _whole(self._weights, self._config, tokens_BT, self._dtype)
        decodings = tuple(dict.fromkeys(decoding for each in group for decoding in each.decodings))
        rows = [(text, at, each.ids[at + 1]) for text, each in enumerate(group) for at in range(each.first, each.end)]
        places_R3 = np.array(rows, np.int32).reshape(-1, 3)
        parts = [
            self._window_of(x_BTD, places_R3[begin : begin + self._window], decodings)
            for begin in range(0, len(places_R3), self._window)
        ]
        whole, begin = joined(parts, decodings), 0
        for each in group:
            part = slice(begin, begin + max(0, each.end - each.first))
            begin = part.stop
            decoded = tuple(whole.decoded[decodings.index(decoding)][part] for decoding in each.decodings)
            reduced = Reduced(whole.raw[part], whole.ranks[part], whole.entropies[part], decoded)
            yield scored(reduced, unscored=len(each.response) - len(reduced.raw))

    def _window_of(self, x_BTD: Array, places_R3: Ids, decodings: Sequence[Decoding]) -> Reduced:
        """Rows named by (text, position, token): on the device where no sampler cuts the vocabulary, else here."""
        count = len(places_R3)
        texts_R, at_R, tokens_R = np.pad(places_R3, ((0, self._window - count), (0, 0))).T
        if any(decoding.truncates for decoding in decodings):
            logits_RV = np.asarray(_gathered(self._weights, self._config, x_BTD, texts_R, at_R))[:count]
            return reduce(logits_RV, tokens_R[:count], decodings)
        temperatures_N = np.array([decoding.temperature for decoding in decodings], np.float32)
        found = _reduced(self._weights, self._config, x_BTD, texts_R, at_R, tokens_R, temperatures_N)
        raw_R, ranks_R, entropies_R, decoded_NR = (np.asarray(part)[..., :count] for part in found)
        if not np.isfinite(raw_R).all():
            raise EngineError("A log probability is not finite: the model's logits are not.")
        decoded = tuple(row_R.astype(np.float64) for row_R in decoded_NR)
        return Reduced(raw_R.astype(np.float64), ranks_R.astype(np.int64), entropies_R.astype(np.float64), decoded)


@partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def _pass(
    weights: XfmrWeights, config: LlamaConfig, tokens_1T: Array, cur_pos: Array, cache: KVCache
) -> tuple[Array, KVCache]:
    """A block after what the cache holds: what leaves the last layer, and the cache with it."""
    found: list[Array] = []
    rows_B = jnp.zeros(1, jnp.int32)
    _, cache = xfmr(weights, config, tokens_1T, cur_pos, cache, rows_B=rows_B, on_block=found.append)
    return found[-1], cache


@partial(jax.jit, static_argnames=("config", "count"))
def _rows(weights: XfmrWeights, config: LlamaConfig, x_1TD: Array, begin: Array, count: int) -> Array:
    return unembed(jax.lax.dynamic_slice_in_dim(x_1TD[0], begin, count), weights, config)


@partial(jax.jit, static_argnames=("config", "dtype"))
def _whole(weights: XfmrWeights, config: LlamaConfig, tokens_BT: Array, dtype: Any) -> Array:
    found: list[Array] = []
    B, T = tokens_BT.shape
    rows_B = jnp.zeros(B, jnp.int32)
    xfmr(weights, config, tokens_BT, 0, KVCache.new(config, B, T, dtype), rows_B=rows_B, on_block=found.append)
    return found[-1]


@partial(jax.jit, static_argnames=("config",))
def _gathered(weights: XfmrWeights, config: LlamaConfig, x_BTD: Array, texts_R: Array, at_R: Array) -> Array:
    return unembed(x_BTD[texts_R, at_R], weights, config)


@partial(jax.jit, static_argnames=("config",))
def _reduced(
    weights: XfmrWeights,
    config: LlamaConfig,
    x_BTD: Array,
    texts_R: Array,
    at_R: Array,
    tokens_R: Array,
    temperatures_N: Array,
) -> tuple[Array, Array, Array, Array]:
    """As `reduction.reduce`, in float32 on the device."""
    logits_RV = unembed(x_BTD[texts_R, at_R], weights, config)
    log_p_RV = jax.nn.log_softmax(logits_RV)
    chosen_R1 = jnp.take_along_axis(logits_RV, tokens_R[:, None], axis=1)
    raw_R = jnp.take_along_axis(log_p_RV, tokens_R[:, None], axis=1)[:, 0]
    ranks_R = 1 + jnp.sum(logits_RV > chosen_R1, axis=1)
    p_RV = jnp.exp(log_p_RV)
    entropies_R = -jnp.sum(jnp.where(p_RV > 0, p_RV * log_p_RV, 0), axis=1)

    def at_temperature(temperature: Array) -> Array:
        scaled_RV = logits_RV / temperature
        return chosen_R1[:, 0] / temperature - jax.nn.logsumexp(scaled_RV, axis=1)

    return raw_R, ranks_R, entropies_R, jax.lax.map(at_temperature, temperatures_N)
