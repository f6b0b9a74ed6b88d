"""Standard errors clustered by prompt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llamalab.errors import ConfigError, InputError
from llamalab.ope.intervals import Variance, cluster_variance, pooled_df, t_interval


def test_with_one_row_a_prompt_it_is_the_standard_error_of_the_mean() -> None:
    for size in (12, 200):  # below and above the bar for few prompts
        values = np.random.default_rng(size).normal(size=size)
        found = cluster_variance(values - values.mean(), np.arange(size))
        assert np.sqrt(found.value) == pytest.approx(stats.sem(values))
        assert found.df == pytest.approx(size - 1)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.integers(2, 4), st.integers(0, 1000))
def test_a_row_said_twice_adds_no_certainty(prompts: int, times: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=prompts)
    once = cluster_variance(values - values.mean(), np.arange(prompts))
    many = cluster_variance(np.repeat(values - values.mean(), times), np.repeat(np.arange(prompts), times))
    assert many.value == pytest.approx(once.value)
    assert many.df == pytest.approx(once.df)


def test_many_prompts_have_the_sandwich_of_liang_and_zeger() -> None:
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 40, 200)
    values = rng.normal(size=200) + rng.normal(size=40)[prompt]
    influence = values - values.mean()
    totals = [influence[prompt == g].sum() for g in np.unique(prompt)]
    size = len(totals)
    expected = size / (size - 1) * np.square(totals).sum() / 200**2
    assert cluster_variance(influence, prompt).value == pytest.approx(expected)


def test_few_uneven_prompts_have_unbiased_variances_under_the_working_model() -> None:
    """CR2: with independent rows of one variance, its expectation is the variance of the mean, whatever the sizes."""
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(6), [1, 2, 3, 5, 9, 20])
    noise = rng.normal(size=(2000, 40))
    found = [cluster_variance(row - row.mean(), prompt).value for row in noise]
    assert np.mean(found) == pytest.approx(1 / 40, rel=0.05)


def test_few_uneven_prompts_have_the_degrees_of_freedom_that_their_variances_show() -> None:
    """Satterthwaite: 2 mean^2 / variance of the estimated variance."""
    rng = np.random.default_rng(1)
    prompt = np.repeat(np.arange(6), [1, 2, 3, 5, 9, 20])
    noise = rng.normal(size=(2500, 40))
    found = np.array([cluster_variance(row - row.mean(), prompt).value for row in noise])
    df = cluster_variance(noise[0] - noise[0].mean(), prompt).df
    assert df < 5
    assert df == pytest.approx(2 * found.mean() ** 2 / found.var(), rel=0.12)


def test_one_prompt_has_no_variance() -> None:
    with pytest.raises(InputError, match="All responses belong to one prompt"):
        cluster_variance(np.array([1.0, -1.0]), np.array([4, 4]))


def test_the_interval_is_students_and_centred_on_the_value() -> None:
    low, high = t_interval(2.0, 0.5, 7.0, 0.9)
    assert (low, high) == pytest.approx(stats.t.interval(0.9, 7, loc=2, scale=0.5))
    assert (low + high) / 2 == pytest.approx(2)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_that_is_no_probability_is_refused(level: float) -> None:
    with pytest.raises(ConfigError, match="lies between 0 and 1"):
        t_interval(0, 1, 5, level)


def test_pooled_degrees_of_freedom_are_welchs() -> None:
    a, b = np.array([1.0, 2, 4, 8, 3]), np.array([2.0, 2.5, 9, 1, 4, 4, 7, 5])
    parts = (Variance(a.var(ddof=1) / 5, 4), Variance(b.var(ddof=1) / 8, 7))
    assert pooled_df(parts) == pytest.approx(min(7, stats.ttest_ind(a, b, equal_var=False).df))
    assert pooled_df((Variance(0, 4), Variance(0, 7))) == 7
