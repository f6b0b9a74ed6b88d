"""Importance weights and their projection on scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

from llamalab.errors import InputError
from llamalab.ope.weights import VARIANCE_CAP, ess_share, mean_one_weights, project, raw_weights, score_groups


@pytest.mark.parametrize("shift", [-5000.0, 0.0, 5000.0])
def test_weights_do_not_depend_on_a_constant_in_the_log_ratios(shift: float) -> None:
    log_ratio = np.random.default_rng(0).normal(size=50)
    weights = mean_one_weights(log_ratio + shift)
    np.testing.assert_allclose(weights, np.exp(log_ratio) / np.exp(log_ratio).mean(), rtol=1e-10)


def test_equal_policies_have_weights_of_exactly_one() -> None:
    assert (mean_one_weights(np.zeros(7)) == 1).all()
    assert (raw_weights(np.zeros(7)) == 1).all()
    assert ess_share(np.ones(7)) == 1


def test_outside_the_support_is_weight_zero() -> None:
    np.testing.assert_array_equal(mean_one_weights(np.array([0.0, -np.inf])), [2.0, 0.0])


def test_no_weight_at_all_is_an_error_that_names_the_policy() -> None:
    with pytest.raises(InputError, match="Every weight of narrow is zero"):
        mean_one_weights(np.full(3, -np.inf), "narrow")


def test_ess_is_n_over_one_plus_the_variance_of_the_weights() -> None:
    weights = mean_one_weights(np.random.default_rng(1).normal(size=1000))
    assert ess_share(weights) == pytest.approx(1 / (1 + weights.var()))


def test_normal_log_ratios_have_the_ess_of_the_lognormal_rule() -> None:
    """exp(-sd^2), for a population."""
    from scipy.stats import norm

    log_ratio = 0.7 * norm.ppf((np.arange(400_000) + 0.5) / 400_000)
    assert ess_share(mean_one_weights(log_ratio)) == pytest.approx(np.exp(-0.49), rel=2e-3)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_the_projection_has_mean_one_and_the_better_direction(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    weights, mass = rng.standard_exponential((size, 1)), rng.integers(1, 5, (size, 1)).astype(float)
    projected = project(weights, mass)
    assert (projected.weights * mass).sum() == pytest.approx(mass.sum())
    scaled = weights[:, 0] * mass.sum() / (weights * mass).sum()
    errors = [
        (mass[:, 0] * (scaled - isotonic_regression(scaled, sample_weight=mass[:, 0], increasing=way)) ** 2).sum()
        for way in (True, False)
    ]
    ours = (mass[:, 0] * (scaled - projected.fit[:, 0]) ** 2).sum()
    assert ours == pytest.approx(min(errors), abs=1e-9)


def test_the_variance_of_projected_weights_is_capped() -> None:
    projected = project(np.array([[0.0], [0.0], [1000.0]]), np.array([[50.0], [49.0], [1.0]]))
    share = np.array([0.5, 0.49, 0.01])
    weights = projected.weights[:, 0]
    assert projected.shrink[0] > 0
    assert (share * weights).sum() == pytest.approx(1)
    assert (share * (weights - 1) ** 2).sum() == pytest.approx(VARIANCE_CAP)


def test_equal_scores_share_a_group_and_groups_follow_the_scores() -> None:
    np.testing.assert_array_equal(score_groups(np.array([0.5, 0.1, 0.5, 0.9])), [1, 0, 1, 2])


def test_too_many_scores_are_cut_into_groups_of_like_size() -> None:
    scores = np.random.default_rng(0).random(10_000)
    group = score_groups(scores, most=100)
    assert sorted(set(group.tolist())) == list(range(100))
    assert np.bincount(group).max() <= 101
    assert (np.diff(group[np.argsort(scores)]) >= 0).all()
