"""Lines with a user and a date whose label nobody has written down: counting, users and timelines, as in OOLONG.

Each line shows a text from which its label can be told ("How many bridges ...?" asks for a number); the questions
are about the labels. Four fifths of the lines belong to a fifth of the users. Where several answers are tied, each is
right.

Source: Bertsch et al. 2025, "OOLONG", the synthetic part; texts and wording are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import TypeAlias

from llamalab.rlm.bench import names

FIRST, DAYS = date(2023, 1, 1), 730
LabelSet: TypeAlias = dict[str, Callable[[Random], str]]
"""A label, and how a text of it is made."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A line.

    Attributes:
        day: of the line.
        user: its number.
        label: what the line does not say.
        text: from which it can be told.
    """

    day: date
    user: str
    label: str
    text: str

    @property
    def line(self) -> str:
        """As it stands in the text."""
        return f"Date: {shown_day(self.day)} || User: {self.user} || Instance: {self.text}"


def shown_day(day: date) -> str:
    """A day as the lines have it: Jan 14, 2024."""
    return f"{day:%b} {day.day}, {day.year}"


def _name(rng: Random) -> str:
    return names.made_up(rng).capitalize()


KINDS_OF_QUESTION: LabelSet = {
    "number": lambda rng: f"How many {rng.choice(names.NOUNS)}s does the {names.thing(rng)} have?",
    "person": lambda rng: f"Who {rng.choice(('founded', 'painted', 'sold'))} the {names.thing(rng)}?",
    "place": lambda rng: f"Where {rng.choice(('is', 'was', 'do people see'))} the {names.thing(rng)}?",
    "time": lambda rng: f"When {rng.choice(('did', 'will', 'does'))} the {names.thing(rng)} open?",
}
MOODS: LabelSet = {
    "positive": lambda rng: (
        f"{rng.choice(('I loved', 'What a joy was', 'Everybody praised'))} the {names.thing(rng)}, "
        f"{rng.choice(('so friendly', 'a pleasure', 'just perfect'))}."
    ),
    "negative": lambda rng: (
        f"{rng.choice(('I hated', 'Nobody enjoyed', 'What a mess was'))} the {names.thing(rng)}, "
        f"{rng.choice(('so rude', 'a waste', 'simply awful'))}."
    ),
}
TOPICS: LabelSet = {
    "sports": lambda rng: f"{_name(rng)} scored {rng.randint(1, 5)} goals against {_name(rng)} in the final match.",
    "business": lambda rng: (
        f"Shares of {_name(rng)} rose by {rng.randint(1, 30)} percent after its profit was announced."
    ),
    "science": lambda rng: f"Physicists at {_name(rng)} measured the mass of a new particle in the laboratory.",
    "weather": lambda rng: f"Heavy rain and thunder are expected over {_name(rng)} until Sunday night.",
    "food": lambda rng: f"The cook of {_name(rng)} bakes bread with onions and serves it with soup.",
}
LABEL_SETS: tuple[LabelSet, ...] = (KINDS_OF_QUESTION, MOODS, TOPICS)


def draw(rng: Random, size: int) -> tuple[LabelSet, list[Instance]]:
    """Lines of one label set, `size` characters of them at most, in the order of chance."""
    labels = rng.choice(LABEL_SETS)
    weights = [rng.uniform(0.2, 1.0) for _ in labels]
    users = names.distinct(rng, max(5, min(size // 2000, 500)), lambda rng: names.digits(rng, 5))
    busy = users[: max(len(users) // 5, 1)]
    instances: list[Instance] = []
    room = size
    while True:
        label = rng.choices(list(labels), weights)[0]
        user = rng.choice(busy if rng.random() < 0.8 else users[len(busy) :])
        day = FIRST + timedelta(days=rng.randrange(DAYS))
        instance = Instance(day, user, label, labels[label](rng))
        room -= len(instance.line) + 1
        if room < 0:
            return labels, instances
        instances.append(instance)
