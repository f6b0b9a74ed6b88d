"""When an estimate may be shown. Every threshold stands here, with its meaning, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["SHOWN", "CAUTION", "REFUSED"]
"""SHOWN: a headline number. CAUTION: the diagnostics, but no headline number. REFUSED: neither; what would help."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One gate that an estimate did not pass.

    Attributes:
        gate: its name: ess, n_ess, raw_ips, failures, mean_weight, bennett, labels.
        value: what was found.
        threshold: what it is held against.
        sentence: what that means, in words and with the numbers.
        remedy: what would help.
    """

    gate: str
    value: float
    threshold: float
    sentence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an estimate may be shown, and why not.

    Attributes:
        state: the worst of what the gates say.
        reasons: of the gates that were not passed, the worst first; empty for SHOWN.
    """

    state: State
    reasons: tuple[Reason, ...] = ()
