"""Rows of logits to what is kept of them: the log probability of a token, its rank, the entropy; under any sampler.

Exponentials are taken in float32 and summed in float64, row by row: a second copy of the rows is never made.

Dimension key: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamalab.errors import EngineError
from llamalab.scored import DecodedScore, Decoding, Scored

Array = np.ndarray[Any, Any]

_BINS, _BINS_PER_NAT = 4096, np.float32(128)  # of the logits of a row, downwards from the largest


@dataclass(frozen=True, slots=True)
class Reduced:
    """What is kept of R rows.

    Attributes:
        raw: log softmax of each row at its token, nats, float64, (R,).
        ranks: how many tokens are more probable, plus 1, (R,).
        entropies: of the softmax of each row, nats, float64, (R,).
        decoded: for each decoding, log probabilities under it, (R,); -inf where it cannot give the token.
    """

    raw: Array
    ranks: Array
    entropies: Array
    decoded: tuple[Array, ...]


def reduce(logits_RV: Array, tokens_R: Array, decodings: Sequence[Decoding] = ()) -> Reduced:
    """Reduce rows of logits, each to what it says of one token.

    Args:
        logits_RV: float32.
        tokens_R: ids.
        decodings: samplers whose distributions are asked for besides the model's own.

    Raises:
        EngineError: a row that is not finite where it must be.
    """
    count = len(logits_RV)
    raw, entropies = np.empty(count), np.empty(count)
    ranks = np.empty(count, np.int64)
    decoded = tuple(np.empty(count) for _ in decodings)
    # Arrays of the size of a row, used again for every row: making new ones would take as long as computing.
    below_V, mass_V = np.empty((2, *logits_RV.shape[1:]), np.float32)
    for i, (row_V, token) in enumerate(zip(logits_RV, tokens_R.tolist(), strict=True)):
        best = row_V.max()
        if not np.isfinite(best) or not np.isfinite(row_V[token]):
            raise EngineError(f"The log probability of token {token} is not finite: the model's logits are not.")
        np.subtract(row_V, best, out=below_V)
        np.exp(below_V, out=mass_V)
        total = float(mass_V.sum(dtype=np.float64))
        if not math.isfinite(total):
            raise EngineError(f"The log probability of token {token} is not finite: the model's logits are not.")
        raw[i] = float(below_V[token]) - math.log(total)
        ranks[i] = 1 + np.count_nonzero(row_V > row_V[token])
        with np.errstate(invalid="ignore"):  # 0 times minus infinity, for a token without any mass
            np.multiply(mass_V, below_V, out=mass_V)
        weighted = float(mass_V.sum(dtype=np.float64))
        if math.isnan(weighted):
            weighted = float(np.nansum(mass_V, dtype=np.float64))
        entropies[i] = max(0.0, math.log(total) - weighted / total)
        for values, decoding in zip(decoded, decodings, strict=True):
            same = decoding.temperature == 1 and not decoding.truncates
            values[i] = raw[i] if same else _decoded(below_V, token, decoding, mass_V)
    return Reduced(raw, ranks, entropies, decoded)


def _decoded(below_V: Array, token: int, decoding: Decoding, room_V: Array) -> float:
    """Log probability of a token under a sampler, given logits less the largest; `room_V` is written over."""
    kept_V: Array | None = None
    if decoding.truncates:
        first = decoding.temperature if decoding.order == "temperature_first" else 1.0
        kept_V = support(below_V / np.float32(first), decoding)
        if not kept_V[token]:
            return -math.inf
    np.divide(below_V, np.float32(decoding.temperature), out=room_V)
    np.exp(room_V, out=room_V)
    if kept_V is not None:
        np.multiply(room_V, kept_V, out=room_V)
    return float(below_V[token]) / decoding.temperature - math.log(float(room_V.sum(dtype=np.float64)))


def support(logits_V: Array, decoding: Decoding) -> Array:
    """Which tokens top-k, then top-p, then min-p leave of a distribution, as booleans, (V,).

    Top-p keeps the smallest set of most probable tokens whose mass reaches p, of what top-k has left; min-p keeps
    tokens at least so many times as probable as the best. Of equals the lower id comes first.

    Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (top-p); Nguyen et al. 2024 (min-p); the order is that of
    llama.cpp and of transformers.
    """
    size = len(logits_V)
    kept_V = np.ones(size, bool)
    if 0 < decoding.top_k < size:
        kept_V = _most_probable(logits_V, decoding.top_k)
    if decoding.top_p < 1:
        kept_V = _nucleus(logits_V, kept_V, decoding.top_p)
    if decoding.min_p > 0:
        kept_V &= logits_V >= logits_V[kept_V].max() + math.log(decoding.min_p)
    return kept_V


def _most_probable(logits_V: Array, count: int) -> Array:
    """The `count` largest, as booleans, (V,); of equals the lower ids. Not by sorting: that takes ten times as long."""
    if count >= len(logits_V):
        return np.ones(len(logits_V), bool)
    least = np.partition(logits_V, len(logits_V) - count)[len(logits_V) - count]
    kept_V: Array = logits_V > least
    equal = np.flatnonzero(logits_V == least)
    kept_V[equal[: count - int(np.count_nonzero(kept_V))]] = True
    return kept_V


def _nucleus(logits_V: Array, left_V: Array, p: float) -> Array:
    """The smallest set of most probable tokens whose mass reaches `p` of what is left, as booleans, (V,).

    Of equals the lower ids come first. Tokens are put into bins by their logit, and only the bin in which the mass is
    reached is sorted: all of them would take several times as long.
    """
    below_V = logits_V.max() - logits_V
    mass_V = np.multiply(np.exp(-below_V), left_V, dtype=np.float64)
    bins_V = np.minimum(below_V * _BINS_PER_NAT, _BINS - 1).astype(np.intp)
    reached = np.cumsum(np.bincount(bins_V, mass_V, _BINS))
    wanted = p * reached[-1]
    edge = int(np.argmax(reached >= wanted))
    kept_V: Array = left_V & (bins_V < edge)
    inside = np.flatnonzero(left_V & (bins_V == edge))
    inside = inside[np.argsort(below_V[inside], kind="stable")]
    so_far = (reached[edge - 1] if edge else 0.0) + np.cumsum(mass_V[inside])
    kept_V[inside[: int(np.count_nonzero(so_far < wanted)) + 1]] = True
    return kept_V


def joined(parts: Sequence[Reduced], decodings: Sequence[Decoding]) -> Reduced:
    """Windows of one response, one after the other."""
    if not parts:
        empty = np.empty(0)
        return Reduced(empty, np.empty(0, np.int64), empty, tuple(empty for _ in decodings))
    return Reduced(
        np.concatenate([part.raw for part in parts]),
        np.concatenate([part.ranks for part in parts]),
        np.concatenate([part.entropies for part in parts]),
        tuple(np.concatenate([part.decoded[i] for part in parts]) for i in range(len(decodings))),
    )


def scored(reduced: Reduced, *, unscored: int) -> Scored:
    """As an engine gives it, after `unscored` tokens that have no probability."""
    before: tuple[None, ...] = (None,) * unscored

    def of(values: Array) -> tuple[tuple[float | None, ...], float]:
        numbers = values.tolist()
        return (*before, *numbers), math.fsum(numbers)

    raw, total = of(reduced.raw)
    decoded = tuple(DecodedScore(*of(values)) for values in reduced.decoded)
    entropies, _ = of(reduced.entropies)
    return Scored(raw, total, (*before, *reduced.ranks.tolist()), entropies, decoded)
