"""Values of target policies from logged responses (signatures; the bodies follow)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llamalab.ope.study import FloatArray, Study

ESTIMATORS = ("ips", "snips", "calibrated_ips", "dr", "stacked")
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
        low, high: the interval at the level asked for.
        df: degrees of freedom of the t distribution behind it.
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
    """Every estimate that the study allows, policy by policy ("dr" only where there are fresh draws).

    Raises:
        InputError: fewer than two prompts; on the oracle scale no labels, one label, or labels chosen by hand; weights
            that are all zero; an unknown policy.
    """
    raise NotImplementedError
