"""Isotonic regression of many columns, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

from llamalab.ope.isotonic import blocks, isotonic


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 10_000), st.booleans(), st.sampled_from([0, 1]))
def test_every_column_is_the_fit_of_scikit_learn(
    points: int, columns: int, seed: int, increasing: bool, decimals: int
) -> None:
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=(points, columns)), decimals)  # with ties
    weights = rng.standard_exponential((points, columns)) + 1e-3
    fit = isotonic(values, weights, increasing=increasing)
    for at in range(columns):
        expected = isotonic_regression(values[:, at], sample_weight=weights[:, at], increasing=increasing)
        np.testing.assert_allclose(fit[:, at], expected, atol=1e-12)


@pytest.mark.parametrize("points", [149, 150, 700])
def test_many_points_give_the_same_fit_as_few(points: int) -> None:
    """Both ways of computing it, on either side of where one takes over."""
    rng = np.random.default_rng(points)
    values, weights = rng.normal(size=(points, 3)) + np.linspace(0, 2, points)[:, None], rng.random((points, 3)) + 0.1
    for at in range(3):
        expected = isotonic_regression(values[:, at], sample_weight=weights[:, at])
        np.testing.assert_allclose(isotonic(values, weights)[:, at], expected, atol=1e-12)


def test_a_long_chain_of_violations_is_pooled() -> None:
    """One low value at the end draws in block after block, one in each round."""
    values = np.arange(100.0)[:, None]
    values[-1] = -1e6
    np.testing.assert_allclose(isotonic(values, np.ones((100, 1))), values.mean(), rtol=1e-12)


def test_weighted_sums_are_kept() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.normal(size=(40, 200)), rng.standard_exponential((40, 200))
    np.testing.assert_allclose((isotonic(values, weights) * weights).sum(0), (values * weights).sum(0), atol=1e-10)


def test_blocks_begin_where_the_fit_rises() -> None:
    assert blocks(np.array([1.0, 1.0, 2.0, 3.0, 3.0])) == (0, 2, 3)
    assert blocks(np.array([5.0])) == (0,)
