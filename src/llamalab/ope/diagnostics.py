"""What the data say about an estimate: how far the logged responses cover the policy that is asked about.

Everything is of the raw weights exp(log ratio) unless it says otherwise. What the numbers mean for an estimate, and
where they refuse it, stands in `ope/gates.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from llamalab.errors import InputError
from llamalab.ope.study import FloatArray, IntArray, Study
from llamalab.ope.weights import ess_share, project, raw_weights, score_groups

_BINS = 20  # of judge scores
_TAIL = 0.05  # share of weights that the tail index is of
_EXACT = 1e-9  # a standard error below it is rounding


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Of one target policy. None: it cannot be known from these data.

    Attributes:
        policy: its name.
        n: logged rows.
        prompts: distinct prompts, the clusters.
        ess: (sum w)^2 / sum w^2 over n, in (0, 1]; 0 where every weight is 0.
        n_ess: n times ess, the rows that the weighted ones are worth.
        draws_ess: the ess as the target's own draws see it, 1 / mean(min(w, n)) over them, at most 1. In expectation
            it is the ess of ever larger logs [E_base[w^2] = E_target[w]], but for weights above n.
        ess_calibrated: the same of the weights' projection on the judge score, E[w|S]; near 1 also where the raw
            weights say nothing.
        largest_share: largest weight over the sum of weights.
        largest_ten_share: ten largest weights over the sum.
        hill: tail index of the weights (Hill 1975, 5% largest); 2 or below: no finite variance.
        median_log_ratio: nats, of the rows inside the support.
        log_ratio_sd: standard deviation of the log ratios inside the support, nats.
        lognormal_ess: exp(-log_ratio_sd**2), the ess if log ratios were normal.
        mean_weight: mean raw weight; 1 in expectation.
        mean_weight_z: (mean_weight - 1) over its standard error, clustered by prompt.
        outside_support: share of rows that the target never gives, weight 0.
        share_equal: share of rows with a log ratio of exactly 0.
        largest_gap: largest |log ratio| inside the support, nats.
        judge_overlap: Bhattacharyya coefficient of the judge scores of base and target draws, 20 bins, in [0, 1].
        bennett_z: E_base[w/(1+w)] - E_target[1/(1+w)] over its standard error; 0 in expectation (Bennett 1976).
        typicality: share of logged rows whose surprisal per token under the target is at most its weighted 90%
            quantile.
        failure_rate: share of logged rows that have no log probability or no judge score; of rows drawn to be labelled
            that have no label, or of fresh draws without a score, if that is more.
    """

    policy: str
    n: int
    prompts: int
    ess: float
    n_ess: float
    draws_ess: float | None
    ess_calibrated: float | None
    largest_share: float | None
    largest_ten_share: float | None
    hill: float | None
    median_log_ratio: float | None
    log_ratio_sd: float | None
    lognormal_ess: float | None
    mean_weight: float
    mean_weight_z: float | None
    outside_support: float
    share_equal: float
    largest_gap: float | None
    judge_overlap: float | None
    bennett_z: float | None
    typicality: float | None
    failure_rate: float


def diagnose(
    study: Study,
    policy: str,
    *,
    failure_rate: float = 0.0,
    surprisal: FloatArray | None = None,
) -> Diagnostics:
    """What the logged responses, and the fresh draws if there are any, say about estimates of `policy`.

    Args:
        study: n logged responses.
        policy: one of its targets.
        failure_rate: share of rows that were left out of the study because they have no number.
        surprisal: (n,) nats per token of each response under the target, +inf outside its support; None: not known.

    Raises:
        InputError: an unknown policy.

    Source: Kong 1992 (ess); Hill 1975; Bennett 1976, eq. 6; Bhattacharyya 1943.
    """
    if policy not in study.log_ratio:
        raise InputError(f"There is no target policy {policy!r}; the study has {', '.join(study.policies)}.")
    log_ratio = study.log_ratio[policy]
    inside = np.isfinite(log_ratio)
    found = log_ratio[inside]
    weights = raw_weights(log_ratio)
    relative = _relative(log_ratio)
    total = float(relative.sum())
    shares = np.sort(relative)[::-1] / total if total > 0 else None
    ess = 0.0 if shares is None else ess_share(relative)
    spread = float(found.std(ddof=1)) if found.size > 1 else None
    mean, error = _mean_and_error(weights, study.prompt)
    return Diagnostics(
        policy=policy,
        n=study.n,
        prompts=len(np.unique(study.prompt)),
        ess=ess,
        n_ess=ess * study.n,
        draws_ess=_draws_ess(study, policy),
        ess_calibrated=None if shares is None else _calibrated_ess(study.judge, relative),
        largest_share=None if shares is None else float(shares[0]),
        largest_ten_share=None if shares is None else float(shares[:10].sum()),
        hill=tail_index(log_ratio),
        median_log_ratio=float(np.median(found)) if found.size else None,
        log_ratio_sd=spread,
        lognormal_ess=None if spread is None else math.exp(-(spread**2)),
        mean_weight=mean,
        mean_weight_z=None if error is None else (mean - 1.0) / max(error, _EXACT),
        outside_support=float(1.0 - inside.mean()),
        share_equal=float((log_ratio == 0.0).mean()),
        largest_gap=float(np.abs(found).max()) if found.size else None,
        judge_overlap=_judge_overlap(study, policy),
        bennett_z=_bennett(study, policy),
        typicality=None if surprisal is None or shares is None else _typicality(surprisal, relative),
        failure_rate=failure_rate,
    )


def tail_index(log_ratio: FloatArray) -> float | None:
    """Hill's estimate from the 5% largest weights: P(w > x) falls as x^-this; 2 or below: no finite variance.

    Returns:
        None where it says nothing: fewer than 5 weights in the tail, equal ones, or zeros among them.
    """
    count = math.ceil(_TAIL * len(log_ratio))
    if count < 5:
        return None
    largest = np.sort(log_ratio)[::-1][: count + 1]
    if not np.isfinite(largest[-1]):
        return None
    excess = float((largest[:-1] - largest[-1]).sum())
    return count / excess if excess > _EXACT else None


def _relative(log_ratio: FloatArray) -> FloatArray:
    """(n,) weights divided by the largest; all 0 where none is positive."""
    largest = log_ratio.max()
    return np.exp(log_ratio - largest) if np.isfinite(largest) else np.zeros_like(log_ratio)


def _mean_and_error(values: FloatArray, cluster: IntArray) -> tuple[float, float | None]:
    """A mean, and its standard error clustered by prompt; None for fewer than two prompts."""
    mean = float(values.mean())
    sums = np.bincount(cluster, weights=values - mean)
    return mean, _error(sums[np.unique(cluster)] / len(values))


def _error(sums: FloatArray) -> float | None:
    """Standard error of a sum of (G,) independent contributions with mean zero; None for fewer than two."""
    count = len(sums)
    return math.sqrt(count / (count - 1) * float((sums**2).sum())) if count > 1 else None


def _calibrated_ess(judge: FloatArray, relative: FloatArray) -> float:
    """ESS of the weights' projection on the judge score, as the calibrated estimate uses it."""
    group = score_groups(judge)
    rows = np.bincount(group).astype(np.float64)
    mean = np.bincount(group, weights=relative) / rows
    calibrated = project(mean[:, None], rows[:, None]).weights[:, 0]
    return ess_share(calibrated[group])


def _judge_overlap(study: Study, policy: str) -> float | None:
    draws = study.draws.get(policy)
    if draws is None or not len(draws.judge):
        return None
    base, target = (
        np.histogram(scores, bins=_BINS, range=study.judge_range)[0] / len(scores)
        for scores in (study.judge, draws.judge)
    )
    return float(np.sqrt(base * target).sum())


def _bennett(study: Study, policy: str) -> float | None:
    """E_base[w/(1+w)] - E_target[1/(1+w)] over its standard error, clustered by the prompts that both sides share."""
    draws = study.draws.get(policy)
    if draws is None or draws.log_ratio is None or not len(draws.judge):
        return None
    base, target = expit(study.log_ratio[policy]), expit(-draws.log_ratio)
    sums = np.bincount(study.prompt, weights=base - base.mean(), minlength=study.n_prompts) / len(base)
    sums -= np.bincount(draws.prompt, weights=target - target.mean(), minlength=study.n_prompts) / len(target)
    error = _error(sums)
    return None if error is None else float(base.mean() - target.mean()) / max(error, _EXACT)


def _draws_ess(study: Study, policy: str) -> float | None:
    """1 / mean(min(w, n)) over draws of the target.

    A log that lacks what the target often says and the base hardly ever does looks well covered. The target's own draws
    do not lack it. Above n a weight is capped: no log of n rows holds such a response, so what counts is how often the
    target says one and no longer how rare it is under the base.
    """
    draws = study.draws.get(policy)
    if draws is None or draws.log_ratio is None or not len(draws.log_ratio):
        return None
    capped = np.exp(np.minimum(draws.log_ratio, math.log(study.n)))
    return min(1.0, 1.0 / max(float(capped.mean()), _EXACT))


def _typicality(surprisal: FloatArray, relative: FloatArray) -> float:
    """Share of rows whose surprisal per token is at most its weighted 90% quantile: as the target's own mostly are."""
    order = np.argsort(surprisal, kind="stable")
    below = np.cumsum(relative[order]) / relative.sum()
    quantile = surprisal[order][min(int(np.searchsorted(below, 0.9)), len(order) - 1)]
    return float((surprisal <= quantile).mean())
