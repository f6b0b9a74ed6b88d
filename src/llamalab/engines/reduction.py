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

from llamalab.engine import DecodedScore, Decoding, Scored
from llamalab.errors import EngineError

Array = np.ndarray[Any, Any]


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
    for i, (row_V, token) in enumerate(zip(logits_RV, tokens_R.tolist(), strict=True)):
        best = row_V.max()
        if not np.isfinite(best) or not np.isfinite(row_V[token]):
            raise EngineError(f"The log probability of token {token} is not finite: the model's logits are not.")
        below_V = row_V - best
        mass_V = np.exp(below_V)
        total = float(mass_V.sum(dtype=np.float64))
        if not math.isfinite(total):
            raise EngineError(f"The log probability of token {token} is not finite: the model's logits are not.")
        raw[i] = float(below_V[token]) - math.log(total)
        ranks[i] = 1 + np.count_nonzero(row_V > row_V[token])
        np.multiply(mass_V, below_V, out=mass_V)
        entropies[i] = max(0.0, math.log(total) - float(mass_V.sum(dtype=np.float64)) / total)
        for values, decoding in zip(decoded, decodings, strict=True):
            values[i] = _decoded(below_V, token, decoding)
    return Reduced(raw, ranks, entropies, decoded)


def _decoded(below_V: Array, token: int, decoding: Decoding) -> float:
    """Log probability of a token under a sampler, given logits less the largest."""
    if not decoding.truncates:
        scaled_V = below_V / np.float32(decoding.temperature)
        return float(below_V[token]) / decoding.temperature - _log_sum(scaled_V)
    first = decoding.temperature if decoding.order == "temperature_first" else 1.0
    kept = support(below_V / np.float32(first), decoding)
    if not kept[token]:
        return -math.inf
    left = below_V[kept] / np.float32(decoding.temperature)
    return float(below_V[token]) / decoding.temperature - _log_sum(left)


def support(logits_V: Array, decoding: Decoding) -> Array:
    """Which tokens top-k, then top-p, then min-p leave of a distribution, as booleans, (V,).

    Top-p keeps the smallest set of most probable tokens whose mass reaches p, of what top-k has left; min-p keeps
    tokens at least so many times as probable as the best. Of equals the lower id comes first.

    Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (top-p); Nguyen et al. 2024 (min-p); the order is that of
    llama.cpp and of transformers.
    """
    size = len(logits_V)
    kept = size if decoding.top_k == 0 else min(decoding.top_k, size)
    # A stable sort of the negated values: of equals the lower id first.
    order = np.argsort(-logits_V, kind="stable")[:kept] if kept < size or decoding.top_p < 1 else np.arange(size)
    if decoding.top_p < 1:
        mass = np.exp(logits_V[order] - logits_V[order[0]]).astype(np.float64)
        reached = np.cumsum(mass) >= decoding.top_p * mass.sum()
        order = order[: int(reached.argmax()) + 1 if reached.any() else len(order)]
    if decoding.min_p > 0:
        order = order[logits_V[order] >= logits_V[order].max() + math.log(decoding.min_p)]
    found = np.zeros(size, bool)
    found[order] = True
    return found


def _log_sum(values: Array) -> float:
    """log(sum(exp(values))) of values of at most 0."""
    return math.log(float(np.exp(values).sum(dtype=np.float64)))


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
