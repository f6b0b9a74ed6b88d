"""Weighted isotonic regression of many columns at once, by pooling adjacent violators.

Dimension key: U points in order of their scores, B columns (fits).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import isotonic_regression

from llamalab.ope.study import FloatArray

_FEW = 150
"""Points below which pooling all columns together in NumPy beats a compiled fit of one after the other (measured)."""

_SLAB = 2**16
"""Numbers pooled together in one go: what a processor's cache holds."""


def isotonic(values_UB: FloatArray, weights_UB: FloatArray, *, increasing: bool = True) -> FloatArray:
    """The monotone fit of least weighted squares, of each column apart.

    Args:
        values_UB: what is fitted, points in order.
        weights_UB: above 0.
        increasing: or decreasing.

    Returns:
        (U, B): in each column, weighted means of blocks of neighbours; so weighted sums are kept.

    Source: Ayer et al. 1955. Which violators are pooled first does not change the fit, so all are, in rounds.
    """
    sign = 1.0 if increasing else -1.0
    values_BU, weights_BU = sign * values_UB.T, weights_UB.T
    fit_BU = np.empty(values_BU.shape)
    if values_BU.shape[1] >= _FEW:
        for column, (values, weights) in enumerate(zip(values_BU, weights_BU, strict=True)):
            fit_BU[column] = isotonic_regression(np.ascontiguousarray(values), weights=weights).x
    else:
        step = max(1, _SLAB // values_BU.shape[1])
        for start in range(0, len(values_BU), step):
            here = slice(start, start + step)
            fit_BU[here] = _pooled_in_rounds(values_BU[here], weights_BU[here])
    return sign * fit_BU.T


def blocks(fit_U: FloatArray) -> tuple[int, ...]:
    """Where the blocks of equal values of one fit begin."""
    return (0, *(np.flatnonzero(np.diff(fit_U)) + 1).tolist())


def _pooled_in_rounds(values_BU: FloatArray, weights_BU: FloatArray) -> FloatArray:
    """Each round joins every block to the one before it that is not below it, in all columns."""
    size = values_BU.shape[1]
    total, weight = (values_BU * weights_BU).ravel(), weights_BU.ravel()
    first = np.zeros(total.size, dtype=bool)  # blocks at the start of a column
    first[::size] = True
    length = np.ones(total.size, dtype=np.int64)
    while True:
        mean = total / weight
        opens = first.copy()
        opens[1:] |= mean[1:] > mean[:-1]
        starts = np.flatnonzero(opens)
        if len(starts) == len(mean):
            return np.repeat(mean, length).reshape(values_BU.shape)
        total, weight, length = (np.add.reduceat(part, starts) for part in (total, weight, length))
        first = first[starts]
