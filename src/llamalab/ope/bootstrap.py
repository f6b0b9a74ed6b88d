"""Joint bootstrap over policies: prompts weighed by Exp(1), everything refitted in each replicate.

Every prompt keeps a positive weight, so no replicate ever lacks labels and none is drawn again. All policies see the
same weights, so differences between policies are paired. Source: Rubin 1981; Newton and Raftery 1994.

Dimension key: n rows, G prompts, P policies, L labelled rows, N nodes of the calibration, U groups of scores,
B replicates (of one batch, inside).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import csr_array

from llamalab.errors import ConfigError, InputError
from llamalab.ope.estimators import ESTIMATORS, STACKED, Scale, check_names, points
from llamalab.ope.outcome import FreshDraws, Outcome, outcome_of
from llamalab.ope.study import FloatArray, Study
from llamalab.ope.weights import mean_one_weights, project, raw_weights, score_groups

_BATCH = 2**22
"""Numbers in one array of a batch of replicates: 32 MiB."""


@dataclass(frozen=True, slots=True)
class Replicates:
    """Values of every policy in every replicate of one joint bootstrap.

    Attributes:
        policies: (P,) names, the columns.
        values: of each estimator, (B, P); NaN columns where it does not apply to a policy.
        points: of each estimator, (P,) the values on the data themselves.
        scale: "oracle" or "judge".
    """

    policies: tuple[str, ...]
    values: Mapping[str, FloatArray]
    points: Mapping[str, FloatArray]
    scale: Scale


@dataclass(frozen=True, slots=True)
class Difference:
    """Value of one policy minus another's, on the same prompts.

    Attributes:
        estimator: which.
        policy: whose value comes first.
        other: whose value is taken away.
        value: the difference on the data.
        se: its standard deviation over replicates.
        low: lower percentile of the replicates.
        high: upper percentile.
        p: two-sided: twice the smaller share of replicates on one side of 0, never 0.
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

    Replicates are worked on in batches of bounded memory; the result does not depend on their size. Folds stay, and a
    stack keeps its coefficients: what is uncertain in them does not move the value to first order.

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
    by_name = np.argsort(np.array(study.prompt_ids))
    values: dict[str, list[FloatArray]] = {name: [] for name in single}
    for start in range(0, replicates, sums.batch):
        drawn_BG = rng.standard_exponential((min(sums.batch, replicates - start), study.n_prompts))
        weight_GB = np.empty(drawn_BG.T.shape)
        weight_GB[by_name] = drawn_BG.T
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
    return Replicates(names, {name: joined[name] for name in estimators}, at, scale)


def differences(
    replicates: Replicates,
    estimator: str,
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    level: float = 0.95,
) -> tuple[Difference, ...]:
    """Paired differences between policies, with p values adjusted for their number.

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
    for name in {name for pair in pairs for name in pair} - set(column):
        raise InputError(f"There is no {estimator} value of {name!r}; there is one of {', '.join(column) or 'none'}.")
    gaps = [values[:, column[one]] - values[:, column[other]] for one, other in pairs]
    p = np.array([_p_value(gap) for gap in gaps])
    tails = (50 * (1 - level), 50 * (1 + level))
    found = []
    for (one, other), gap, by_itself, adjusted in zip(pairs, gaps, p, benjamini_hochberg(p), strict=True):
        value = float(points_P[column[one]] - points_P[column[other]])
        low, high = np.percentile(gap, tails)
        se = float(gap.std(ddof=1))
        found.append(
            Difference(estimator, one, other, value, se, float(low), float(high), float(by_itself), float(adjusted))
        )
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


def _p_value(gap: FloatArray) -> float:
    """A replicate at 0 exactly counts for both sides: equal policies have p = 1."""
    one_side = min(int((gap <= 0).sum()), int((gap >= 0).sum()))
    return min(1.0, 2 * (one_side + 1) / (len(gap) + 1))


@dataclass(frozen=True, slots=True)
class _Sums:
    """Everything that does not change between replicates, summed by prompt where that loses nothing.

    Attributes:
        outcome: predictions for any weights.
        prompt: (n,) codes.
        size_G: rows of each prompt.
        weight_Pn: mean-one weights, then raw weights: (2P, n).
        weight_PG: mean-one weights summed by prompt.
        labels_PG: w (L/q) Y summed by prompt, for mean-one and raw weights: (2P, G).
        unlabel_PL: w (L/q) at labelled rows, for both: (2P, L).
        groups_UG: rows of each prompt in each group of scores, or None.
        rows_Un: which rows are in which group, or None.
        weight_UG: of each policy, mean-one weights summed by group and prompt, or none.
        draws: of each policy, or None.
        batch: replicates at once.
    """

    outcome: Outcome
    prompt: np.ndarray
    size_G: FloatArray
    weight_Pn: FloatArray
    weight_PG: FloatArray
    labels_PG: FloatArray
    unlabel_PL: FloatArray
    groups_UG: csr_array | None
    rows_Un: csr_array | None
    weight_UG: tuple[csr_array, ...]
    draws: tuple[FreshDraws | None, ...]
    batch: int


def _prepare(study: Study, names: Sequence[str], outcome: Outcome, *, calibrated: bool) -> _Sums:
    mean_one = [mean_one_weights(study.log_ratio[name], name) for name in names]
    both = np.array([*mean_one, *(raw_weights(study.log_ratio[name]) for name in names)])
    by_prompt = csr_array(
        (np.ones(study.n), (np.arange(study.n), study.prompt)), shape=(study.n, study.n_prompts)
    )  # (n, G)
    unlabel = both[:, outcome.labelled] * outcome.ratio
    groups = rows = None
    by_group: tuple[csr_array, ...] = ()
    if calibrated:
        group = score_groups(study.judge)
        where = (group, np.arange(study.n))
        rows = csr_array((np.ones(study.n), where), shape=(int(group.max()) + 1, study.n))
        groups = rows @ by_prompt
        by_group = tuple(csr_array((weight, where), shape=rows.shape) @ by_prompt for weight in mean_one)
    largest = max(study.n, study.n_prompts, outcome.rows.shape[1])
    return _Sums(
        outcome=outcome,
        prompt=study.prompt,
        size_G=np.bincount(study.prompt, minlength=study.n_prompts).astype(np.float64),
        weight_Pn=both,
        weight_PG=both[: len(names)] @ by_prompt,
        labels_PG=(unlabel * outcome.label) @ by_prompt[outcome.labelled],
        unlabel_PL=unlabel,
        groups_UG=groups,
        rows_Un=rows,
        weight_UG=by_group,
        draws=tuple(outcome.draws.get(name) for name in names),
        batch=max(1, _BATCH // largest),
    )


def _values(sums: _Sums, weight_GB: FloatArray) -> dict[str, FloatArray]:
    """(P, B) of each estimator, with prompts weighing `weight_GB`."""
    policies, outcome = len(sums.weight_PG), sums.outcome
    fit_NB = outcome.fit(weight_GB)
    predicted_nB = np.asarray(outcome.rows @ fit_NB)
    predicted_nB *= weight_GB[sums.prompt]  # v f, with v the weight of a row's prompt
    rows_B = sums.size_G @ weight_GB
    weight_PB = sums.weight_PG @ weight_GB
    by_fit = sums.weight_Pn @ predicted_nB  # sum of v w f
    by_labels = sums.labels_PG @ weight_GB - sums.unlabel_PL @ predicted_nB[outcome.labelled]  # sum of v w D
    together = by_fit + by_labels
    found = {"snips": together[:policies] / weight_PB, "ips": together[policies:] / rows_B}

    if sums.groups_UG is not None:
        mass_UB = sums.groups_UG @ weight_GB
        fit_UB = sums.rows_Un @ predicted_nB
        by_score = [
            (project((weight_UG @ weight_GB) / mass_UB, mass_UB).weights * fit_UB).sum(axis=0) / rows_B
            for weight_UG in sums.weight_UG
        ]
        found["calibrated_ips"] = np.array(by_score) + by_labels[:policies] / weight_PB

    found["dr"] = np.full((policies, weight_GB.shape[1]), np.nan)
    for at, draws in enumerate(sums.draws):
        if draws is not None:
            drawn_GB = draws.predicted(fit_NB, weight_GB * sums.size_G[:, None]) * weight_GB
            gap_B = (together[at] - sums.weight_PG[at] @ drawn_GB) / weight_PB[at]
            found["dr"][at] = sums.size_G @ drawn_GB / rows_B + gap_B
    return found
