"""Values from a policy's own fresh draws, beside those from weights: the library cje-eval, and the plain mean."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from llamalab.arena.results import Value
from llamalab.arena.run_rows import DrawRow, LoggedRow, RunRows
from llamalab.errors import ConfigError
from llamalab.ope.intervals import cluster_variance, t_interval
from llamalab.ope.study import Draws


def mean_of_draws(draws: Draws | None, level: float) -> Value | None:
    """The plain mean of the judge scores of a policy's fresh draws, clustered by prompt; None without draws."""
    if draws is None or not len(draws.judge):
        return None
    value = float(draws.judge.mean())
    if len(np.unique(draws.prompt)) < 2:
        return Value("draws", "judge", None, None, None, None, problem="The fresh draws are all of one prompt.")
    variance = cluster_variance(draws.judge - value, draws.prompt)
    se = math.sqrt(variance.value)
    low, high = t_interval(value, se, variance.df, level)
    return Value("draws", "judge", value, se, low, high, variance.df)


def direct_values(rows: RunRows, kept: Sequence[LoggedRow], level: float) -> dict[str, Value]:
    """What cje-eval says of each target with fresh draws, on the oracle's scale.

    The labels of the base's responses calibrate the judge; a target without labels of its own borrows that calibration,
    which nothing here tests. Intervals are its cluster-robust ones, which know of the calibration's uncertainty.

    Args:
        rows: with fresh draws and the oracle's range.
        kept: the logged rows that the evaluation uses.
        level: of the intervals.

    Raises:
        ConfigError: the extra is not installed.
    """
    targets = [name for name in rows.targets if any(draw.judge is not None for draw in rows.draws.get(name, ()))]
    if not targets or rows.outcome_range is None:
        return {}
    try:
        import cje
    except ImportError:
        raise ConfigError(
            "Direct estimates come from cje-eval, which is not installed: pip install 'llamalab[arena]', or set "
            "estimators.direct to false."
        ) from None
    data = {rows.base: [_record(row.prompt_id, row.judge, row.label, at) for at, row in enumerate(kept)]}
    for name in targets:
        data[name] = _draw_records(rows.draws[name])
    known = {row.probability for row in kept if row.label is not None}
    scales: dict[str, Any] = {
        "fresh_judge_scale": rows.judge_range,
        "fresh_oracle_scale": rows.outcome_range,
        "output_scale": rows.outcome_range,
    }
    if len(known) > 1:  # rows were chosen with several probabilities
        scales["label_design"] = "known_propensity"
        scales["label_propensities"] = {
            name: [1.0] * len(each) if name != rows.base else [row.probability or 1.0 for row in kept]
            for name, each in data.items()
        }
    with _quiet():
        try:
            found = cje.analyze_dataset(
                fresh_draws_data=data, estimator_config={"inference_method": "cluster_robust"}, **scales
            )
        except (ValueError, ArithmeticError, RuntimeError) as error:
            problem = f"cje-eval: {str(error).splitlines()[0][:200]}"
            return {name: Value("direct", "oracle", None, None, None, None, problem=problem) for name in targets}
        intervals = found.ci(1.0 - level)
    numbers = zip(found.metadata["target_policies"], found.estimates, found.standard_errors, intervals, strict=True)
    return {name: _value(float(at), float(se), low, high) for name, at, se, (low, high) in numbers if name in targets}


def _value(value: float, se: float, low: float, high: float) -> Value:
    if not all(map(math.isfinite, (value, se, low, high))):
        return Value("direct", "oracle", None, None, None, None, problem="cje-eval gives no interval for these data.")
    return Value("direct", "oracle", value, se, low, high)


def _draw_records(draws: Sequence[DrawRow]) -> list[dict[str, Any]]:
    return [
        _record(draw.prompt_id, draw.judge, draw.label, at) for at, draw in enumerate(draws) if draw.judge is not None
    ]


def _record(prompt_id: str, judge: float | None, label: float | None, index: int) -> dict[str, Any]:
    return {"prompt_id": prompt_id, "judge_score": judge, "oracle_label": label, "draw_idx": index}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's advice on standard error: what matters of it stands in the report's notes."""
    logger = logging.getLogger("cje")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
