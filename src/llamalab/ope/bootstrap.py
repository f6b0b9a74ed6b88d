"""Joint bootstrap over policies: prompts weighed by Exp(1), everything refitted in each replicate.

Every prompt keeps a positive weight, so no replicate ever lacks labels and none is drawn again. All policies see the
same weights, so differences between policies are paired. Source: Rubin 1981; Newton and Raftery 1994.

Dimension key: n rows, G prompts, P policies, L labelled rows, N nodes of the calibration, U groups of scores,
B replicates (of one batch, inside).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import csr_array
from scipy.special import stdtr, stdtrit

from llamalab.errors import ConfigError, InputError
from llamalab.ope.estimators import ESTIMATORS, STACKED, Scale, check_names, points
from llamalab.ope.intervals import FEW_PROMPTS
from llamalab.ope.outcome import FreshDraws, Outcome, outcome_of
from llamalab.ope.study import FloatArray, IntArray, Study
from llamalab.ope.weights import mean_one_weights, project, raw_weights, score_groups

_BATCH = 2**20
"""Numbers in one array of a batch of replicates: 8 MiB, so that several stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Replicates:
    """Values of every policy in every replicate of one joint bootstrap.

    Attributes:
        policies: (P,) names, the columns.
        values: of each estimator, (B, P); NaN columns where it does not apply to a policy.
        points: of each estimator, (P,) the values on the data themselves.
        scale: "oracle" or "judge".
        prompts: that have rows.
    """

    policies: tuple[str, ...]
    values: Mapping[str, FloatArray]
    points: Mapping[str, FloatArray]
    scale: Scale
    prompts: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Value of one policy minus another's, on the same prompts.

    Attributes:
        estimator: which.
        policy: whose value comes first.
        other: whose value is taken away.
        value: the difference on the data.
        se: its standard deviation over replicates.
        low: lower percentile of the replicates; with few prompts, of a t distribution.
        high: upper percentile.
        p: two-sided: twice the smaller share of replicates on one side of 0, never 0; with few prompts, of a t test.
        p_adjusted: p by Benjamini and Hochberg over all differences asked for together.
    """

    estimator: str
    policy: str
    other: str
    value: float
    se: float
    low: float
    high: float
    p: float
    p_adjusted: float


def bootstrap(
    study: Study,
    estimators: Sequence[str] = ESTIMATORS,
    *,
    policies: Sequence[str] | None = None,
    replicates: int = 2000,
    scale: Scale = "oracle",
    folds: int = 5,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Replicates:
    """Weigh prompts by Exp(1) and refit the calibration and the projected weights, jointly over policies.

    Replicates are worked on in batches of bounded memory. Folds stay, and a stack keeps its coefficients: what is
    uncertain in them does not move the value to first order.

    Args:
        study: as for `estimate`.
        estimators: of `ESTIMATORS`.
        policies: targets; None: all of the study's.
        replicates: how many, at least 2.
        scale: "oracle" or "judge".
        folds: as for `estimate`.
        seed: deals the folds and draws the weights.
        progress: is told how many replicates are done.

    Raises:
        InputError: as for `estimate`.
        ConfigError: an unknown estimator, or fewer than 2 replicates.
    """
    check_names(study, policies, estimators, scale)
    if replicates < 2:
        raise ConfigError(f"A bootstrap takes at least 2 replicates, not {replicates}.")
    names = tuple(study.policies if policies is None else policies)
    outcome = outcome_of(study, scale=scale, folds=folds, seed=seed)
    found = points(study, names, estimators, scale=scale, folds=folds, seed=seed, outcome=outcome)
    stacked = STACKED if "stacked" in estimators else ()
    single = dict.fromkeys([*(name for name in estimators if name != "stacked"), *stacked])
    sums = _prepare(study, names, outcome, calibrated="calibrated_ips" in single)

    rng = np.random.default_rng(seed)
    by_name = np.argsort(np.argsort(np.array(study.prompt_ids)))  # the order of rows decides nothing
    values: dict[str, list[FloatArray]] = {name: [] for name in single}
    for start in range(0, replicates, sums.batch):
        weight_GB = rng.standard_exponential((study.n_prompts, min(sums.batch, replicates - start)))[by_name]
        for name, part_PB in _values(sums, weight_GB).items():
            if name in values:
                values[name].append(part_PB.T)
        progress(min(start + sums.batch, replicates))
    joined = {name: np.concatenate(parts) for name, parts in values.items()}
    if stacked:
        joined["stacked"] = np.column_stack(
            [
                sum(share * joined[name][:, column] for name, share in found["stacked", policy].coefficients.items())
                for column, policy in enumerate(names)
            ]
        )
    at = {
        name: np.array([found[name, policy].value if (name, policy) in found else np.nan for policy in names])
        for name in estimators
    }
    return Replicates(names, {name: joined[name] for name in estimators}, at, scale, len(np.unique(study.prompt)))


def differences(
    replicates: Replicates,
    estimator: str,
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    level: float = 0.95,
) -> tuple[Difference, ...]:
    """Paired differences between policies, with p values adjusted for their number.

    With fewer than `FEW_PROMPTS` prompts, intervals and p are those of a t distribution: replicates of two prompts all
    lie between two numbers, and would call any two that agree a proof.

    Args:
        replicates: of one joint bootstrap.
        estimator: which of its estimators.
        pairs: (policy, other); None: every pair in which the estimator applies to both.
        level: of the intervals, each by itself.

    Raises:
        InputError: a pair that the replicates do not hold.
        ConfigError: an estimator that was not bootstrapped, or a level that is no probability.
    """
    if estimator not in replicates.values:
        raise ConfigError(f"{estimator!r} was not bootstrapped; there are {', '.join(replicates.values)}.")
    if not 0 < level < 1:
        raise ConfigError(f"The level of an interval lies between 0 and 1, and is not {level:g}.")
    values, points_P = replicates.values[estimator], replicates.points[estimator]
    column = {name: at for at, name in enumerate(replicates.policies) if np.isfinite(points_P[at])}
    pairs = tuple(combinations(column, 2)) if pairs is None else pairs
    for name in (name for pair in pairs for name in pair if name not in column):
        raise InputError(f"There is no {estimator} value of {name!r}; there is one of {', '.join(column) or 'none'}.")
    gaps = [values[:, column[one]] - values[:, column[other]] for one, other in pairs]
    values_at = [float(points_P[column[one]] - points_P[column[other]]) for one, other in pairs]
    spreads = [_spread(gap, value, replicates.prompts, level) for gap, value in zip(gaps, values_at, strict=True)]
    p = np.array([spread.p for spread in spreads])
    found = []
    for (one, other), value, each, adjusted in zip(pairs, values_at, spreads, benjamini_hochberg(p), strict=True):
        found.append(Difference(estimator, one, other, value, each.se, each.low, each.high, each.p, float(adjusted)))
    return tuple(found)


def benjamini_hochberg(p: FloatArray) -> FloatArray:
    """Adjusted p values: rejecting those at most a keeps the false discovery rate at a.

    Source: Benjamini and Hochberg 1995, step-up.
    """
    order = np.argsort(p)[::-1]
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(scaled))
    return adjusted


@dataclass(frozen=True, slots=True)
class _Spread:
    """Of a difference: standard error, ends of the interval, p."""

    se: float
    low: float
    high: float
    p: float


def _spread(gap: FloatArray, value: float, prompts: int, level: float) -> _Spread:
    """What (B,) replicates say of a difference.

    Weights of Exp(1) give a mean the variance sum (x - mean)^2 / (G (G + 1)), which is (G - 1) / (G + 1) of what it is.
    """
    se = float(gap.std(ddof=1))
    if prompts >= FEW_PROMPTS or se == 0:
        low, high = np.percentile(gap, (50 * (1 - level), 50 * (1 + level)))
        return _Spread(se, float(low), float(high), _p_value(gap))
    df = prompts - 1.0
    se *= math.sqrt((prompts + 1) / df)
    half = float(stdtrit(df, 0.5 + level / 2)) * se
    p = max(float(2 * stdtr(df, -abs(value) / se)), 2 / (len(gap) + 1))
    return _Spread(se, value - half, value + half, p)


def _p_value(gap: FloatArray) -> float:
    """A replicate at 0 exactly counts for both sides: equal policies have p = 1."""
    one_side = min(int((gap <= 0).sum()), int((gap >= 0).sum()))
    return min(1.0, 2 * (one_side + 1) / (len(gap) + 1))


@dataclass(frozen=True, slots=True)
class _Sums:
    """What does not change between replicates. Rows are sorted by score, so that memory is read in order.

    Attributes:
        outcome: predictions for any weights.
        prompt_n: prompts of the rows, in the order of scores.
        labelled_L: places in that order with a label that counts.
        weight_Pn: mean-one weights of each policy, and a last row of ones: (P+1, n).
        mean_raw_P: mean of the raw weights.
        weight_PG: the same summed by prompt: (P+1, G).
        labels_PL: w (L/q) Y at labelled rows.
        unlabel_PL: w (L/q) at labelled rows.
        rows_Un: which rows are in which group of scores, or None.
        weight_Un: of each policy, the same with its weights, or none.
        predicts_nN: times a fit, predictions.
        draws: of each policy, or None.
        batch: replicates at once.
    """

    outcome: Outcome
    prompt_n: IntArray
    labelled_L: IntArray
    weight_Pn: FloatArray
    mean_raw_P: FloatArray
    weight_PG: FloatArray
    labels_PL: FloatArray
    unlabel_PL: FloatArray
    rows_Un: csr_array | None
    weight_Un: tuple[csr_array, ...]
    predicts_nN: csr_array
    draws: tuple[FreshDraws | None, ...]
    batch: int


def _prepare(study: Study, names: Sequence[str], outcome: Outcome, *, calibrated: bool) -> _Sums:
    order = np.argsort(study.judge, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(study.n)
    targets = [mean_one_weights(study.log_ratio[name], name)[order] for name in names]
    weight_Pn = np.array([*targets, np.ones(study.n)])
    prompt = study.prompt[order]
    labelled = place[outcome.labelled]
    unlabel = weight_Pn[:-1, labelled] * outcome.ratio
    rows = None
    by_group: tuple[csr_array, ...] = ()
    if calibrated:
        group = score_groups(study.judge)[order]
        where, shape = (group, np.arange(study.n)), (int(group.max()) + 1, study.n)
        rows = csr_array((np.ones(study.n), where), shape=shape)
        by_group = tuple(csr_array((weight, where), shape=shape) for weight in targets)
    predicts = outcome.rows[order]
    return _Sums(
        outcome=outcome,
        prompt_n=prompt,
        labelled_L=labelled,
        weight_Pn=weight_Pn,
        mean_raw_P=np.array([raw_weights(study.log_ratio[name]).mean() for name in names]),
        weight_PG=np.array([np.bincount(prompt, weights=row, minlength=study.n_prompts) for row in weight_Pn]),
        labels_PL=unlabel * outcome.label,
        unlabel_PL=unlabel,
        rows_Un=rows,
        weight_Un=by_group,
        predicts_nN=predicts,
        draws=tuple(outcome.draws.get(name) for name in names),
        batch=max(1, _BATCH // max(study.n, study.n_prompts, predicts.shape[1])),
    )


def _values(sums: _Sums, weight_GB: FloatArray) -> dict[str, FloatArray]:
    """(P, B) of each estimator, with prompts weighing `weight_GB`."""
    fit_NB = sums.outcome.fit(weight_GB)
    row_nB = weight_GB[sums.prompt_n]  # v, the weight of a row's prompt
    worth_nB = np.asarray(sums.predicts_nN @ fit_NB) * row_nB  # v f
    *weights, rows_B = sums.weight_Pn @ row_nB
    weight_PB = np.array(weights)
    label_PB = sums.labels_PL @ row_nB[sums.labelled_L] - sums.unlabel_PL @ worth_nB[sums.labelled_L]  # sum of v w D
    total_PB = (sums.weight_Pn @ worth_nB)[:-1] + label_PB
    found = {"snips": total_PB / weight_PB, "ips": total_PB / rows_B * sums.mean_raw_P[:, None]}

    if sums.rows_Un is not None:
        mass_UB = sums.rows_Un @ row_nB
        worth_UB = sums.rows_Un @ worth_nB
        by_score = [
            (project((weight_Un @ row_nB) / mass_UB, mass_UB).weights * worth_UB).sum(axis=0) / rows_B
            for weight_Un in sums.weight_Un
        ]
        found["calibrated_ips"] = np.array(by_score) + label_PB / weight_PB

    found["dr"] = np.full(total_PB.shape, np.nan)
    for at, draws in enumerate(sums.draws):
        if draws is not None:
            drawn_GB = draws.predicted(fit_NB, weight_GB, sums.weight_PG[-1])
            drawn_GB *= weight_GB
            weighted_B, plain_B = sums.weight_PG[[at, -1]] @ drawn_GB
            found["dr"][at] = plain_B / rows_B + (total_PB[at] - weighted_B) / weight_PB[at]
    return found
