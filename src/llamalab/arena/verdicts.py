"""Verdicts on policies: those of the gates, and those on policies that there is nothing to weigh for."""

from __future__ import annotations

from collections.abc import Sequence

from llamalab.arena.run_rows import RunRows
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
    verdict = judge_gates(diagnostics, estimates, ranges)
    if diagnostics.outside_support < 1:
        return verdict
    sentence = f"Every weight is zero: {name} can say none of the {diagnostics.n:,} logged responses."
    remedy = (
        f"Widen the top_k, top_p or min_p of {name}, or log responses that it can give. If it has fresh draws, read "
        "the direct estimate."
    )
    others = [reason for reason in verdict.reasons if reason.gate not in ("ess", "n_ess")]
    return Verdict("REFUSED", (Reason("ess", 0.0, ESS_SHOWN, sentence, remedy), *others))
