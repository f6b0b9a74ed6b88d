"""What pico learns: each task makes one conversation at a time, from chance alone."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from training.episode import Episode
from training.others import repeat, repeat_number, simple_list, story, sums, talk
from training.passages import passage, passage_of_alike
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

LAST: dict[Task, float] = {
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
"""The third part: of facts with the same attribute, taking the one about the right entity."""
