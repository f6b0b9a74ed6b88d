"""Every diagnostic in words: what it is, what it is held against, and what was found for each policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llamalab.arena.report.words import number, outcome, percent
from llamalab.arena.results import PolicyResult, Results
from llamalab.ope import gates
from llamalab.ope.diagnostics import Diagnostics


@dataclass(frozen=True, slots=True)
class Check:
    """One diagnostic.

    Attributes:
        name: as the report calls it.
        means: what it says, in a sentence or two.
        threshold: what it is held against, in words; None where it refuses nothing.
        cells: (policy, what was found, whether a gate was not passed), in the order of the policies.
    """

    name: str
    means: str
    threshold: str | None
    cells: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    gate: str | None
    means: str
    threshold: str | None
    read: Callable[[Diagnostics], str]


def checks(results: Results) -> tuple[Check, ...]:
    """The table of diagnostics; a row that is known for no policy is left out."""
    policies = [policy for policy in results.policies if policy.diagnostics is not None]
    rows = [*(_row(kind, policies) for kind in _KINDS), _raw_ips(policies)]
    return tuple(row for row in rows if any(found != number(None) for _, found, _ in row.cells))


def _row(kind: _Kind, policies: list[PolicyResult]) -> Check:
    cells = tuple(
        (policy.name, kind.read(policy.diagnostics), kind.gate in _failed(policy))
        for policy in policies
        if policy.diagnostics is not None
    )
    return Check(kind.name, kind.means, kind.threshold, cells)


def _raw_ips(policies: list[PolicyResult]) -> Check:
    """Raw IPS is no diagnostic by itself, but it must lie where outcomes can be."""
    cells = []
    for policy in policies:
        found = [value for value in policy.values if value.estimator == "ips" and value.value is not None]
        text = ", ".join(f"{number(value.value)} ({value.scale})" for value in found) or number(None)
        cells.append((policy.name, text, "raw_ips" in _failed(policy)))
    return Check(
        "Raw IPS",
        "The mean of weight times outcome, not divided by the mean weight. It cannot be outside the range of outcomes "
        "unless weights are wrong or a few rows hold them all.",
        f"Outside the range of outcomes while SNIPS is not: refused; from {percent(gates.ESS_SHOWN)} and "
        f"{gates.N_ESS_SHOWN:g} effective rows only by more than {gates.Z_REFUSED:g} standard errors.",
        tuple(cells),
    )


def _failed(policy: PolicyResult) -> set[str]:
    return {reason.gate for reason in policy.verdict.reasons}


def _with_z(mean: float, z: float | None) -> str:
    return number(mean) if z is None else f"{number(mean)} ({outcome(z, 1)})"


def _largest(found: Diagnostics) -> str:
    if found.largest_share is None:
        return number(None)
    return f"{percent(found.largest_share)}; ten: {percent(found.largest_ten_share)}"


def _spread(found: Diagnostics) -> str:
    if found.log_ratio_sd is None:
        return number(None)
    return f"{number(found.log_ratio_sd, 2)}; leaves {percent(found.lognormal_ess)}"


_KINDS = (
    _Kind(
        "Effective sample size, share",
        "ess",
        "What the weighted rows are worth, as a share of all rows. The judge of whether base and target overlap.",
        f"Shown from {percent(gates.ESS_SHOWN)}; caution from {percent(gates.ESS_CAUTION)}; refused below.",
        lambda found: percent(found.ess),
    ),
    _Kind(
        "Effective sample size, rows",
        "n_ess",
        "The same as a number of rows. An interval rests on a normal approximation, and that needs rows.",
        f"Shown from {gates.N_ESS_SHOWN:g}; caution from {gates.N_ESS_CAUTION:g}; refused below.",
        lambda found: number(found.n_ess, 1),
    ),
    _Kind(
        "Effective sample size, by fresh draws",
        "draws_ess",
        "The share that ever more rows would come to, as the target’s own draws tell it: what the target often says "
        "and the base hardly ever does is among them and not in the log. A draw’s weight counts for at most the number "
        "of rows.",
        f"Shown from {percent(gates.ESS_SHOWN)}; caution from {percent(gates.ESS_CAUTION)}; refused below.",
        lambda found: percent(found.draws_ess),
    ),
    _Kind(
        "Mean weight",
        "mean_weight",
        "The mean of target over base probability. It is 1 in expectation whatever the policies are, so it tests the "
        "log probabilities themselves. In brackets: standard errors away from 1.",
        f"More than {gates.Z_REFUSED:g} standard errors off, at {gates.N_ESS_SHOWN:g} effective rows or more: refused.",
        lambda found: _with_z(found.mean_weight, found.mean_weight_z),
    ),
    _Kind(
        "Bennett’s identity",
        "bennett",
        "Base responses and the target’s own fresh draws must tell the same overlap. Unlike the mean weight, this "
        "notices a scorer that is wrong even where weights are extreme. In standard errors.",
        f"More than {gates.Z_REFUSED:g} standard errors off 0: refused.",
        lambda found: outcome(found.bennett_z, 2),
    ),
    _Kind(
        "Rows without a number",
        "failures",
        "Share of logged rows without a log probability or a judge score, or of labels or fresh draws that failed, if "
        "that is more. None is left out for one policy alone.",
        f"Above {percent(gates.FAILURES_REFUSED)}: refused.",
        lambda found: percent(found.failure_rate),
    ),
    _Kind(
        "Outside the support",
        None,
        "Share of rows that the target’s top-p or top-k never gives. Their weight is 0, which is right and no failure.",
        None,
        lambda found: percent(found.outside_support),
    ),
    _Kind(
        "Spread of the log ratios",
        None,
        "Standard deviation in nats, over whole responses. Behind it: the ESS that it would leave if log ratios were "
        "normal, exp(−sd²). A spread of 0.83 nats leaves half.",
        None,
        _spread,
    ),
    _Kind(
        "Median log ratio",
        None,
        "In nats. A median of 0 proves little: most rows of two slightly different policies may agree.",
        None,
        lambda found: number(found.median_log_ratio, 2),
    ),
    _Kind(
        "Bit-equal rows",
        None,
        "Share of rows with a log ratio of exactly 0. All of them for a clone; hardly any for another policy.",
        None,
        lambda found: percent(found.share_equal),
    ),
    _Kind(
        "Largest log ratio",
        None,
        "The largest distance from 0 of any row inside the support, nats.",
        None,
        lambda found: number(found.largest_gap, 2),
    ),
    _Kind(
        "Largest weights",
        None,
        "Share of all weight on the heaviest row, and on the ten heaviest.",
        None,
        _largest,
    ),
    _Kind(
        "Tail index",
        None,
        f"Hill’s estimate from the heaviest 5%. At {gates.HILL_HEAVY:g} or below the weights have no finite variance, "
        "and no standard error means much. Uncertain itself, so it refuses nothing.",
        None,
        lambda found: number(found.hill, 2),
    ),
    _Kind(
        "ESS after calibration",
        None,
        "Of the weights smoothed over the judge score. It is high even where raw weights know nothing: read it only "
        "beside the raw share.",
        None,
        lambda found: percent(found.ess_calibrated),
    ),
    _Kind(
        "Overlap in judge scores",
        None,
        "Bhattacharyya coefficient of the scores of base responses and of the target’s own draws: 1 alike, 0 apart.",
        None,
        lambda found: number(found.judge_overlap, 3),
    ),
    _Kind(
        "Typical rows",
        None,
        "Share of logged rows that are as probable per token, under the target, as nine tenths of its own responses.",
        None,
        lambda found: percent(found.typicality),
    ),
)
