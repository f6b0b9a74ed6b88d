"""What pico learns: each task makes one conversation at a time, from chance alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from training.binding import facts_by_kind, facts_by_name, short_facts
from training.episode import Episode
from training.others import repeat, repeat_number, simple_list, story, sums, talk
from training.passages import passage, passage_asked_again, passage_of_alike
from training.root import root_count, root_find, root_not_found, root_retry

Task = Callable[[Random, float], Episode]
EARLY: dict[Task, float] = {
    passage: 0.45,
    root_find: 0.13,
    root_retry: 0.08,
    root_not_found: 0.06,
    root_count: 0.07,
    repeat: 0.10,
    simple_list: 0.02,
    story: 0.04,
    talk: 0.03,
    sums: 0.02,
}
"""Each task with its share of the episodes in the first part of training."""

LATE: dict[Task, float] = {
    passage: 0.45,
    root_find: 0.13,
    root_retry: 0.10,
    root_not_found: 0.05,
    root_count: 0.09,
    repeat: 0.06,
    repeat_number: 0.04,
    simple_list: 0.015,
    story: 0.03,
    talk: 0.025,
    sums: 0.01,
}
"""The second part: exact copying is what is left to learn of most tasks."""

ALIKE: dict[Task, float] = {
    passage_of_alike: 0.42,
    passage: 0.14,
    root_find: 0.11,
    root_retry: 0.09,
    root_not_found: 0.05,
    root_count: 0.07,
    repeat: 0.03,
    repeat_number: 0.03,
    simple_list: 0.01,
    story: 0.025,
    talk: 0.02,
    sums: 0.005,
}
"""The third part: facts with the same attribute, told apart by the entity alone."""

BINDING: dict[Task, float] = {short_facts: 0.55, facts_by_kind: 0.25, facts_by_name: 0.20}
"""The fourth part: the same from the ground up."""

LAST: dict[Task, float] = {
    passage_asked_again: 0.30,
    facts_by_name: 0.20,
    facts_by_kind: 0.03,
    root_find: 0.12,
    root_retry: 0.10,
    root_not_found: 0.05,
    root_count: 0.08,
    repeat: 0.03,
    repeat_number: 0.03,
    simple_list: 0.01,
    story: 0.025,
    talk: 0.02,
    sums: 0.005,
}
"""The fifth part: everything, with what the fourth has taught."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of training.

    Attributes:
        first: its first step.
        mixture: each task with its share of the episodes.
        growth: steps over which tasks go from their easiest form to their full size.
        other_weight: weight of the loss on tokens that pico need not say itself.
        buckets: row lengths. A batch holds rows of one length, and each length is compiled once per shared prefix.
    """

    first: int
    mixture: Mapping[Task, float]
    growth: tuple[int, int]
    other_weight: float = 0.1
    buckets: tuple[int, ...] = (32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512)

    def level(self, step: int) -> float:
        """How far tasks have grown, in [0, 1]."""
        begin, end = self.growth
        return min(1.0, max(0.0, (step - begin) / (end - begin)))


GROWTH = (0, 1800)
PARTS = (
    Part(0, EARLY, GROWTH),
    Part(1200, LATE, GROWTH),
    Part(4000, ALIKE, GROWTH),
    Part(4650, BINDING, (5100, 5500), other_weight=0.0, buckets=(256,)),  # so that each batch has all three
    Part(5550, LAST, GROWTH),
)
STEPS = 6450


def part_of(step: int) -> Part:
    """The part that `step` belongs to."""
    return next(part for part in reversed(PARTS) if part.first <= step)
