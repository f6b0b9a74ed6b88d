"""The combination of estimators with the least variance, its coefficients cross-fitted by prompt.

Dimension key: n rows, G prompts, C estimators, K folds.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np

from llamalab.ope.study import FloatArray, IntArray

_RIDGE = 1e-8
"""Of the mean variance: makes estimators that agree in every row share their coefficient evenly."""


def fold_coefficients(influence_Cn: FloatArray, prompt: IntArray, fold: IntArray) -> FloatArray:
    """(K, C) coefficients for each fold, from the influences of the prompts outside it.

    Args:
        influence_Cn: influence of each row on each estimate.
        prompt: (n,) codes.
        fold: (G,) fold of each prompt.
    """
    totals_CG = np.array([np.bincount(prompt, weights=row, minlength=len(fold)) for row in influence_Cn])
    return np.array([least_variance(_moments(totals_CG[:, fold != k])) for k in range(int(fold.max()) + 1)])


def least_variance(covariance: FloatArray) -> FloatArray:
    """(C,) coefficients, 0 or more and with sum one, of the combination with the least variance.

    For a few estimators every subset can be tried: within one, the least variance is a linear system.
    """
    size = len(covariance)
    scale = np.trace(covariance) / size
    if scale <= 0:
        return np.full(size, 1 / size)
    ridged = covariance / scale + _RIDGE * np.eye(size)
    best, least = np.full(size, 1 / size), np.inf
    for subset in _subsets(size):
        solved = np.linalg.solve(ridged[np.ix_(subset, subset)], np.ones(len(subset)))
        variance = 1 / solved.sum()
        if (solved >= 0).all() and variance < least:
            least, best = variance, np.zeros(size)
            best[list(subset)] = solved * variance
    return best


def _moments(totals_CG: FloatArray) -> FloatArray:
    return np.asarray(totals_CG @ totals_CG.T / totals_CG.shape[1])


@lru_cache
def _subsets(size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(subset for count in range(1, size + 1) for subset in combinations(range(size), count))
