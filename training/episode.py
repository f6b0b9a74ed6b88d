"""One conversation to learn from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Episode:
    """One conversation to learn from: alternating user and assistant turns, after an optional system message."""

    task: str
    turns: tuple[str, ...]
    system: str | None = None
