"""A/A: the base against its own clone, and scores against what was said at generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llamalab.arena.results import AACheck, PolicyResult
from llamalab.arena.run_rows import RunRows


def check_clone(rows: RunRows, policies: Sequence[PolicyResult], gap: Gap) -> AACheck | None:
    """The base against its clone: PASSED if every log ratio is exactly 0."""
    found = next((each.diagnostics for each in policies if each.role == "clone"), None)
    if found is None:
        return None
    passed = found.share_equal == 1.0
    if passed:
        sentence = f"Each of {found.n:,} rows has the same log probability under {found.policy}, bit by bit."
    else:
        sentence = (
            f"{100 * (1 - found.share_equal):.3g}% of the rows have another log probability under {found.policy}, by "
            f"up to {found.largest_gap or math.inf:.3g} nats, though it is the same policy. That alone leaves an ESS "
            f"of {100 * found.ess:.3g}%: no estimate is better than its scorer. Use one that repeats itself."
        )
    return AACheck(
        state="PASSED" if passed else "FAILED",
        policy=found.policy,
        rows=found.n,
        share_equal=found.share_equal,
        ess=found.ess,
        mean_weight=found.mean_weight,
        largest_gap=found.largest_gap,
        generation_rows=gap.rows,
        generation_gap=gap.largest,
        generation_gap_mean=gap.mean,
        sentence=sentence,
        how=str(rows.aa.get("how") or "as every other policy, in the same run"),
    )


@dataclass(frozen=True, slots=True)
class Gap:
    """Between the base's scores and what was said at generation.

    Attributes:
        rows: that have both.
        largest: nats; None without rows.
        mean: nats; None without rows.
    """

    rows: int
    largest: float | None
    mean: float | None


def generation_gap(rows: RunRows) -> Gap:
    """How far the base's scores lie from the log probabilities of the moment of generation."""
    gaps = [
        abs(row.generation - row.logprobs[rows.base])
        for row in rows.rows
        if row.generation is not None and math.isfinite(row.logprobs.get(rows.base, math.nan))
    ]
    return Gap(len(gaps), max(gaps, default=None), sum(gaps) / len(gaps) if gaps else None)
