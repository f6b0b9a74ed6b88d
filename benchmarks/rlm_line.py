"""One figure of `rlm.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """What was measured, and what was asked of it.

    Attributes:
        part: of the benchmark.
        what: in words.
        value: that was measured.
        unit: of it.
        asked: the goal; None where the figure is only reported.
        least: the goal is a least value; otherwise the most that is allowed.
    """

    part: str
    what: str
    value: float
    unit: str = ""
    asked: float | None = None
    least: bool = False

    @property
    def met(self) -> bool:
        if self.asked is None:
            return True
        return self.value >= self.asked if self.least else self.value <= self.asked
