"""Each gate by itself: on its threshold, on both sides of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llamalab.ope.diagnostics import Diagnostics, diagnose
from llamalab.ope.estimators import ESTIMATORS, Estimate, estimate
from llamalab.ope.gates import MEANING, judge_base, judge_gates
from llamalab.ope.study import Study

RANGES = {"oracle": (0.0, 1.0), "judge": (0.0, 10.0)}


@pytest.fixture
def good() -> Diagnostics:
    n = 1000
    judge = np.linspace(0, 1, n)
    names = tuple(f"p{at}" for at in range(n))
    study = Study(np.arange(n), names, judge, np.full(n, np.nan), np.ones(n), {"b": np.zeros(n)})
    return diagnose(study, "b")


def ips(value: float, scale: str = "oracle", policy: str = "b", name: str = "ips") -> Estimate:
    return Estimate(name, policy, scale, value, 0.1, value - 0.2, value + 0.2, 99.0, np.zeros(3))  # type: ignore[arg-type]


def test_a_policy_without_fault_is_shown(good: Diagnostics) -> None:
    verdict = judge_gates(good, [ips(0.5)], RANGES)
    assert (verdict.state, verdict.reasons) == ("SHOWN", ())


@pytest.mark.parametrize(
    ("ess", "n_ess", "state", "gates"),
    [
        (0.30, 300.0, "SHOWN", []),
        (0.299, 299.0, "CAUTION", ["ess"]),
        (0.10, 100.0, "CAUTION", ["ess"]),
        (0.0999, 999.0, "REFUSED", ["ess"]),
        (0.5, 100.0, "SHOWN", []),
        (0.5, 99.9, "CAUTION", ["n_ess"]),
        (0.5, 30.0, "CAUTION", ["n_ess"]),
        (0.5, 29.9, "REFUSED", ["n_ess"]),
        (0.2, 20.0, "REFUSED", ["n_ess", "ess"]),
    ],
)
def test_overlap_decides(good: Diagnostics, ess: float, n_ess: float, state: str, gates: list[str]) -> None:
    verdict = judge_gates(replace(good, ess=ess, n_ess=n_ess), [], RANGES)
    assert verdict.state == state
    assert [reason.gate for reason in verdict.reasons] == gates


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (ips(1.0), "SHOWN"),
        (ips(1.0 + 1e-12), "SHOWN"),
        (ips(1.29), "SHOWN"),  # 2.9 of its standard errors
        (ips(1.31), "REFUSED"),
        (ips(-0.31), "REFUSED"),
        (ips(1.31, "judge"), "SHOWN"),
        (ips(1.31, name="snips"), "SHOWN"),
        (ips(1.31, policy="other"), "SHOWN"),
    ],
)
def test_raw_ips_must_be_possible_on_its_scale(good: Diagnostics, found: Estimate, state: str) -> None:
    assert judge_gates(good, [found], RANGES).state == state


def test_raw_ips_that_is_out_by_chance_is_no_excuse_where_rows_do_not_overlap(good: Diagnostics) -> None:
    """There its standard error says as little as it does."""
    for poor in (replace(good, ess=0.29, n_ess=290.0), replace(good, ess=0.9, n_ess=90.0)):
        assert judge_gates(poor, [ips(1.01)], RANGES).reasons[0].gate == "raw_ips"


def test_outcomes_at_the_top_of_the_range_refuse_no_honest_policy() -> None:
    """All outcomes are 1, so raw IPS is the mean weight, and that is above 1 in every second log."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(200):
        log_ratio = 0.8 * rng.standard_normal(500) - 0.32
        names = tuple(f"p{at}" for at in range(500))
        study = Study(np.arange(500), names, np.ones(500), np.ones(500), np.ones(500), {"b": log_ratio})
        found = judge_gates(diagnose(study, "b"), estimate(study, None, ("ips", "snips")), {"oracle": (0.0, 1.0)})
        refused += any(reason.gate == "raw_ips" for reason in found.reasons)
    assert refused <= 4


def test_labels_that_carry_both_means_out_of_range_refuse_nothing(good: Diagnostics) -> None:
    """Outcomes near 1 and few labels: SNIPS is out too, so the weights did not do it."""
    assert judge_gates(good, [ips(1.31), ips(1.005, name="snips")], RANGES).state == "SHOWN"
    assert judge_gates(good, [ips(-0.31), ips(-0.005, name="snips")], RANGES).state == "SHOWN"
    assert judge_gates(good, [ips(1.31), ips(0.8, name="snips")], RANGES).state == "REFUSED"
    assert judge_gates(good, [ips(1.31), ips(1.2, "judge", name="snips")], RANGES).state == "REFUSED"


@pytest.mark.parametrize(("rate", "state"), [(0.01, "SHOWN"), (0.0101, "REFUSED")])
def test_failures_refuse(good: Diagnostics, rate: float, state: str) -> None:
    assert judge_gates(replace(good, failure_rate=rate), [], RANGES).state == state


@pytest.mark.parametrize(
    ("z", "n_ess", "state"), [(3.0, 500.0, "SHOWN"), (-3.1, 500.0, "REFUSED"), (3.1, 500.0, "REFUSED")]
)
def test_a_mean_weight_that_is_not_one_refuses(good: Diagnostics, z: float, n_ess: float, state: str) -> None:
    assert judge_gates(replace(good, mean_weight_z=z, n_ess=n_ess), [], RANGES).state == state


def test_a_mean_weight_below_one_has_two_readings_and_one_above_has_one(good: Diagnostics) -> None:
    low, high = (judge_gates(replace(good, mean_weight_z=z), [], RANGES).reasons[0].sentence for z in (-3.5, 3.5))
    assert low.endswith("came from, or the policy says what the base hardly ever does, and the log does not hold it.")
    assert high.endswith("came from.")


def test_the_mean_weight_is_not_asked_where_too_few_rows_count(good: Diagnostics) -> None:
    """Skewed weights make its standard error too small there; the ESS gate has the word."""
    verdict = judge_gates(replace(good, mean_weight_z=-50.0, n_ess=99.0), [], RANGES)
    assert [reason.gate for reason in verdict.reasons] == ["n_ess"]


@pytest.mark.parametrize(("z", "state"), [(None, "SHOWN"), (2.9, "SHOWN"), (-3.1, "REFUSED")])
def test_bennett_refuses(good: Diagnostics, z: float | None, state: str) -> None:
    assert judge_gates(replace(good, bennett_z=z), [], RANGES).state == state


@pytest.mark.parametrize(
    ("seen", "state"), [(None, "SHOWN"), (0.30, "SHOWN"), (0.299, "CAUTION"), (0.10, "CAUTION"), (0.0999, "REFUSED")]
)
def test_the_draws_of_the_policy_can_tell_that_the_log_flatters(
    good: Diagnostics, seen: float | None, state: str
) -> None:
    verdict = judge_gates(replace(good, draws_ess=seen), [], RANGES)
    assert verdict.state == state
    assert [reason.gate for reason in verdict.reasons] == ([] if state == "SHOWN" else ["draws_ess"])


def test_what_is_only_shown_never_refuses(good: Diagnostics) -> None:
    odd = replace(
        good, ess_calibrated=0.01, hill=0.3, largest_share=0.9, judge_overlap=0.0, typicality=0.0, log_ratio_sd=9.0
    )
    assert judge_gates(odd, [], RANGES).state == "SHOWN"


def test_the_worst_reason_comes_first_and_each_says_numbers_and_remedy(good: Diagnostics) -> None:
    verdict = judge_gates(replace(good, ess=0.2, n_ess=200.0, failure_rate=0.05), [ips(18.06, "judge")], RANGES)
    assert verdict.state == "REFUSED"
    assert [reason.gate for reason in verdict.reasons] == ["raw_ips", "failures", "ess"]
    assert "18.1 on the judge's scale, where 0 to 10 is possible" in verdict.reasons[0].sentence
    assert all(reason.remedy.endswith((".", "kept.")) for reason in verdict.reasons)


def test_the_remedy_for_too_few_rows_says_how_many(good: Diagnostics) -> None:
    (reason,) = judge_gates(replace(good, n=120, ess=0.5, n_ess=60.0), [], RANGES).reasons
    assert "Log about 220 rows" in reason.remedy


def test_every_estimator_has_its_meaning() -> None:
    assert set(MEANING) == set(ESTIMATORS)


def test_labels_that_carry_means_far_out_of_range_refuse(good: Diagnostics) -> None:
    """One label with a tiny probability can put any number there."""
    verdict = judge_gates(good, [ips(-38.0), ips(-38.2, name="snips")], RANGES)
    assert verdict.state == "REFUSED"
    assert "small probabilities" in verdict.reasons[0].sentence


@pytest.mark.parametrize(
    ("rate", "mean", "state"),
    [(0.01, 0.5, "SHOWN"), (0.02, 0.5, "REFUSED"), (0.0, 1.05, "SHOWN"), (0.0, -5.0, "REFUSED")],
)
def test_the_base_is_refused_for_failures_and_impossible_means(rate: float, mean: float, state: str) -> None:
    assert judge_base(rate, mean, "oracle", RANGES["oracle"]).state == state
