"""When an estimate may be shown. Every threshold stands here, with its meaning, and nowhere else.

All are on raw weights. Weights that were smoothed over the judge score look well even where nothing is known: their ESS
of 99% may only mean that the estimate is the base's own mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from llamalab.ope.diagnostics import Diagnostics
from llamalab.ope.estimators import Estimate

State: TypeAlias = Literal["SHOWN", "CAUTION", "REFUSED"]
"""SHOWN: a headline number. CAUTION: the diagnostics, but no headline number. REFUSED: neither; what would help."""

ESS_SHOWN = 0.30
"""ESS/n from which an estimate is shown: below, a tenth of the rows may decide it and its interval is too short."""

ESS_CAUTION = 0.10
"""ESS/n below which it is refused: the rows that would count most are probably not in the log at all."""

N_ESS_SHOWN = 100.0
"""Rows that the weighted ones are worth, from which the normal approximation behind an interval holds."""

N_ESS_CAUTION = 30.0
"""The same below which nothing is said."""

FAILURES_REFUSED = 0.01
"""Share of rows without a number, or of labels that failed, above which it is refused: they are not a random few."""

Z_REFUSED = 3.0
"""Standard errors by which what must be 1 (mean weight) or 0 (Bennett's identity) may be off."""

HILL_HEAVY = 2.0
"""Tail index at or below which weights have no finite variance; shown, never refusing: it is too uncertain itself."""

MEANING: Mapping[str, str] = {
    "ips": "The mean of weight times outcome. Unbiased, but it needs a mean weight near 1: one heavy row moves it.",
    "snips": "The weighted mean. It never leaves the outcome's range, so it looks sensible even where a single row "
    "decides it: only the ESS tells.",
    "calibrated_ips": "Weights smoothed over the judge score. It varies less; where raw weights say nothing it returns "
    "the base's own mean, so the gates look at the raw ones.",
    "dr": "Fresh draws, corrected by weighted residuals. The draws carry most of it, but the correction is only as "
    "good as the weights.",
    "stacked": "The mix of the others with the least variance. It is as good as they are, so their gates are its own.",
}
"""What the gates mean for each estimator."""

_ROUNDING = 1e-9  # of the range
_LABELS = 0.1  # of the range: how far labels near its end can move a mean out of it

_ORDER: Mapping[State, int] = {"SHOWN": 0, "CAUTION": 1, "REFUSED": 2}


@dataclass(frozen=True, slots=True)
class Reason:
    """One gate that an estimate did not pass.

    Attributes:
        gate: its name: ess, n_ess, draws_ess, raw_ips, failures, mean_weight or bennett.
        value: what was found.
        threshold: what it is held against.
        sentence: what that means, in words and with the numbers.
        remedy: what would help.
    """

    gate: str
    value: float
    threshold: float
    sentence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an estimate may be shown, and why not.

    Attributes:
        state: the worst of what the gates say.
        reasons: of the gates that were not passed, the worst first; empty for SHOWN.
    """

    state: State
    reasons: tuple[Reason, ...] = ()


def judge_gates(
    diagnostics: Diagnostics, estimates: Sequence[Estimate], ranges: Mapping[str, tuple[float, float]]
) -> Verdict:
    """Whether the estimates of a policy may be shown.

    Args:
        diagnostics: of the policy.
        estimates: of the same policy; its raw IPS is looked at, on each scale.
        ranges: least and largest outcome, by scale.
    """
    found = [
        *_ess(diagnostics),
        *_raw_ips(diagnostics, estimates, ranges),
        *_failures(diagnostics.failure_rate),
        *_identities(diagnostics),
    ]
    if not found:
        return Verdict("SHOWN")
    found.sort(key=lambda each: -_ORDER[each[0]])
    return Verdict(found[0][0], tuple(reason for _, reason in found))


def judge_base(failure_rate: float, mean: float, scale: str, limits: tuple[float, float]) -> Verdict:
    """Whether the base's own mean may be shown: nothing is weighed, but rows and labels can fail there too."""
    found = [reason for _, reason in _failures(failure_rate)]
    low, high = limits
    if max(low - mean, mean - high) > _LABELS * (high - low):
        found.append(_outside(mean, scale, low, high))
    return Verdict("REFUSED", tuple(found)) if found else Verdict("SHOWN")


def _ess(diagnostics: Diagnostics) -> list[tuple[State, Reason]]:
    """By the logged rows, and by the policy's own draws where they are scored under both."""
    found = []
    n, ess, n_ess = diagnostics.n, diagnostics.ess, diagnostics.n_ess
    nearer = "Ask about a policy nearer the base, let a policy nearer this one write the responses"
    if ess < ESS_SHOWN:
        sentence = (
            f"The {n:,} rows are worth {_rows(n_ess)} of the policy's own ({_percent(ess)}); an estimate needs "
            f"{_percent(ESS_SHOWN)}. Its typical responses are hardly in the log."
        )
        remedy = f"{nearer}, or give it fresh draws and read the direct estimate. More rows like these do not help."
        state: State = "REFUSED" if ess < ESS_CAUTION else "CAUTION"
        found.append((state, Reason("ess", ess, ESS_SHOWN, sentence, remedy)))
    if n_ess < N_ESS_SHOWN:
        sentence = f"The rows are worth {_rows(n_ess)} of the policy's own; an interval needs {N_ESS_SHOWN:g}."
        remedy = f"{nearer}, or give it fresh draws and read the direct estimate."
        if ess >= ESS_SHOWN:
            remedy = f"Log about {10 * math.ceil(0.11 * N_ESS_SHOWN / ess):,} rows: at this overlap they are enough."
        state = "REFUSED" if n_ess < N_ESS_CAUTION else "CAUTION"
        found.append((state, Reason("n_ess", n_ess, N_ESS_SHOWN, sentence, remedy)))
    seen = diagnostics.draws_ess
    if seen is not None and seen < ESS_SHOWN:
        sentence = (
            f"By the policy's own fresh draws the rows are worth {_percent(seen)}, not {_percent(ess)}; an estimate "
            f"needs {_percent(ESS_SHOWN)}. It often says what the base hardly ever does, and the log does not show it."
        )
        remedy = "Read the direct estimate from the fresh draws, or ask about a policy nearer the base."
        state = "REFUSED" if seen < ESS_CAUTION else "CAUTION"
        found.append((state, Reason("draws_ess", seen, ESS_SHOWN, sentence, remedy)))
    return found


def _raw_ips(
    diagnostics: Diagnostics, estimates: Sequence[Estimate], ranges: Mapping[str, tuple[float, float]]
) -> list[tuple[State, Reason]]:
    """Not refused where SNIPS is a little outside on the same side: then labels near the end of the range did it.

    Nor where the rows overlap and it is outside by chance: outcomes near an end of the range times weights that average
    1 but for their error.
    """
    overlap = diagnostics.ess >= ESS_SHOWN and diagnostics.n_ess >= N_ESS_SHOWN
    found: list[tuple[State, Reason]] = []
    own = [each for each in estimates if each.policy == diagnostics.policy]
    snips = {each.scale: each.value for each in own if each.estimator == "snips"}
    for estimate in sorted(own, key=lambda each: each.scale):  # the judge's first: it does not depend on labels
        low, high = ranges[estimate.scale]
        slack = _ROUNDING * (high - low)
        if estimate.estimator != "ips" or low - slack <= estimate.value <= high + slack:
            continue
        if overlap and max(estimate.value - high, low - estimate.value) <= Z_REFUSED * estimate.se:
            continue
        weighted = snips.get(estimate.scale, low)
        beyond = weighted - high if estimate.value > high else low - weighted
        if 0 < beyond <= _LABELS * (high - low):
            continue
        if beyond > 0:
            found.append(("REFUSED", _outside(weighted, estimate.scale, low, high)))
            continue
        sentence = (
            f"The raw weighted mean is {estimate.value:.3g} on the {estimate.scale}'s scale, where {low:g} to {high:g} "
            f"is possible: the weights do not average 1 (their mean is {diagnostics.mean_weight:.3g})."
        )
        remedy = "Check that the scorer of base and target is the model, template and sampler that generated; then ESS."
        threshold = high if estimate.value > high else low
        found.append(("REFUSED", Reason("raw_ips", estimate.value, threshold, sentence, remedy)))
    return found[:1]


def _outside(mean: float, scale: str, low: float, high: float) -> Reason:
    """Of a mean that no weights explain: on the judge's scale there is none, for it is a mean of scores."""
    sentence = (
        f"The mean is {mean:.3g} on the {scale}'s scale, where {low:g} to {high:g} is possible: a few labels with "
        "small probabilities outweigh all others."
    )
    remedy = "Check the probabilities of the labels, or label more rows, with probabilities nearer each other."
    return Reason("raw_ips", mean, high if mean > high else low, sentence, remedy)


def _failures(rate: float) -> list[tuple[State, Reason]]:
    if rate <= FAILURES_REFUSED:
        return []
    sentence = (
        f"{_percent(rate)} of the rows lack a log probability, a judge score or a label that was due; above "
        f"{_percent(FAILURES_REFUSED)} what is left is another population."
    )
    remedy = "See the types of errors in the report, mend their cause and run again: rows that are done are kept."
    return [("REFUSED", Reason("failures", rate, FAILURES_REFUSED, sentence, remedy))]


def _identities(diagnostics: Diagnostics) -> list[tuple[State, Reason]]:
    """What holds for any two policies, whatever their outcomes, if the log probabilities are right."""
    found: list[tuple[State, Reason]] = []
    remedy = "Check that the scorer of base and target is the model file, template and sampler that generated."
    z = diagnostics.mean_weight_z
    if z is not None and abs(z) > Z_REFUSED and diagnostics.n_ess >= N_ESS_SHOWN:
        sentence = (
            f"The mean weight is {diagnostics.mean_weight:.4g} and must be 1: it is {abs(z):.3g} standard errors off, "
            "so the log probabilities are not those of the distribution that the responses came from"
        )
        # What is missing from the mean can be responses of the target that are not in the log: too many weights are
        # there only if they are wrong.
        rare = ", or the policy says what the base hardly ever does, and the log does not hold it" if z < 0 else ""
        found.append(("REFUSED", Reason("mean_weight", z, Z_REFUSED, f"{sentence}{rare}.", remedy)))
    z = diagnostics.bennett_z
    if z is not None and abs(z) > Z_REFUSED:
        sentence = (
            "Base responses and fresh draws disagree about how much the two policies overlap (Bennett's identity) by "
            f"{abs(z):.3g} standard errors: one of them did not come from the policy that scores it."
        )
        found.append(("REFUSED", Reason("bennett", z, Z_REFUSED, sentence, remedy)))
    return found


def _rows(count: float) -> str:
    """Three digits, never rounded up: what is short of a threshold does not read like it."""
    scale = 10.0 ** (2 - math.floor(math.log10(count))) if count > 0 else 1.0
    return f"{math.floor(count * scale) / scale:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
