"""The joint bootstrap, and paired differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import false_discovery_control, ttest_1samp

import llamalab.ope.bootstrap as module
from llamalab.errors import ConfigError, InputError
from llamalab.ope.bootstrap import Replicates, benjamini_hochberg, bootstrap, differences
from llamalab.ope.estimators import ESTIMATORS, estimate
from llamalab.ope.study import Draws, Study
from tests.ope.cases import draw_study, make_world, take

WORLD = make_world()
STUDY = draw_study(WORLD, 0)


@pytest.mark.parametrize("scale", ["oracle", "judge"])
@pytest.mark.parametrize("draws", ["every prompt", "every other prompt", "none"])
def test_with_equal_weights_a_replicate_is_the_estimate(scale: str, draws: str) -> None:
    """Both are written down separately: row by row with influences, and as sums over prompts."""
    step = {"every prompt": 1, "every other prompt": 2, "none": 10**9}[draws]
    kept = {name: Draws(d.prompt[1::step], d.judge[1::step]) for name, d in STUDY.draws.items()}
    study = replace(STUDY, draws=kept)
    sums = module._prepare(study, study.policies, module.outcome_of(study, scale=scale), calibrated=True)
    values = module._values(sums, np.ones((study.n_prompts, 1)))
    for found in estimate(study, scale=scale):  # type: ignore[arg-type]
        if found.estimator != "stacked":
            column = study.policies.index(found.policy)
            assert values[found.estimator][column, 0] == pytest.approx(found.value, abs=1e-12)


def test_whole_weights_are_prompts_said_several_times() -> None:
    """A prompt of weight 3 counts like three prompts with its rows, on the judge's scale, where no fold matters."""
    times = np.random.default_rng(0).integers(1, 4, STUDY.n_prompts)
    sums = module._prepare(STUDY, STUDY.policies, module.outcome_of(STUDY, scale="judge"), calibrated=True)
    values = module._values(sums, times[:, None].astype(float))
    rows = np.concatenate([np.flatnonzero(STUDY.prompt == g) for g in range(STUDY.n_prompts) for _ in range(times[g])])
    copies = take(STUDY, rows)
    code = np.repeat(np.arange(times.sum()), 2)
    first = np.cumsum(times) - times
    draws = {}
    for name, d in STUDY.draws.items():
        again = np.repeat(d.judge, times[d.prompt])
        prompt = np.concatenate([first[g] + np.arange(times[g]) for g in d.prompt])
        draws[name] = Draws(prompt, again)
    copies = replace(copies, prompt=code, prompt_ids=tuple(f"copy {at}" for at in range(times.sum())), draws=draws)
    for found in estimate(copies, scale="judge"):
        if found.estimator != "stacked":
            assert values[found.estimator][STUDY.policies.index(found.policy), 0] == pytest.approx(found.value)


def test_each_replicate_refits_the_calibration() -> None:
    """Its value is that of the calibration under its own weights, not of the one that was fitted to the data."""
    weight = np.random.default_rng(1).standard_exponential((STUDY.n_prompts, 1))
    outcome = module.outcome_of(STUDY, scale="oracle")
    found = module._values(module._prepare(STUDY, STUDY.policies, outcome, calibrated=False), weight)["snips"][:, 0]
    by_hand = {}
    for name, of in {"refitted": weight, "as it was": np.ones_like(weight)}.items():
        reward = np.asarray(outcome.rows @ outcome.fit(of))[:, 0]
        reward[outcome.labelled] += outcome.ratio * (outcome.label - reward[outcome.labelled])
        by_hand[name] = [
            np.average(reward, weights=weight[STUDY.prompt, 0] * np.exp(STUDY.log_ratio[policy]))
            for policy in STUDY.policies
        ]
    assert found == pytest.approx(by_hand["refitted"], abs=1e-12)
    assert np.abs(found - by_hand["as it was"]).max() > 1e-4


def test_its_spread_is_the_standard_error() -> None:
    replicates = bootstrap(STUDY, ["snips", "dr", "stacked"], replicates=1500)
    for found in estimate(STUDY, estimators=["snips", "dr", "stacked"]):
        spread = replicates.values[found.estimator][:, STUDY.policies.index(found.policy)].std(ddof=1)
        assert spread == pytest.approx(found.se, rel=0.12)


def test_few_labels_never_fail_and_never_repeat_a_replicate() -> None:
    """Positive weights keep every label, so there is nothing to retry, and retrying would make errors small."""
    study = draw_study(WORLD, 2, labelled=0.04)
    replicates = bootstrap(study, ["snips"], replicates=300)
    assert replicates.values["snips"].shape == (300, 3)
    assert np.isfinite(replicates.values["snips"]).all()
    assert len(np.unique(replicates.values["snips"][:, 1])) == 300


def test_policies_far_from_the_base_give_replicates_that_are_finite() -> None:
    log_ratio = {"up": STUDY.log_ratio["sharp"] * 50 + 2000, "down": STUDY.log_ratio["sharp"] * 50 - 2000}
    log_ratio["cut"] = np.where(np.arange(STUDY.n) < 5, 0.0, -np.inf)
    replicates = bootstrap(replace(STUDY, log_ratio=log_ratio, draws={}), replicates=20)
    for name in ("ips", "snips", "calibrated_ips", "stacked"):
        assert np.isfinite(replicates.values[name]).all()


def test_replicates_come_in_bounded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    kept = module._values
    monkeypatch.setattr(module, "_BATCH", 5 * STUDY.n)
    monkeypatch.setattr(module, "_values", lambda sums, weight: (sizes.append(weight.shape[1]), kept(sums, weight))[1])
    told: list[int] = []
    replicates = bootstrap(STUDY, ["snips"], replicates=12, progress=told.append)
    assert max(sizes) <= 5
    assert sum(sizes) == len(replicates.values["snips"]) == told[-1] == 12


def test_the_order_of_rows_and_prompts_decides_nothing() -> None:
    """A prompt's weights follow its name."""
    rng = np.random.default_rng(1)
    moved, code = take(STUDY, rng.permutation(STUDY.n)), rng.permutation(STUDY.n_prompts)
    names = tuple(STUDY.prompt_ids[at] for at in np.argsort(code))
    draws = {name: Draws(code[d.prompt], d.judge) for name, d in STUDY.draws.items()}
    moved = replace(moved, prompt=code[moved.prompt], prompt_ids=names, draws=draws)
    one, other = (bootstrap(study, ["snips", "dr"], replicates=20) for study in (STUDY, moved))
    for name in ("snips", "dr"):
        np.testing.assert_allclose(one.values[name], other.values[name], atol=1e-12)


def test_every_estimator_has_its_points_and_columns() -> None:
    study = replace(STUDY, draws={"sharp": STUDY.draws["sharp"]})
    replicates = bootstrap(study, replicates=5)
    assert tuple(replicates.values) == ESTIMATORS
    at = {(e.estimator, e.policy): e.value for e in estimate(study)}
    for name in ESTIMATORS:
        for column, policy in enumerate(study.policies):
            point = replicates.points[name][column]
            assert np.isnan(point) if (name, policy) not in at else point == at[name, policy]
            assert np.isnan(replicates.values[name][:, column]).all() == np.isnan(point)


def test_differences_are_paired() -> None:
    """Prompts that are hard for one policy are hard for the other: their difference is surer than either."""
    replicates = bootstrap(STUDY, ["snips"], replicates=1000)
    found = {(d.policy, d.other): d for d in differences(replicates, "snips")}
    alone = dict(zip(STUDY.policies, replicates.values["snips"].std(axis=0, ddof=1), strict=True))
    pair = found["clone", "sharp"]
    assert pair.se < 0.8 * np.hypot(alone["clone"], alone["sharp"])
    weight, score = np.exp(STUDY.log_ratio["sharp"]), estimate(STUDY, ["clone", "sharp"], ["snips"])
    gap = score[0].influence - score[1].influence
    totals = np.bincount(STUDY.prompt, weights=gap)
    assert weight.max() > 1
    assert pair.se == pytest.approx(np.sqrt(np.square(totals).sum()) / STUDY.n, rel=0.12)
    assert pair.value == pytest.approx(score[0].value - score[1].value)
    assert pair.low < pair.value < pair.high


def test_equal_policies_differ_by_nothing_at_all() -> None:
    study = replace(STUDY, log_ratio={"a": STUDY.log_ratio["sharp"], "b": STUDY.log_ratio["sharp"]}, draws={})
    (found,) = differences(bootstrap(study, ["snips"], replicates=50), "snips")
    assert (found.value, found.se, found.low, found.high, found.p) == (0, 0, 0, 0, 1)


def test_near_ties_are_rarely_called_differences() -> None:
    """150 studies of two policies with the same value, which share most of their noise."""
    rejected = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        n = 120
        log_ratio = rng.normal(size=(2, n)) * 0.3
        names = tuple(f"p{at}" for at in range(n))
        nothing = np.full(n, np.nan)
        study = Study(np.arange(n), names, rng.random(n), nothing, np.ones(n), dict(zip("ab", log_ratio, strict=True)))
        (found,) = differences(bootstrap(study, ["snips"], replicates=200, scale="judge", seed=seed), "snips")
        rejected += found.p < 0.05
    assert 1 <= rejected <= 16  # 7.5 expected


def test_p_values_are_adjusted_by_benjamini_and_hochberg() -> None:
    p = np.array([0.04, 0.001, 0.9, 0.03, 0.03])
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p))


def test_no_p_value_is_zero() -> None:
    values = np.column_stack([np.ones(99), np.zeros(99)])
    replicates = Replicates(("a", "b"), {"snips": values}, {"snips": np.array([1.0, 0.0])}, "judge", 99)
    (found,) = differences(replicates, "snips")
    assert found.p == pytest.approx(2 / 100)


def test_what_cannot_be_compared_is_refused() -> None:
    replicates = bootstrap(replace(STUDY, draws={}), ["snips", "dr"], replicates=3)
    assert differences(replicates, "dr") == ()
    with pytest.raises(InputError, match="no dr value of 'sharp'"):
        differences(replicates, "dr", [("sharp", "flat")])
    with pytest.raises(ConfigError, match="'ips' was not bootstrapped"):
        differences(replicates, "ips")
    with pytest.raises(ConfigError, match="lies between 0 and 1"):
        differences(replicates, "snips", level=95)
    with pytest.raises(ConfigError, match="at least 2 replicates"):
        bootstrap(STUDY, replicates=1)


def test_few_prompts_are_held_against_a_t_distribution() -> None:
    """Replicates of a few prompts that agree never cross 0; a t test knows how little that is."""
    gaps = np.array([0.02, 0.11, 0.20])
    weights = np.random.default_rng(3).standard_exponential((40_000, 3))
    values = np.column_stack([weights @ gaps / weights.sum(axis=1), np.zeros(40_000)])
    (found,) = differences(
        Replicates(("a", "b"), {"snips": values}, {"snips": np.array([gaps.mean(), 0.0])}, "judge", 3), "snips"
    )
    expected = ttest_1samp(gaps, 0.0)
    low, high = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=0.03)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)
