"""What the report's pictures of weights and calibration are drawn from, thinned out to what a picture can show."""

from __future__ import annotations

import math

import numpy as np

from llamalab.arena.results import CalibrationCurve, Histogram, Weights
from llamalab.ope.isotonic import isotonic
from llamalab.ope.outcome import outcome_of
from llamalab.ope.study import FloatArray, IntArray, Study
from llamalab.ope.weights import mean_one_weights, project, score_groups

_BINS = 40
_POINTS = 1000  # of a cloud
_TAIL_POINTS, _LARGEST = 200, 50


def weight_pictures(study: Study, policy: str) -> Weights | None:
    """Of one policy; None where every weight is 0."""
    log_ratio = study.log_ratio[policy]
    inside = np.flatnonzero(np.isfinite(log_ratio))
    if not len(inside):
        return None
    weights = mean_one_weights(log_ratio)
    some = inside[_evenly(len(inside), _POINTS)]
    return Weights(
        log_weights=_histogram(log_ratio[inside]),
        tail=_tail(weights),
        against_judge=tuple(zip(study.judge[some].tolist(), log_ratio[some].tolist(), strict=True)),
        by_judge=_by_judge(study.judge, weights),
        outside=study.n - len(inside),
    )


def calibration_curve(study: Study, *, folds: int, seed: int) -> CalibrationCurve | None:
    """From judge score to outcome, with the labelled rows; None without labels that may be used."""
    rows = np.flatnonzero(study.labelled)
    if len(np.unique(study.prompt[rows])) < 2 or not (study.random_labels or study.fully_labelled):
        return None
    judge, label, weight = study.judge[rows], study.label[rows], 1.0 / study.label_probability[rows]
    scores, group = np.unique(judge, return_inverse=True)
    mass = np.bincount(group, weights=weight).astype(np.float64)
    mean = np.bincount(group, weights=weight * label) / mass
    fit = isotonic(mean[:, None], mass[:, None])[:, 0]
    outcome = outcome_of(study, scale="oracle", folds=folds, seed=seed)
    predicted = np.asarray(outcome.rows @ outcome.fit(np.ones((study.n_prompts, 1))))[:, 0]
    some = _evenly(len(rows), _POINTS)
    return CalibrationCurve(
        points=tuple(zip(judge[some].tolist(), label[some].tolist(), strict=True)),
        curve=_steps(scores, fit),
        error=math.sqrt(float(np.square(label - predicted[rows]).mean())),
        labelled=len(rows),
        probability=(float(study.label_probability[rows].min()), float(study.label_probability[rows].max())),
    )


def _evenly(size: int, most: int) -> IntArray:
    """Positions of at most so many rows, evenly taken."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).astype(np.int64))


def _histogram(values: FloatArray) -> Histogram:
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:  # as for a clone: one bar, and a width that can be seen
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _tail(weights: FloatArray) -> tuple[tuple[float, float], ...]:
    falling = np.sort(weights[weights > 0])[::-1]
    ranks = np.unique(
        np.concatenate([np.arange(1, _LARGEST + 1), np.geomspace(1, len(falling), _TAIL_POINTS - _LARGEST).astype(int)])
    )
    ranks = ranks[ranks <= len(falling)]
    return tuple((float(falling[rank - 1]), float(rank / len(weights))) for rank in ranks)


def _by_judge(judge: FloatArray, weights: FloatArray) -> tuple[tuple[float, float], ...]:
    group = score_groups(judge)
    rows = np.bincount(group).astype(np.float64)
    mean = np.bincount(group, weights=weights) / rows
    score = np.bincount(group, weights=judge) / rows
    return _steps(score, project(mean[:, None], rows[:, None]).weights[:, 0])


def _steps(at: FloatArray, value: FloatArray) -> tuple[tuple[float, float], ...]:
    """The points where a step function changes, and its last one."""
    keep = np.concatenate([[True], np.diff(value) != 0]) if len(value) else np.zeros(0, bool)
    keep[-1:] = True
    return tuple(zip(at[keep].tolist(), value[keep].tolist(), strict=True))
