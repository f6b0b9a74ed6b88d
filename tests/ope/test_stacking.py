"""Combinations with the least variance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from llamalab.ope.stacking import fold_coefficients, least_variance


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(0, 10_000))
def test_no_combination_has_less_variance(size: int, seed: int) -> None:
    """Against a general optimiser."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size + 1))
    covariance = root @ root.T
    found = least_variance(covariance)
    best = minimize(
        lambda a: a @ covariance @ a,
        np.full(size, 1 / size),
        method="SLSQP",
        bounds=[(0, 1)] * size,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
        options={"ftol": 1e-12},
    )
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    assert found @ covariance @ found == pytest.approx(best.fun, rel=1e-4)


def test_estimators_that_agree_share_evenly() -> None:
    np.testing.assert_allclose(least_variance(np.ones((3, 3))), 1 / 3, atol=1e-6)
    np.testing.assert_allclose(least_variance(np.zeros((2, 2))), 1 / 2)


def test_a_prompts_own_influence_does_not_choose_its_coefficients() -> None:
    rng = np.random.default_rng(0)
    influence, prompt, fold = rng.normal(size=(2, 40)), np.repeat(np.arange(20), 2), np.arange(20) % 4
    before = fold_coefficients(influence, prompt, fold)
    influence[0, fold[prompt] == 2] *= 10
    after = fold_coefficients(influence, prompt, fold)
    np.testing.assert_array_equal(before[2], after[2])
    assert not np.allclose(before[[0, 1, 3]], after[[0, 1, 3]])
