"""From rows to results: verdicts, failures, scales, the A/A check, and rows that cannot be."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from llamalab.arena.evaluation import evaluate
from llamalab.arena.report.html import page
from llamalab.arena.results import Results, Value
from llamalab.arena.run_rows import ORACLE, LoggedRow, RunRows
from llamalab.errors import InputError
from tests.arena.rows_cases import failing, made_rows


@pytest.fixture(scope="module")
def rows() -> RunRows:
    return made_rows()


@pytest.fixture(scope="module")
def results(rows: RunRows) -> Results:
    return evaluate(rows)


def value(results: Results, policy: str, estimator: str, scale: str = "judge") -> Value:
    (found,) = (v for v in results.policy(policy).values if (v.estimator, v.scale) == (estimator, scale))
    return found


def test_each_policy_has_its_verdict_and_only_who_is_shown_a_headline(results: Results) -> None:
    assert {each.name: each.verdict.state for each in results.policies} == {
        "p0": "SHOWN",
        "pi_clone": "SHOWN",
        "near": "SHOWN",
        "far": "REFUSED",
    }
    assert results.policy("far").headline is None
    near = results.policy("near").headline
    assert near is not None
    assert (near.estimator, near.scale) == ("stacked", "oracle")
    assert results.policy("near").truth == 0.53


def test_weighted_means_are_those_of_numpy(rows: RunRows, results: Results) -> None:
    score = np.array([row.judge for row in rows.rows], dtype=float)
    for name in ("near", "far"):
        weight = np.exp([row.logprobs[name] + 40.0 for row in rows.rows])
        assert value(results, name, "snips").value == pytest.approx(np.average(score, weights=weight))
        assert value(results, name, "ips").value == pytest.approx(np.mean(weight * score))
    assert value(results, "p0", "mean").value == pytest.approx(score.mean())


def test_a_clone_has_the_base_s_value_and_passes(results: Results) -> None:
    aa = results.aa
    assert aa is not None
    assert (aa.state, aa.rows, aa.share_equal, aa.ess, aa.mean_weight, aa.largest_gap) == ("PASSED", 200, 1, 1, 1, 0)
    assert value(results, "pi_clone", "snips").value == pytest.approx(value(results, "p0", "mean").value, abs=1e-12)
    assert results.policy("pi_clone").heaviest == ()


def test_scores_are_held_against_those_of_generation(results: Results) -> None:
    assert results.aa is not None
    assert results.aa.generation_rows == 200
    assert results.aa.generation_gap == pytest.approx(1e-6, rel=1e-3)
    assert results.aa.generation_gap_mean == pytest.approx(5e-7, rel=1e-3)


def test_scores_are_held_against_generation_without_a_clone_too(rows: RunRows) -> None:
    found = evaluate(replace(rows, clone=None))
    assert found.aa is None
    assert found.facts["scores against generation"] == "200 rows; largest gap 1e-06 nats, mean 5e-07"


def test_one_row_that_differs_fails_the_clone(rows: RunRows) -> None:
    first = replace(rows.rows[0], logprobs={**rows.rows[0].logprobs, "pi_clone": -40.0 + 1e-12})
    found = evaluate(replace(rows, rows=(first, *rows.rows[1:])))
    assert found.aa is not None
    assert found.aa.state == "FAILED"
    assert found.aa.share_equal == pytest.approx(0.995)
    assert any("A/A check failed" in note for note in found.notes)


def test_shown_policies_are_compared_with_the_base_and_the_clone_is_not(results: Results) -> None:
    (found,) = results.comparisons
    assert (found.first, found.second) == ("near", "p0")
    near, base = results.policy("near").headline, results.policy("p0").headline
    assert near is not None
    assert base is not None
    assert found.difference == pytest.approx(near.value - base.value)  # type: ignore[operator]
    assert found.low < found.difference < found.high
    assert found.sentence.startswith("near is better than p0 by")


def test_without_an_oracle_values_are_judge_scores_and_say_so() -> None:
    found = evaluate(made_rows(labels=0))
    assert found.scale == "judge"
    assert found.calibration is None
    assert {v.scale for policy in found.policies for v in policy.values} == {"judge"}
    assert any("no oracle" in note for note in found.notes)


def test_labels_chosen_by_hand_calibrate_nothing(rows: RunRows) -> None:
    found = evaluate(replace(rows, random_labels=False))
    assert found.scale == "judge"
    assert found.calibration is None
    assert any("chosen by hand" in note for note in found.notes)


def test_labels_on_every_row_count_whoever_chose_them() -> None:
    found = evaluate(replace(made_rows(labels=1.0), random_labels=False))
    assert found.scale == "oracle"


def test_a_few_failures_cost_every_policy_the_same_rows(rows: RunRows) -> None:
    found = evaluate(failing(rows, "far", 2))
    for name in ("pi_clone", "near", "far"):
        diagnostics = found.policy(name).diagnostics
        assert diagnostics is not None
        assert diagnostics.n == 198
        assert diagnostics.failure_rate == pytest.approx(0.01)
    assert found.policy("far").failures == {"context_overflow": 2}
    assert found.policy("near").verdict.state == "SHOWN"


def test_a_policy_that_fails_often_is_refused_and_costs_the_others_nothing(rows: RunRows) -> None:
    found = evaluate(failing(rows, "near", 3))
    near, clone = found.policy("near"), found.policy("pi_clone")
    assert near.verdict.state == "REFUSED"
    assert [reason.gate for reason in near.verdict.reasons] == ["failures"]
    assert "--only logprobs --force" in near.verdict.reasons[0].remedy
    assert {v.estimator for v in near.values} == {"draws"}
    assert clone.diagnostics is not None
    assert clone.diagnostics.n == 200
    assert clone.verdict.state == "SHOWN"


def test_a_judge_that_fails_often_refuses_every_target(rows: RunRows) -> None:
    found = evaluate(failing(rows, "judge", 3))
    assert {each.name: each.verdict.state for each in found.policies if each.role != "base"} == {
        "pi_clone": "REFUSED",
        "near": "REFUSED",
        "far": "REFUSED",
    }


def test_draws_that_fail_often_refuse_their_policy(rows: RunRows) -> None:
    draws = tuple(
        replace(draw, judge=None, error="judge") if at < 2 else draw for at, draw in enumerate(rows.draws["near"])
    )
    found = evaluate(replace(rows, draws={"near": draws}))
    assert found.policy("near").verdict.state == "REFUSED"
    assert found.policy("near").failures == {"draw: judge": 2}


def test_a_row_outside_the_support_weighs_nothing(rows: RunRows) -> None:
    out = replace(rows.rows[0], logprobs={**rows.rows[0].logprobs, "near": -math.inf})
    found = evaluate(replace(rows, rows=(out, *rows.rows[1:])))
    near = found.policy("near")
    assert near.verdict.state == "SHOWN"
    assert near.diagnostics is not None
    assert near.diagnostics.outside_support == pytest.approx(1 / 200)
    assert near.weights is not None
    assert near.weights.outside == 1
    assert sum(near.weights.log_weights.counts) == 199


def test_the_heaviest_rows_are_the_heaviest(rows: RunRows, results: Results) -> None:
    largest = max(rows.rows, key=lambda row: row.logprobs["far"])
    first = results.policy("far").heaviest[0]
    assert (first.response_id, first.prompt) == (largest.response_id, rows.prompts[largest.prompt_id])
    assert first.log_ratio == pytest.approx(largest.logprobs["far"] + 40.0)


def test_typicality_is_of_surprisal_per_token(rows: RunRows) -> None:
    """Half the rows are long, likely word by word, and hold all weight: the short ones are no more typical for it."""

    def made(at: int, row: LoggedRow) -> LoggedRow:
        length, each = (100, 1.0) if at % 2 else (5, 5.0)
        under = -length * each
        logprobs = {"near": under, "p0": under if at % 2 else under + 20.0}
        return replace(row, logprobs=logprobs, lengths=dict.fromkeys(logprobs, length))

    changed = tuple(made(at, row) for at, row in enumerate(rows.rows))
    found = evaluate(replace(rows, rows=changed, targets=("near",), clone=None)).policy("near").diagnostics
    assert found is not None
    assert found.typicality == 0.5


def test_order_of_rows_changes_no_value(rows: RunRows, results: Results) -> None:
    found = evaluate(replace(rows, rows=tuple(reversed(rows.rows))))
    for name in ("near", "far"):
        for one, other in zip(found.policy(name).values, results.policy(name).values, strict=True):
            assert (one.value, one.se) == pytest.approx((other.value, other.se), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: replace(rows, rows=()), "no responses to evaluate"),
        (
            lambda rows: failing(rows, "judge", 200),
            r"nowhere/judged\.jsonl, field 'score': none of the 200 responses has a judge score \(the judge: "
            r"context_overflow, 200 times\)\. .*--only judge --force",
        ),
        (
            lambda rows: failing(rows, "p0", 200),
            r"nowhere/logprobs\.jsonl, field 'policies': none of the 200 responses has a log probability under p0 .*--",
        ),
        (
            lambda rows: replace(
                rows, rows=(*failing(rows, "judge", 100).rows[:100], *failing(rows, "p0", 200).rows[100:])
            ),
            r"none of the 200 responses has a log probability under p0 together with a judge score",
        ),
        (
            lambda rows: replace(rows, rows=tuple(replace(row, prompt_id="p0") for row in rows.rows), draws={}),
            "one prompt",
        ),
        (
            lambda rows: (
                replace(rows, rows=tuple(replace(row, label=None) if at else row for at, row in enumerate(rows.rows)))
                if rows.rows[0].label is not None
                else replace(
                    rows, rows=(replace(rows.rows[0], label=0.5), *(replace(r, label=None) for r in rows.rows[1:]))
                )
            ),
            r"nowhere/labels\.jsonl, field 'label': only one prompt has labels.*oracle\.fraction",
        ),
        (
            lambda rows: replace(
                rows, rows=tuple(replace(row, logprobs={**row.logprobs, "p0": -math.inf}) for row in rows.rows)
            ),
            "the base p0 can never give its own response 'r0'",
        ),
    ],
    ids=[
        "no rows",
        "no scores",
        "base not scored",
        "nothing together",
        "one prompt",
        "one label",
        "base outside itself",
    ],
)
def test_too_little_to_evaluate_is_said(rows: RunRows, change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(change(rows))


@pytest.mark.parametrize("draws", [True, False])
def test_a_policy_that_no_row_has_a_number_for_is_refused_alone(draws: bool) -> None:
    """The others are estimated as if it were not there."""
    rows = made_rows(draws=draws)
    without = evaluate(replace(rows, targets=("pi_clone", "far")))
    found = evaluate(failing(rows, "near", 200))
    near = found.policy("near")
    (reason,) = near.verdict.reasons
    assert (near.verdict.state, near.headline, near.diagnostics, near.weights) == ("REFUSED", None, None, None)
    assert reason.sentence == ("None of the 200 rows has a log probability under near: context_overflow, 200 times.")
    assert "--only logprobs --force" in reason.remedy
    assert {v.estimator for v in near.values} == ({"draws"} if draws else set())
    assert near.failures == {"context_overflow": 200}
    assert reason.sentence in page(found)
    for name in ("p0", "pi_clone", "far"):
        assert found.policy(name) == without.policy(name)


def test_a_policy_that_can_say_nothing_in_the_log_is_refused_alone(rows: RunRows) -> None:
    outside = tuple(replace(row, logprobs={**row.logprobs, "far": -math.inf}) for row in rows.rows)
    found = evaluate(replace(rows, rows=outside))
    far = found.policy("far")
    assert (far.verdict.state, far.headline) == ("REFUSED", None)
    assert far.verdict.reasons[0].sentence == "Every weight is zero: far can say none of the 200 logged responses."
    assert "top_p" in far.verdict.reasons[0].remedy
    assert far.diagnostics is not None
    assert (far.diagnostics.ess, far.diagnostics.outside_support) == (0.0, 1.0)
    assert found.policy("near").verdict.state == "SHOWN"


def test_where_every_target_is_refused_the_base_still_has_its_value(rows: RunRows) -> None:
    for name in ("pi_clone", "near", "far"):
        rows = failing(rows, name, 200) if name != "far" else rows
    found = evaluate(replace(rows, targets=("pi_clone", "near")))
    assert {each.name: each.verdict.state for each in found.policies} == {
        "p0": "SHOWN",
        "pi_clone": "REFUSED",
        "near": "REFUSED",
    }
    assert found.aa is None


def test_a_judge_that_fails_often_refuses_the_base_too(rows: RunRows) -> None:
    base = evaluate(failing(rows, "judge", 3)).policy("p0")
    assert (base.verdict.state, base.headline) == ("REFUSED", None)
    assert "--only judge --force" in base.verdict.reasons[0].remedy


def test_an_oracle_that_fails_often_refuses_every_policy(rows: RunRows) -> None:
    """What it fails on is no random few: the labels that are left are of other responses."""
    labelled = [row.response_id for row in rows.rows if row.label is not None]
    failed = {*labelled[: len(labelled) // 4]}
    changed = tuple(
        replace(row, label=None, errors={ORACLE: "function"}) if row.response_id in failed else row for row in rows.rows
    )
    found = evaluate(replace(rows, rows=changed))
    assert {each.verdict.state for each in found.policies} == {"REFUSED"}
    assert found.policy("near").failures == {"oracle: function": len(failed)}
    assert "--only labels --force" in found.policy("near").verdict.reasons[0].remedy


def test_one_label_that_failed_refuses_nobody(rows: RunRows) -> None:
    at = next(at for at, row in enumerate(rows.rows) if row.label is not None)
    lost = replace(rows.rows[at], label=None, errors={ORACLE: "function"})
    found = evaluate(replace(rows, rows=(*rows.rows[:at], lost, *rows.rows[at + 1 :])))
    assert found.policy("near").verdict.state == "SHOWN"


def test_labels_and_their_probabilities_have_to_agree(rows: RunRows) -> None:
    """A file that labels half the responses and says that each was sure to be labelled would count half of what it
    corrects."""
    sure = tuple(row if row.label is None else replace(row, probability=1.0) for row in rows.rows)
    with pytest.raises(InputError, match=r"of 200 responses were labelled, .* about 200\. .*oracle\.fraction"):
        evaluate(replace(rows, rows=sure))
    stopped = tuple(row if at < 100 else replace(row, label=None, probability=None) for at, row in enumerate(rows.rows))
    with pytest.raises(InputError, match="the step 'labels' was stopped"):
        evaluate(replace(rows, rows=stopped))


def test_an_oracle_without_a_label_is_no_judge_s_scale(rows: RunRows) -> None:
    without = tuple(replace(row, label=None, probability=None) for row in rows.rows)
    with pytest.raises(InputError, match=r"no response has a label of it\. Raise oracle\.fraction"):
        evaluate(replace(rows, rows=without))


def test_a_draw_that_cannot_be_scored_hides_no_bennett(rows: RunRows) -> None:
    draws = tuple(
        replace(draw, base=-40.0, target=None if at == 0 else -39.9) for at, draw in enumerate(rows.draws["near"])
    )
    diagnostics = evaluate(replace(rows, draws={"near": draws})).policy("near").diagnostics
    assert diagnostics is not None
    assert diagnostics.bennett_z is not None
    assert diagnostics.failure_rate == pytest.approx(1 / len(draws))


def test_outcomes_that_are_all_alike_are_said() -> None:
    rows = made_rows(labels=0.0)
    found = evaluate(replace(rows, rows=tuple(replace(row, judge=1.0) for row in rows.rows)))
    assert any(note.startswith("All outcomes are 1,") for note in found.notes)
