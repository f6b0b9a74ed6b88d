"""Joint cluster bootstrap over policies (signatures; the bodies follow)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamalab.ope.estimators import ESTIMATORS, Scale
from llamalab.ope.study import FloatArray, Study


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
        policy, other: the difference is policy minus other.
        value, se, low, high: of the difference; the interval is by percentiles around the value.
        p: two-sided, unadjusted.
        p_adjusted: by Benjamini and Hochberg over the family of differences.
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
) -> Replicates:
    """Weigh prompts by Exp(1), refit everything, jointly over policies."""
    raise NotImplementedError


def differences(
    replicates: Replicates,
    estimator: str,
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    level: float = 0.95,
) -> tuple[Difference, ...]:
    """Paired differences, by default of all pairs, adjusted for their number."""
    raise NotImplementedError
