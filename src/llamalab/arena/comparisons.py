"""Differences between policies on the same prompts, from one joint bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from llamalab.arena.results import Comparison, Scale
from llamalab.arena.settings import EstimatorSettings
from llamalab.ope.bootstrap import Difference, Replicates, bootstrap, differences
from llamalab.ope.study import Study


def compare(
    study: Study, shown: Sequence[str], base: str, scale: Scale, settings: EstimatorSettings, quoted: Sequence[str]
) -> tuple[Comparison, ...]:
    """All pairs of the policies that are shown, the base among them.

    Args:
        study: with the base as one of its policies.
        shown: names.
        base: name; its own value is the mean of its responses.
        scale: of the values.
        settings: replicates, seed, level.
        quoted: estimators, the one to quote first.
    """
    if len(shown) < 2:
        return ()
    names = [name for name in quoted if name in settings.names]
    replicates = bootstrap(
        study,
        tuple(dict.fromkeys((*names, "snips"))),
        policies=list(shown),
        replicates=settings.replicates,
        scale=scale,
        folds=settings.folds,
        seed=settings.seed,
    )
    of = {name: "snips" if name == base else _first(replicates, names, name) for name in shown}
    columns = list(enumerate(replicates.policies))
    values = np.stack([replicates.values[of[name]][:, at] for at, name in columns], axis=1)
    points = np.array([replicates.points[of[name]][at] for at, name in columns])
    joint = replace(replicates, values={_QUOTED: values}, points={_QUOTED: points})
    pairs = [(b, a) if a == base else (a, b) for a, b in combinations(shown, 2)]
    found = differences(joint, _QUOTED, pairs, level=settings.level)
    return tuple(_comparison(each, of, scale, settings.level) for each in found)


_QUOTED = "quoted"


def _first(replicates: Replicates, names: Sequence[str], policy: str) -> str:
    at = replicates.policies.index(policy)
    return next((name for name in names if np.isfinite(replicates.points[name][at])), "snips")


def _comparison(found: Difference, of: dict[str, str], scale: Scale, level: float) -> Comparison:
    return Comparison(
        first=found.policy,
        second=found.other,
        estimator=of[found.policy],
        scale=scale,
        difference=found.value,
        se=found.se,
        low=found.low,
        high=found.high,
        p=found.p,
        p_adjusted=found.p_adjusted,
        sentence=_sentence(found, level),
    )


def _sentence(found: Difference, level: float) -> str:
    alpha = 1.0 - level
    if found.p_adjusted < alpha:
        word = "better" if found.value > 0 else "worse"
        return f"{found.policy} is {word} than {found.other} by {abs(found.value):.3g}."
    return f"{found.policy} and {found.other} cannot be told apart with these data."
