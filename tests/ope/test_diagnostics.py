"""Diagnostics against closed forms, and what must not move them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm, ttest_rel

from llamalab.errors import InputError
from llamalab.ope.diagnostics import diagnose, tail_index
from llamalab.ope.study import Draws, FloatArray, Study


def study_of(log_ratio: FloatArray, *, prompt: FloatArray | None = None, draws: Draws | None = None) -> Study:
    n = len(log_ratio)
    codes = np.arange(n) if prompt is None else prompt
    return Study(
        prompt=codes,
        prompt_ids=tuple(f"p{code}" for code in range(int(codes.max()) + 1)),
        judge=np.linspace(0, 1, n),
        label=np.full(n, np.nan),
        label_probability=np.ones(n),
        log_ratio={"b": log_ratio},
        draws={} if draws is None else {"b": draws},
    )


def normal_ratios(sd: float, n: int, mean: float | None = None) -> FloatArray:
    """(n,) quantiles of the log ratios of two policies whose ratio is log-normal."""
    quantiles = norm.ppf((np.arange(n) + 0.5) / n)
    return sd * quantiles - (sd**2 / 2 if mean is None else mean)


def test_ess_of_log_normal_weights_is_exp_minus_variance() -> None:
    found = diagnose(study_of(normal_ratios(0.5, 20_000)), "b")
    assert found.ess == pytest.approx(math.exp(-0.25), rel=1e-3)
    assert found.lognormal_ess == pytest.approx(math.exp(-0.25), rel=1e-3)
    assert found.n_ess == pytest.approx(20_000 * math.exp(-0.25), rel=1e-3)
    assert found.mean_weight == pytest.approx(1.0, abs=1e-3)


def test_a_clone_has_every_row_and_nothing_off() -> None:
    found = diagnose(study_of(np.zeros(100)), "b")
    assert (found.ess, found.n_ess, found.share_equal, found.mean_weight) == (1.0, 100.0, 1.0, 1.0)
    assert (found.mean_weight_z, found.largest_gap, found.largest_share) == (0.0, 0.0, 0.01)


def test_a_shift_of_all_log_ratios_is_seen_in_the_mean_weight_alone() -> None:
    """Self-normalised weights do not know about it; the mean weight does, and by a number, not infinity."""
    plain, shifted = (diagnose(study_of(normal_ratios(0.5, 500) + by), "b") for by in (0.0, 3.0))
    assert shifted.ess == pytest.approx(plain.ess)
    assert shifted.largest_share == pytest.approx(plain.largest_share)
    assert shifted.mean_weight == pytest.approx(plain.mean_weight * math.exp(3.0))
    constant = diagnose(study_of(np.full(50, 0.1)), "b")
    assert constant.mean_weight_z is not None
    assert 1e6 < constant.mean_weight_z < math.inf


def test_ratios_beyond_float64_give_numbers() -> None:
    found = diagnose(study_of(np.concatenate([np.full(99, -2000.0), [1500.0]])), "b")
    assert found.ess == pytest.approx(0.01)
    assert found.largest_share == pytest.approx(1.0)
    assert math.isfinite(found.mean_weight)


def test_rows_outside_the_support_weigh_nothing() -> None:
    log_ratio = np.where(np.arange(200) < 150, math.log(4 / 3), -np.inf)
    found = diagnose(study_of(log_ratio), "b")
    assert found.outside_support == 0.25
    assert found.ess == pytest.approx(0.75)
    assert found.mean_weight == pytest.approx(1.0)
    assert found.log_ratio_sd == pytest.approx(0.0)


def test_all_weights_zero_is_said_not_divided_by() -> None:
    found = diagnose(study_of(np.full(60, -np.inf)), "b")
    assert (found.ess, found.n_ess, found.mean_weight, found.outside_support) == (0.0, 0.0, 0.0, 1.0)
    assert found.largest_share is None
    assert found.hill is None
    assert found.median_log_ratio is None


def test_every_row_twice_under_its_prompt_changes_no_z() -> None:
    """Copies of a row are no new evidence: the error of the mean weight is that of the prompts."""
    log_ratio = normal_ratios(0.6, 80, mean=0.0)
    once = diagnose(study_of(log_ratio), "b")
    twice = diagnose(study_of(np.repeat(log_ratio, 2), prompt=np.repeat(np.arange(80), 2)), "b")
    assert twice.mean_weight_z == pytest.approx(once.mean_weight_z)
    assert twice.prompts == once.prompts == 80


def test_hill_finds_the_index_of_pareto_weights() -> None:
    """Quantiles of P(w > x) = x^-1.5."""
    weights = ((np.arange(20_000) + 0.5) / 20_000) ** (-1 / 1.5)
    assert tail_index(np.log(weights)) == pytest.approx(1.5, rel=0.01)


@pytest.mark.parametrize(
    "log_ratio",
    [np.zeros(500), np.full(500, -np.inf), np.where(np.arange(500) < 10, 0.0, -np.inf), np.arange(50.0)],
    ids=["equal", "all zero", "zeros in the tail", "too few"],
)
def test_hill_of_degenerate_weights_is_unknown_not_light(log_ratio: FloatArray) -> None:
    assert tail_index(log_ratio) is None


def test_bennett_holds_for_draws_of_the_target_and_fails_for_draws_of_another() -> None:
    """Log ratios of a log-normal pair: N(-s^2/2, s^2) under the base, N(+s^2/2, s^2) under the target."""
    base = normal_ratios(1.0, 2000)
    rng = np.random.default_rng(1)
    rng.shuffle(base)
    target = -base[rng.permutation(2000)]
    own = Draws(np.arange(2000), np.full(2000, 0.5), target)
    found = diagnose(study_of(base, draws=own), "b").bennett_z
    assert found is not None
    assert abs(found) < 1
    wrong = diagnose(study_of(base, draws=replace(own, log_ratio=base)), "b").bennett_z
    assert wrong is not None
    assert abs(wrong) > 10


def test_bennett_pairs_what_shares_a_prompt() -> None:
    """With one response and one draw for each prompt its z is the paired t statistic of SciPy."""
    rng = np.random.default_rng(2)
    of_prompt = rng.standard_normal(60)
    base, target = of_prompt + 0.3 * rng.standard_normal(60), 0.2 - of_prompt + 0.3 * rng.standard_normal(60)
    found = diagnose(study_of(base, draws=Draws(np.arange(60), np.full(60, 0.5), target)), "b").bennett_z
    assert found == pytest.approx(ttest_rel(expit(base), expit(-target)).statistic)


def test_bennett_needs_draws_that_were_scored() -> None:
    assert diagnose(study_of(np.zeros(50)), "b").bennett_z is None
    assert diagnose(study_of(np.zeros(50), draws=Draws(np.arange(5), np.zeros(5))), "b").bennett_z is None


def test_draws_tell_the_ess_that_the_log_tends_to() -> None:
    """Log ratios of a log-normal pair: N(+s^2/2, s^2) under the target, so E_target[w] is exp(s^2)."""
    drawn = -normal_ratios(0.8, 20_000)
    study = study_of(normal_ratios(0.8, 20_000), draws=Draws(np.arange(20_000), np.full(20_000, 0.5), drawn))
    found = diagnose(study, "b")
    assert found.draws_ess == pytest.approx(math.exp(-0.64), rel=1e-3)
    assert found.draws_ess == pytest.approx(found.ess, rel=2e-3)


def test_draws_show_what_the_log_does_not_hold() -> None:
    """A target that says in one of ten responses what the base hardly ever says: the log looks like a clone's."""
    drawn = np.where(np.arange(100) % 10 == 0, 2000.0, math.log(0.9))
    study = study_of(np.full(200, math.log(0.9)), draws=Draws(np.arange(100), np.full(100, 0.5), drawn))
    found = diagnose(study, "b")
    assert found.ess == pytest.approx(1.0)
    assert found.draws_ess == pytest.approx(1 / (0.9 * 0.9 + 0.1 * 200))


def test_draws_of_a_clone_lose_nothing_and_draws_without_scores_say_nothing() -> None:
    clone = Draws(np.arange(20), np.full(20, 0.5), np.zeros(20))
    assert diagnose(study_of(np.zeros(50), draws=clone), "b").draws_ess == 1.0
    assert diagnose(study_of(np.zeros(50), draws=replace(clone, log_ratio=None)), "b").draws_ess is None
    assert diagnose(study_of(np.zeros(50)), "b").draws_ess is None


def test_judge_overlap_is_one_for_equal_scores_and_zero_for_disjoint_ones() -> None:
    study = study_of(np.zeros(100))
    same = Draws(np.arange(100), study.judge.copy())
    assert diagnose(replace(study, draws={"b": same}), "b").judge_overlap == pytest.approx(1.0)
    low = replace(study, judge=np.full(100, 0.1), draws={"b": Draws(np.arange(100), np.full(100, 0.9))})
    assert diagnose(low, "b").judge_overlap == 0.0


def test_typicality_is_per_token_and_weighted() -> None:
    """With equal weights it is the 90% quantile itself; with weight on the improbable rows, nearly all are below."""
    surprisal = np.linspace(1, 2, 100)
    assert diagnose(study_of(np.zeros(100)), "b", surprisal=surprisal).typicality == pytest.approx(0.9, abs=0.011)
    heavy = np.where(np.arange(100) < 95, -5.0, 3.0)
    assert diagnose(study_of(heavy), "b", surprisal=surprisal).typicality == pytest.approx(1.0)
    assert diagnose(study_of(heavy), "b").typicality is None


def test_smoothed_weights_look_well_where_raw_ones_do_not() -> None:
    """Why raw ESS stands beside calibrated ESS: noise that does not depend on the score is smoothed away."""
    log_ratio = normal_ratios(2.5, 2000)
    np.random.default_rng(0).shuffle(log_ratio)
    found = diagnose(study_of(log_ratio), "b")
    assert found.ess < 0.03
    assert found.ess_calibrated is not None
    assert found.ess_calibrated > 0.3


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(InputError, match="no target policy 'c'; the study has b"):
        diagnose(study_of(np.zeros(5)), "c")
