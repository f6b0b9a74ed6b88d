"""Values of target policies from logged responses of another, each with its influence function.

Dimension key: n rows, G prompts, P policies.

With w the weights, wbar their mean, f a calibration of the judge score S, D = (L/q)(Y - f(S)) its correction by labels,
R = f(S) + D, and m the mean of f over fresh draws for the same prompt:

| estimator | value | influence of a row |
|---|---|---|
| ips | mean of w R | w R - value |
| snips | sum of w R / sum of w | w (R - value) / wbar |
| calibrated_ips | mean of h(S) f(S) + sum of w D / sum of w, with h(S) = E[w given S] | see `_calibrated_ips` |
| dr | mean of m + sum of w (f(S) - m + D) / sum of w | m - its mean + w (f(S) - m + D - its mean) / wbar |
| stacked | the combination of `STACKED` with the least variance | the combined influences |

f is fitted without the prompts it is applied to and q is known, so what f gets wrong is paid for by D: the influences
need no term for it. Sources: Horvitz and Thompson 1952; Hajek 1971; Robins, Rotnitzky and Zhao 1994; Swaminathan and
Joachims 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llamalab.errors import ConfigError, InputError
from llamalab.ope.calibration import assign_folds
from llamalab.ope.intervals import Variance, cluster_variance, pooled_df, t_interval
from llamalab.ope.isotonic import blocks
from llamalab.ope.outcome import Outcome, outcome_of
from llamalab.ope.stacking import fold_coefficients
from llamalab.ope.study import FloatArray, IntArray, Study
from llamalab.ope.weights import mean_one_weights, project, raw_weights, score_groups

ESTIMATORS = ("ips", "snips", "calibrated_ips", "dr", "stacked")

STACKED = ("snips", "dr")
"""What is stacked. Not IPS: where the largest weights happen to be missing, it is low and its variance seems least. Not
calibrated IPS: it also needs E[w given S] to be monotone, and its variance does not tell when that fails."""

Scale = Literal["oracle", "judge"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The value of one policy by one estimator, with its uncertainty.

    Attributes:
        estimator: one of `ESTIMATORS`.
        policy: whose value.
        scale: "oracle": of labels; "judge": of judge scores.
        value: the estimate.
        se: its standard error, clustered by prompt.
        low: lower end of the interval at the level asked for.
        high: upper end.
        df: degrees of freedom of the t distribution behind the interval.
        influence: (n,) influence of each logged response, mean zero.
    """

    estimator: str
    policy: str
    scale: Scale
    value: float
    se: float
    low: float
    high: float
    df: float
    influence: FloatArray


@dataclass(frozen=True, slots=True)
class Point:
    """A value before its interval.

    Attributes:
        value: the estimate.
        influence: (n,), mean zero.
        by_labels: (n,) the part of it that labels bring in.
        coefficients: what a stack gives each of its estimators, else empty.
    """

    value: float
    influence: FloatArray
    by_labels: FloatArray
    coefficients: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the estimators of one policy are computed from, row by row: f(S), D, w, S in groups, and m."""

    predicted: FloatArray
    correction: FloatArray
    log_ratio: FloatArray
    weight: FloatArray
    group: IntArray
    drawn: FloatArray | None


def estimate(
    study: Study,
    policies: Sequence[str] | None = None,
    estimators: Sequence[str] = ESTIMATORS,
    *,
    scale: Scale = "oracle",
    level: float = 0.95,
    folds: int = 5,
    seed: int = 0,
) -> tuple[Estimate, ...]:
    """Every estimate that a study allows, policy by policy.

    Args:
        study: logged responses with weights, scores and labels.
        policies: targets; None: all of the study's.
        estimators: of `ESTIMATORS`; "dr" is left out for policies without fresh draws.
        scale: "oracle": of labels; "judge": of judge scores, which needs no labels.
        level: of the intervals.
        folds: of prompts, for the calibration and the stack; fewer where fewer prompts have labels.
        seed: deals the prompts into folds.

    Raises:
        InputError: fewer than two prompts; on the oracle's scale too few labels or labels chosen by hand; weights that
            are all zero; an unknown policy.
        ConfigError: an unknown estimator or scale, or a level or number of folds that makes no sense.
    """
    check_names(study, policies, estimators, scale)
    found = points(study, policies, estimators, scale=scale, folds=folds, seed=seed)
    few_labels = scale == "oracle" and not study.fully_labelled
    estimates = []
    for (name, policy), point in found.items():
        weight = mean_one_weights(study.log_ratio[policy], policy)
        variance = cluster_variance(point.influence, study.prompt, weight)
        se, df = float(np.sqrt(variance.value)), variance.df
        if few_labels:
            labels = cluster_variance(point.by_labels, study.prompt, weight)
            rest = cluster_variance(point.influence - point.by_labels, study.prompt, weight)
            prompts = len(np.unique(study.prompt[study.labelled]))
            df = min(df, pooled_df((Variance(labels.value, prompts - 1.0), rest)))
        estimates.append(
            Estimate(name, policy, scale, point.value, se, *t_interval(point.value, se, df, level), df, point.influence)
        )
    return tuple(estimates)


def check_names(study: Study, policies: Sequence[str] | None, estimators: Sequence[str], scale: str) -> None:
    """Refuse what does not exist.

    Raises:
        InputError: an unknown policy.
        ConfigError: an unknown estimator or scale.
    """
    for policy in policies or ():
        if policy not in study.log_ratio:
            raise InputError(f"There is no policy {policy!r}; there are {', '.join(study.policies) or 'none'}.")
    for name in estimators:
        if name not in ESTIMATORS:
            raise ConfigError(f"There is no estimator {name!r}; there are {', '.join(ESTIMATORS)}.")
    if scale not in ("oracle", "judge"):
        raise ConfigError(f"There is no scale {scale!r}; a value is on the oracle's or on the judge's: oracle, judge.")


def points(
    study: Study,
    policies: Sequence[str] | None,
    estimators: Sequence[str],
    *,
    scale: Scale,
    folds: int,
    seed: int,
    outcome: Outcome | None = None,
) -> dict[tuple[str, str], Point]:
    """Values and influences by (estimator, policy), in the order of policies.

    Args:
        study, policies, estimators, scale, folds, seed: as for `estimate`, already checked.
        outcome: of this study, scale, folds and seed, if it is there already.

    Raises:
        InputError: as for `estimate`.
    """
    outcome = outcome or outcome_of(study, scale=scale, folds=folds, seed=seed)
    fold = outcome.calibration.fold if outcome.calibration else _folds(study, folds, seed)
    even = np.ones((study.n_prompts, 1))
    fit, size = outcome.fit(even), np.bincount(study.prompt, minlength=study.n_prompts)
    predicted = np.asarray(outcome.rows @ fit)[:, 0]
    correction = np.zeros(study.n)
    correction[outcome.labelled] = outcome.ratio * (outcome.label - predicted[outcome.labelled])
    group = score_groups(study.judge)
    found = {}
    for policy in study.policies if policies is None else policies:
        log_ratio = study.log_ratio[policy]
        draws = outcome.draws.get(policy)
        drawn = None if draws is None else draws.predicted(fit, even, size)[study.prompt, 0]
        rows = _Rows(predicted, correction, log_ratio, mean_one_weights(log_ratio, policy), group, drawn)
        wanted = dict.fromkeys([*estimators, *(STACKED if "stacked" in estimators else ())])
        single = {name: _BY_NAME[name](rows) for name in wanted if name in _BY_NAME and _applies(name, rows)}
        for name in estimators:
            if name == "stacked":
                members = {member: single[member] for member in STACKED if member in single}
                found[name, policy] = _stacked(members, study.prompt, fold)
            elif name in single:
                found[name, policy] = single[name]
    return found


def _folds(study: Study, folds: int, seed: int) -> IntArray:
    return assign_folds(study.prompt_ids, max(2, min(folds, study.n_prompts)) if folds >= 2 else folds, seed=seed)


def _applies(name: str, rows: _Rows) -> bool:
    return name != "dr" or rows.drawn is not None


def _ips(rows: _Rows) -> Point:
    weight = rows.weight * raw_weights(rows.log_ratio).mean()
    worth, labels = weight * (rows.predicted + rows.correction), weight * rows.correction
    return Point(float(worth.mean()), worth - worth.mean(), labels - labels.mean(), {})


def _snips(rows: _Rows) -> Point:
    reward = rows.predicted + rows.correction
    value = _mean(rows.weight, reward)
    return Point(value, rows.weight * (reward - value), _label_part(rows), {})


def _calibrated_ips(rows: _Rows) -> Point:
    """h(S) is a projection: within its blocks, weights act on the block's mean of f, and nowhere else.

    So mean h f has the influence h f + (w - h) f_block - w mean(h f). Where h is drawn to 1, that share of it is
    f - mean f. A monotone projection favours what goes its
    way: where f and h rise together the value comes out somewhat too high.
    """
    mass = np.bincount(rows.group).astype(np.float64)
    mean_weight = np.bincount(rows.group, weights=rows.weight) / mass
    projected = project(mean_weight[:, None], mass[:, None])
    fit, shrink = projected.fit[rows.group, 0], float(projected.shrink[0])

    starts = np.array(blocks(projected.fit[:, 0]))
    sums = np.bincount(rows.group, weights=rows.predicted)
    block_mean = np.add.reduceat(sums, starts) / np.add.reduceat(mass, starts)
    of_block = block_mean[np.searchsorted(starts, rows.group, side="right") - 1]

    by_fit = float((fit * rows.predicted).mean())
    influence = fit * rows.predicted + (rows.weight - fit) * of_block - rows.weight * by_fit
    plain = float(rows.predicted.mean())
    labels = _label_part(rows)
    value = (1 - shrink) * by_fit + shrink * plain + _mean(rows.weight, rows.correction)
    return Point(value, (1 - shrink) * influence + shrink * (rows.predicted - plain) + labels, labels, {})


def _dr(rows: _Rows) -> Point:
    assert rows.drawn is not None
    gap = rows.predicted - rows.drawn + rows.correction
    mean, gap_mean = float(rows.drawn.mean()), _mean(rows.weight, gap)
    influence = rows.drawn - mean + rows.weight * (gap - gap_mean)
    return Point(mean + gap_mean, influence, _label_part(rows), {})


_BY_NAME: Mapping[str, Callable[[_Rows], Point]] = {
    "ips": _ips,
    "snips": _snips,
    "calibrated_ips": _calibrated_ips,
    "dr": _dr,
}


def _mean(weight: FloatArray, values: FloatArray) -> float:
    return float((weight * values).sum() / weight.sum())


def _label_part(rows: _Rows) -> FloatArray:
    return np.asarray(rows.weight * (rows.correction - _mean(rows.weight, rows.correction)))


def _stacked(members: Mapping[str, Point], prompt: IntArray, fold: IntArray) -> Point:
    """Each prompt's part is combined with coefficients found without it."""
    influence_Cn = np.array([point.influence for point in members.values()])
    labels_Cn = np.array([point.by_labels for point in members.values()])
    values_C = np.array([point.value for point in members.values()])
    by_fold_KC = fold_coefficients(influence_Cn, prompt, fold)
    share_Cn = by_fold_KC[fold[prompt]].T
    worth = (share_Cn * (values_C[:, None] + influence_Cn)).sum(axis=0)
    labels = (share_Cn * labels_Cn).sum(axis=0)
    average = dict(zip(members, share_Cn.mean(axis=1).tolist(), strict=True))
    return Point(float(worth.mean()), worth - worth.mean(), labels - labels.mean(), average)
