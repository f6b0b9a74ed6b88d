"""Values and standard errors, against closed forms, leave-one-out recomputation and known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalab.errors import ConfigError, InputError
from llamalab.ope.bootstrap import _prepare, _values
from llamalab.ope.estimators import ESTIMATORS, Estimate, estimate, points
from llamalab.ope.outcome import outcome_of
from llamalab.ope.study import Draws, Study
from tests.ope.cases import draw_study, make_world, take

WORLD = make_world()
STUDY = draw_study(WORLD, 0)
WHOLE = replace(draw_study(WORLD, 0, labelled=1.0), label_probability=np.ones(200))


def by_name(study: Study, policy: str = "sharp", **settings: object) -> dict[str, Estimate]:
    return {found.estimator: found for found in estimate(study, [policy], **settings)}  # type: ignore[arg-type]


def plain(n_weights: np.ndarray, rewards: np.ndarray) -> Study:
    """One response per prompt, the judge's score as the reward."""
    n = len(rewards)
    with np.errstate(divide="ignore"):
        log_ratio = {"target": np.log(n_weights)}
    names = tuple(f"p{at}" for at in range(n))
    return Study(np.arange(n), names, rewards, np.full(n, np.nan), np.ones(n), log_ratio)


def jackknife(left_out: np.ndarray) -> float:
    size = len(left_out)
    return float(np.sqrt((size - 1) / size * np.square(left_out - left_out.mean()).sum()))


def test_ips_and_snips_are_their_formulas() -> None:
    w, r = np.array([0.5, 2.0, 0.0, 1.5]), np.array([0.1, 0.9, 0.4, 0.3])
    found = by_name(plain(w, r), "target", scale="judge")
    assert found["ips"].value == pytest.approx((w * r).mean())
    assert found["snips"].value == pytest.approx((w * r).sum() / w.sum())


def test_the_influence_of_snips_is_the_weighted_residual_and_nothing_more() -> None:
    """A term -psi (w - 1) more made standard errors two times too small elsewhere."""
    rng = np.random.default_rng(0)
    w, r = rng.standard_exponential(60), rng.random(60)
    found = by_name(plain(w, r), "target", scale="judge")["snips"]
    np.testing.assert_allclose(found.influence, w * (r - found.value) / w.mean(), atol=1e-12)
    # and its standard error is that of a ratio of means, by the delta method
    x, y = w, w * r
    ratio = y.mean() / x.mean()
    variance = (y.var(ddof=1) - 2 * ratio * np.cov(x, y)[0, 1] + ratio**2 * x.var(ddof=1)) / x.mean() ** 2 / 60
    assert found.se == pytest.approx(np.sqrt(variance))


@pytest.mark.parametrize("name", ["ips", "snips", "dr", "stacked"])
def test_the_standard_error_is_what_leaving_out_prompts_shows(name: str) -> None:
    """Jackknife over prompts, which knows no formula: neither too small nor counting the draws' noise twice."""
    study = draw_study(WORLD, 3, prompts=80)
    found = by_name(study, scale="judge")[name]
    left_out = []
    for prompt in range(80):
        rows = np.flatnonzero(study.prompt != prompt)
        draws = study.draws["sharp"]
        kept = draws.prompt != prompt
        part = replace(take(study, rows), draws={"sharp": Draws(draws.prompt[kept], draws.judge[kept])})
        left_out.append(points(part, ["sharp"], [name], scale="judge", folds=5, seed=0)[name, "sharp"].value)
    assert found.se == pytest.approx(jackknife(np.array(left_out)), rel=0.04)


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_it_still_is_where_the_calibration_is_refitted_without_the_prompt(name: str) -> None:
    study = draw_study(WORLD, 3, prompts=80)
    sums = _prepare(study, ["sharp"], outcome_of(study, scale="oracle"), calibrated=False)
    without_each = np.ones((80, 80)) - (1 - 1e-9) * np.eye(80)
    assert by_name(study)[name].se == pytest.approx(jackknife(_values(sums, without_each)[name][0]), rel=0.06)


@pytest.mark.parametrize("name", ["ips", "snips", "calibrated_ips", "dr"])
def test_the_influence_is_the_derivative_by_a_prompts_weight(name: str) -> None:
    """On the judge's scale nothing is fitted in between, so this holds exactly; it is how influence is defined."""
    found = by_name(STUDY, scale="judge")[name]
    sums = _prepare(STUDY, ["sharp"], outcome_of(STUDY, scale="judge"), calibrated=True)
    step = 1e-6
    weights = np.ones((STUDY.n_prompts, STUDY.n_prompts)) + step * np.eye(STUDY.n_prompts)
    slope = (_values(sums, weights)[name][0] - found.value) / step
    by_prompt = np.bincount(STUDY.prompt, weights=found.influence) / STUDY.n
    np.testing.assert_allclose(slope, by_prompt, atol=2e-6)


@pytest.mark.parametrize("study", [STUDY, WHOLE], ids=["half labelled", "all labelled"])
def test_standard_errors_are_as_large_as_estimates_scatter(study: Study) -> None:
    """80 studies of a world with known truth: no bias to speak of, and errors of the stated size."""
    labelled = 1.0 if study is WHOLE else 0.5
    errors: dict[str, list[float]] = {}
    for seed in range(80):
        drawn = draw_study(WORLD, 1000 + seed, labelled=labelled)
        for found in estimate(drawn, ["sharp"], ["snips", "dr", "stacked"]):
            errors.setdefault(found.estimator, []).append((found.value - WORLD.truth("sharp")) / found.se)
    for name, z in errors.items():
        assert abs(np.mean(z)) < 0.35, name
        assert 0.78 < np.std(z) < 1.22, name


def test_labels_correct_a_judge_that_misses_something() -> None:
    """The calibrated score alone is off by many standard errors here; the estimate is not."""
    study = draw_study(WORLD, 5, prompts=3000, each=1)
    found, truth = by_name(study)["snips"], WORLD.truth("sharp")
    outcome = outcome_of(study, scale="oracle")
    predicted = np.asarray(outcome.rows @ outcome.fit(np.ones((3000, 1))))[:, 0]
    alone = np.average(predicted, weights=np.exp(study.log_ratio["sharp"]))
    assert abs(found.value - truth) < 3 * found.se
    assert abs(alone - truth) > 3.5 * found.se


def test_with_every_row_labelled_nothing_is_predicted() -> None:
    weights = np.exp(WHOLE.log_ratio["sharp"])
    found = by_name(WHOLE)
    assert found["snips"].value == pytest.approx(np.average(WHOLE.label, weights=weights))
    assert found["snips"].df == 99


def test_a_policy_equal_to_the_base_has_the_bases_mean() -> None:
    for scale, rewards in (("judge", WHOLE.judge), ("oracle", WHOLE.label)):
        for name in ("ips", "snips", "calibrated_ips"):
            found = by_name(WHOLE, "clone", scale=scale)[name]
            assert found.value == pytest.approx(rewards.mean())
            np.testing.assert_allclose(found.influence, rewards - rewards.mean(), atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000))
def test_the_order_of_rows_decides_nothing(seed: int) -> None:
    """Labels stay with their scores however rows and draws are shuffled, and prompts may be numbered anew."""
    rng = np.random.default_rng(seed)
    shuffled = take(STUDY, rng.permutation(STUDY.n))
    code = rng.permutation(STUDY.n_prompts)
    names = tuple(STUDY.prompt_ids[at] for at in np.argsort(code))
    draws = {}
    for name, found in STUDY.draws.items():
        order = rng.permutation(len(found.prompt))
        draws[name] = Draws(code[found.prompt[order]], found.judge[order])
    shuffled = replace(shuffled, prompt=code[shuffled.prompt], prompt_ids=names, draws=draws)
    for one, other in zip(estimate(STUDY), estimate(shuffled), strict=True):
        assert (one.value, one.se, one.df) == pytest.approx((other.value, other.se, other.df), rel=1e-9)


@settings(deadline=None, max_examples=15)
@given(st.floats(-300, 300), st.floats(0.1, 3), st.floats(-1, 1))
def test_snips_ignores_a_constant_in_the_log_ratios_and_follows_units(shift: float, a: float, b: float) -> None:
    found = by_name(STUDY, scale="judge", estimators=["snips"])["snips"]
    low, high = sorted((b, a + b))
    moved = replace(
        STUDY,
        judge=np.clip(a * STUDY.judge + b, low, high),
        judge_range=(low, high),
        log_ratio={"sharp": STUDY.log_ratio["sharp"] + shift},
        draws={},
    )
    other = by_name(moved, scale="judge", estimators=["snips"])["snips"]
    assert other.value == pytest.approx(a * found.value + b, abs=1e-9)
    assert other.se == pytest.approx(a * found.se, rel=1e-9)


@settings(deadline=None, max_examples=8)
@given(st.integers(2, 4))
def test_responses_said_several_times_change_nothing(times: int) -> None:
    """Rows of one prompt are one cluster: copies bring in no certainty."""
    copies = take(STUDY, np.repeat(np.arange(STUDY.n), times))
    for one, other in zip(estimate(STUDY, scale="judge"), estimate(copies, scale="judge"), strict=True):
        assert (one.value, one.se, one.df) == pytest.approx((other.value, other.se, other.df))


def test_every_estimate_stays_right_when_a_prompt_lacks_draws() -> None:
    draws = STUDY.draws["sharp"]
    some = replace(STUDY, draws={"sharp": Draws(draws.prompt[::2], draws.judge[::2])})
    outcome = outcome_of(some, scale="judge")
    drawn = outcome.draws["sharp"].predicted(np.ones((1, 1)), np.ones((100, 1)), np.full(100, 2))[:, 0]
    np.testing.assert_allclose(drawn[1::2], draws.judge[::2].mean())  # the mean of the others stands in
    one, other = by_name(STUDY)["dr"], by_name(some)["dr"]
    assert abs(one.value - other.value) < 2 * one.se
    assert other.influence.mean() == pytest.approx(0, abs=1e-12)


def test_draws_for_prompts_without_responses_are_no_draws() -> None:
    study = take(STUDY, np.flatnonzero(STUDY.prompt < 50))
    late = replace(study, draws={"sharp": Draws(np.array([60, 70]), np.array([0.5, 0.6]))})
    assert "dr" not in by_name(late)


def test_without_fresh_draws_there_is_no_dr() -> None:
    found = by_name(replace(STUDY, draws={}))
    assert set(found) == {"ips", "snips", "calibrated_ips", "stacked"}
    assert found["stacked"].value == pytest.approx(found["snips"].value)


def test_labels_do_not_replace_the_data_that_is_evaluated() -> None:
    """On the judge's scale labels change nothing; on the oracle's every row still counts."""
    unlabelled = replace(STUDY, label=np.full(STUDY.n, np.nan))
    for one, other in zip(estimate(STUDY, scale="judge"), estimate(unlabelled, scale="judge"), strict=True):
        assert one.value == other.value
    values = {found.policy: found.value for found in estimate(STUDY, estimators=["snips"])}
    assert len(set(values.values())) == 3
    assert all(len(found.influence) == STUDY.n for found in estimate(STUDY))


def test_few_labels_leave_few_degrees_of_freedom() -> None:
    assert by_name(draw_study(WORLD, 1, labelled=0.06))["snips"].df < 20
    assert by_name(STUDY, scale="judge")["snips"].df == 99


def test_degrees_of_freedom_are_at_most_those_of_the_prompts() -> None:
    few = draw_study(WORLD, 1, prompts=8, each=12)
    weighted, even = by_name(few)["snips"], by_name(few, "clone")["snips"]
    assert weighted.df < 7  # prompts that weigh unevenly say less
    assert even.df <= 7 + 1e-9


def test_degrees_of_freedom_count_prompts_not_folds() -> None:
    assert by_name(STUDY, scale="judge", folds=5)["dr"].df == 99


def test_intervals_are_centred_on_their_values_at_the_level_asked_for() -> None:
    wide, narrow = by_name(STUDY, level=0.99)["dr"], by_name(STUDY, level=0.5)["dr"]
    assert (wide.low + wide.high) / 2 == pytest.approx(wide.value)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert [e.value for e in estimate(STUDY, seed=3)] == [e.value for e in estimate(STUDY, seed=3)]


def test_policies_far_from_the_base_give_numbers_that_are_finite() -> None:
    """Thousands of nats: gates will refuse them, but nothing overflows on the way there."""
    for far in (2000.0, -2000.0):
        log_ratio = {"far": STUDY.log_ratio["sharp"] * 50 + far}
        for found in estimate(replace(STUDY, log_ratio=log_ratio, draws={})):
            assert np.isfinite([found.value, found.se, found.low, found.high]).all()


def test_what_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(InputError, match="no policy 'nobody'"):
        estimate(STUDY, ["nobody"])
    with pytest.raises(ConfigError, match="no estimator 'magic'"):
        estimate(STUDY, estimators=["magic"])
    with pytest.raises(ConfigError, match="no scale 'both'"):
        estimate(STUDY, scale="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Every weight of narrow is zero"):
        estimate(replace(STUDY, log_ratio={"narrow": np.full(STUDY.n, -np.inf)}, draws={}))
    with pytest.raises(InputError, match="All responses belong to one prompt"):
        estimate(take(STUDY, np.array([0, 1])), scale="judge")
    with pytest.raises(InputError, match="no row has a label"):
        estimate(replace(STUDY, label=np.full(STUDY.n, np.nan)))


def test_every_estimator_is_there() -> None:
    assert tuple(by_name(STUDY)) == ESTIMATORS
