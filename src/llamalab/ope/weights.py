"""Importance weights: from log ratios, and projected on judge scores.

Dimension key: n rows, U groups of scores, B columns (replicates).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llamalab.errors import InputError
from llamalab.ope.isotonic import isotonic
from llamalab.ope.study import FloatArray, IntArray

LARGEST_LOG_RATIO = 300.0
"""Nats at which raw weights are cut, so that their squares stay finite. No gate lets a mean of 10^130 through."""

MOST_GROUPS = 512
"""Groups of judge scores within which expected weights are equal. A monotone fit has far fewer steps than that."""

VARIANCE_CAP = 7 / 3
"""Largest variance of calibrated weights: their effective sample size is 30% of n at least. Only where the raw weights
have less does it do anything, and bend the estimate towards the base's mean."""


def raw_weights(log_ratio: FloatArray) -> FloatArray:
    """(n,) exp(log ratio): mean one in expectation, if both policies were scored rightly."""
    return np.exp(np.minimum(log_ratio, LARGEST_LOG_RATIO))


def mean_one_weights(log_ratio: FloatArray, policy: str = "the target") -> FloatArray:
    """Weights with mean one, however large or small the ratios are.

    Args:
        log_ratio: (n,) nats, -inf allowed: weight 0.
        policy: for the error message.

    Raises:
        InputError: every weight is zero.
    """
    largest = log_ratio.max()
    if largest == -np.inf:
        raise InputError(
            f"Every weight of {policy} is zero: its sampler can say none of the logged responses. "
            f"Widen the top-k or top-p of {policy}, or leave it out."
        )
    weights = np.exp(log_ratio - largest)
    return np.asarray(weights / weights.mean())


def ess_share(weights: FloatArray) -> float:
    """(sum w)^2 / (n sum w^2), in (0, 1]: the effective sample size as a share of the rows (Kish 1965)."""
    scaled = weights / weights.max()
    return float(scaled.sum() ** 2 / (len(scaled) * np.square(scaled).sum()))


def score_groups(scores: FloatArray, most: int = MOST_GROUPS) -> IntArray:
    """(n,) group of each score, 0..U-1 in their order: equal scores share one; too many are cut by quantiles."""
    distinct, group = np.unique(scores, return_inverse=True)
    if len(distinct) > most:
        before = np.cumsum(np.bincount(group)) - 1  # rank of the last row of each distinct score
        coarse = before * most // len(scores)
        group = np.unique(coarse, return_inverse=True)[1][group]
    return np.asarray(group, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Projected:
    """Mean-one weights projected on the judge score: monotone, with a variance that is capped.

    Attributes:
        fit: (U, B) the monotone projection of weights on groups of scores, mean one.
        shrink: (B,) how far it is drawn to 1, in [0, 1): 0 where the cap does not act.
    """

    fit: FloatArray
    shrink: FloatArray

    @property
    def weights(self) -> FloatArray:
        """(U, B) 1 + (1 - shrink) (fit - 1)."""
        return np.asarray(1 + (1 - self.shrink) * (self.fit - 1))


def project(weights_UB: FloatArray, mass_UB: FloatArray, *, cap: float = VARIANCE_CAP) -> Projected:
    """E[w | S], rising or falling with S, whichever fits better.

    Args:
        weights_UB: mean weight of each group of scores, in the order of scores.
        mass_UB: rows in each group, or their bootstrap weight.
        cap: of the variance of what comes out.

    Source: the projection of van der Laan, Ulloa-Perez, Carone and Luedtke 2023 (isotonic calibration), both ways.
    """
    share_UB = mass_UB / mass_UB.sum(axis=0)
    mean_B = (weights_UB * share_UB).sum(axis=0)
    up, down = (isotonic(weights_UB / mean_B, share_UB, increasing=way) for way in (True, False))
    spread_up, spread_down = ((share_UB * np.square(fit - 1)).sum(axis=0) for fit in (up, down))
    rising = spread_up >= spread_down
    fit = np.where(rising, up, down)
    variance = np.where(rising, spread_up, spread_down)
    shrink = 1 - np.sqrt(np.minimum(1.0, cap / np.maximum(variance, cap)))
    return Projected(fit, shrink)
