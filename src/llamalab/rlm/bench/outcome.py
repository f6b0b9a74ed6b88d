"""What became of one question in one mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from llamalab.engine import Usage
from llamalab.rlm.budget import Role

Mode: TypeAlias = Literal["rlm", "direct", "grep"]
"""rlm: the loop; direct: one call that is shown the text, cut where it does not fit; grep: one call that is shown the
lines that hold the question's rarest words."""

MODES: tuple[Mode, ...] = ("rlm", "direct", "grep")


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer and what it cost.

    Attributes:
        model: name of the root, or of the model that was asked directly.
        mode: how it was answered.
        task: kind of question.
        size: characters of the text.
        seed: of the question.
        right: the answer is right.
        score: how near it comes, in [0, 1].
        answer: as it was given; empty after an error.
        gold: what is right, in words.
        usage: tokens by role.
        reading: tokens that the whole text comes to; estimated for texts that are longer than a million characters
            and for models that cannot count.
        turns: calls of the root.
        malformed: turns without a valid command.
        complete: the model ended the run itself.
        cut: the text was not shown whole (direct, grep).
        seconds: wall clock.
        error: why there is no answer; empty where there is one.
    """

    model: str
    mode: Mode
    task: str
    size: int
    seed: int
    right: bool
    score: float
    answer: str
    gold: str
    usage: Mapping[Role, Usage]
    reading: int
    turns: int
    malformed: int
    complete: bool
    cut: bool
    seconds: float
    error: str = ""

    @property
    def tokens(self) -> int:
        """Of all calls: prompts, cached ones too, and replies."""
        return sum(usage.fresh + usage.cached + usage.output for usage in self.usage.values())
