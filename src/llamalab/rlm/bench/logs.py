"""Questions over a server's log whose answer is a figure of many lines: counts, sums, extremes, who is on top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import TypeAlias

from llamalab.rlm.bench import names
from llamalab.rlm.bench.case import Generator, Made
from llamalab.rlm.bench.label_questions import most
from llamalab.rlm.bench.scorers import Number, OneOf, Scorer, Value

LEVELS = ("INFO", "DEBUG", "WARN", "ERROR")
_SHARES = (70, 15, 10, 5)
_BEGAN = datetime(2026, 3, 1)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the log.

    Attributes:
        at: its time.
        level: how bad it is.
        service: that wrote it.
        user: whom it is about.
        took: milliseconds.
    """

    at: datetime
    level: str
    service: str
    user: str
    took: int

    @property
    def line(self) -> str:
        """As it stands in the text."""
        return f"{self.at.isoformat()} {self.level} {self.service} user={self.user} took={self.took}ms"


Form: TypeAlias = Callable[[Random, Sequence[Entry]], tuple[str, Scorer]]


def draw(rng: Random, size: int) -> list[Entry]:
    """A log of `size` characters at most, in the order of time."""
    services = names.distinct(rng, 8, lambda rng: names.made_up(rng, syllables=2))
    users = names.distinct(rng, max(10, min(size // 3000, 2000)), lambda rng: f"u{names.digits(rng, 5)}")
    entries: list[Entry] = []
    at, room = _BEGAN, size
    while True:
        at += timedelta(seconds=rng.randint(0, 9))
        level = rng.choices(LEVELS, _SHARES)[0]
        entry = Entry(at, level, rng.choice(services), rng.choice(users), rng.randint(1, 10 ** rng.randint(1, 4)))
        room -= len(entry.line) + 1
        if room < 0:
            return entries
        entries.append(entry)


def errors_of_service(rng: Random, log: Sequence[Entry]) -> tuple[str, Scorer]:
    """Lines with a level and a service."""
    service = rng.choice(log).service
    n = sum(entry.level == "ERROR" and entry.service == service for entry in log)
    return f"How many ERROR lines of the service {service} are in the log? Answer with the number alone.", Number(n)


def worst_service(rng: Random, log: Sequence[Entry]) -> tuple[str, Scorer]:
    """The service with most lines of a level."""
    level = rng.choice([level for level in LEVELS if any(entry.level == level for entry in log)])
    right = most(Counter(entry.service for entry in log if entry.level == level))
    asked = f"Which service has the most {level} lines? Answer with its name alone."
    return asked, OneOf(right, frozenset(entry.service for entry in log))


def time_of_service(rng: Random, log: Sequence[Entry]) -> tuple[str, Scorer]:
    """A sum over the lines of a service."""
    service = rng.choice(log).service
    total = sum(entry.took for entry in log if entry.service == service)
    return (
        f"How many milliseconds did the lines of the service {service} take in all? Answer with the number alone.",
        Value(str(total)),
    )


def slowest(rng: Random, log: Sequence[Entry]) -> tuple[str, Scorer]:
    """The largest time of a service."""
    service = rng.choice(log).service
    longest = max(entry.took for entry in log if entry.service == service)
    asked = f"How many milliseconds did the slowest line of the service {service} take? Answer with the number alone."
    return asked, Value(str(longest))


def users_with_level(rng: Random, log: Sequence[Entry]) -> tuple[str, Scorer]:
    """Different users on lines of a level."""
    level = rng.choice(LEVELS)
    n = len({entry.user for entry in log if entry.level == level})
    return f"How many different users are on {level} lines? Answer with the number alone.", Number(n)


def first_of_level(rng: Random, log: Sequence[Entry]) -> tuple[str, Scorer]:
    """When a service first wrote a line of a level."""
    entry = rng.choice(log)
    first = next(e for e in log if (e.level, e.service) == (entry.level, entry.service))
    asked = (
        f"When was the first {entry.level} line of the service {entry.service} written? "
        "Answer with its time as it stands there."
    )
    return asked, Value(first.at.isoformat())


FORMS: tuple[Form, ...] = (
    errors_of_service,
    worst_service,
    time_of_service,
    slowest,
    users_with_level,
    first_of_level,
)


def generator(forms: Sequence[Form] = FORMS) -> Generator:
    """A log, and a question of one of the forms."""
    return partial(_make, forms)


def _make(forms: Sequence[Form], rng: Random, size: int) -> Made:
    log = draw(rng, size)
    question, right = rng.choice(forms)(rng, log)
    return "\n".join(entry.line for entry in log) + "\n", question, right
