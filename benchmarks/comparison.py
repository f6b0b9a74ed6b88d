"""What the benchmarks of one model against another way of doing the same thing write down."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One comparison.

    Attributes:
        model: its name.
        what: is compared.
        ours: tokens per second, or seconds, as the benchmark says.
        against: the other arm.
        other: its figure.
        ratio: how many times better ours is, the median over the rounds.
        at_least: what is asked of it; None: nothing.
    """

    model: str
    what: str
    ours: float
    against: str
    other: float
    ratio: float
    at_least: float | None

    @property
    def met(self) -> bool:
        """Whether the ratio is what is asked of it."""
        return self.at_least is None or self.ratio >= self.at_least
