"""Verdicts on policies: those of the gates, and those on policies that there is nothing to weigh for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from llamalab.arena.run_rows import JUDGE, ORACLE, LoggedRow, RunRows
from llamalab.ope.diagnostics import Diagnostics
from llamalab.ope.estimators import Estimate
from llamalab.ope.gates import ESS_SHOWN, FAILURES_REFUSED, Reason, Verdict, judge_gates


def verdict_on(
    rows: RunRows, name: str, diagnostics: Diagnostics | None, estimates: Sequence[Estimate], failed: str
) -> Verdict:
    """Whether a number of a target may be shown, and why not.

    Args:
        rows: of the run.
        name: of the target.
        diagnostics: of the target; None: no row has both its log probability and a judge score.
        estimates: of the target; empty: there is nothing to estimate from.
        failed: what failed most, in words; may be empty.
    """
    if diagnostics is None:
        why = f": {failed}" if failed else ""
        sentence = f"None of the {len(rows.rows):,} rows has a log probability under {name}{why}."
        return Verdict(
            "REFUSED", (Reason("failures", 1.0, FAILURES_REFUSED, sentence, rows.sources["logprob"].remedy),)
        )
    ranges = {"judge": rows.judge_range, "oracle": rows.outcome_range or rows.judge_range}
    verdict = with_remedy(rows, name, judge_gates(diagnostics, estimates, ranges))
    if diagnostics.outside_support < 1:
        return verdict
    sentence = f"Every weight is zero: {name} can say none of the {diagnostics.n:,} logged responses."
    remedy = (
        f"Widen the top_k, top_p or min_p of {name}, or log responses that it can give. If it has fresh draws, read "
        "the direct estimate."
    )
    others = [reason for reason in verdict.reasons if reason.gate not in ("ess", "n_ess")]
    return Verdict("REFUSED", (Reason("ess", 0.0, ESS_SHOWN, sentence, remedy), *others))


def with_remedy(rows: RunRows, name: str, verdict: Verdict) -> Verdict:
    """A verdict whose reason of failures says what to do about those that there are."""
    found = Counter(kind for row in rows.rows if (kind := _failed(rows, name, row)) is not None)
    found["judge"] += sum(draw.error is not None for draw in rows.draws.get(name, ()))
    if not found.total():
        return verdict
    remedy = rows.sources[found.most_common(1)[0][0]].remedy
    reasons = (replace(each, remedy=remedy) if each.gate == "failures" else each for each in verdict.reasons)
    return replace(verdict, reasons=tuple(reasons))


def _failed(rows: RunRows, name: str, row: LoggedRow) -> str | None:
    """What of a row has to be made anew before a policy has its number."""
    if rows.base in row.errors and row.errors[rows.base] == row.errors.get(JUDGE):
        return "response"  # what could not be written was neither scored nor judged
    if rows.base in row.errors or name in row.errors:
        return "logprob"
    if JUDGE in row.errors:
        return "judge"
    return "label" if ORACLE in row.errors else None
