"""What is asked about labelled lines, and what is right: over all of them, by user, and over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from random import Random
from typing import TypeAlias

from llamalab.rlm.bench.case import Generator, Made
from llamalab.rlm.bench.labels import DAYS, FIRST, Instance, draw, shown_day
from llamalab.rlm.bench.scorers import Day, Number, OneOf, Scorer

Asked: TypeAlias = tuple[str, Scorer]
Form: TypeAlias = Callable[[Random, Sequence[str], Sequence[Instance]], Asked]
"""Makes a question from labels and lines."""

ORDER = frozenset({"more", "less", "same"})
_MONTHS = "January February March April May June July August September October November December".split()


def generator(forms: Sequence[Form]) -> Generator:
    """Lines, and a question of one of the forms."""
    return partial(_make, forms)


def _make(forms: Sequence[Form], rng: Random, size: int) -> Made:
    labels, instances = draw(rng, size)
    question, right = rng.choice(forms)(rng, list(labels), instances)
    head = (
        f"Every line of the text has one of the labels {', '.join(labels)}, which it does not say: "
        "tell it from its Instance. "
    )
    return "\n".join(instance.line for instance in instances) + "\n", head + question, right


def most(counts: Mapping[str, int], place: int = 1) -> frozenset[str]:
    """Those that have as many as the one in that place, when all are put in order; several where they are tied."""
    ordered = sorted(counts.values(), reverse=True)
    wanted = ordered[min(place, len(ordered)) - 1]
    return frozenset(name for name, n in counts.items() if n == wanted)


def compared(a: int, b: int) -> frozenset[str]:
    """Whether `a` is more, less or the same."""
    return frozenset({"more" if a > b else "less" if a < b else "same"})


# ---- over all lines ----------------------------------------------------------------------------------------------


def most_common(_rng: Random, labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """The label with most lines."""
    return "Which label is the most common? Answer with it alone.", OneOf(
        most(_counts(labels, lines)), frozenset(labels)
    )


def least_common(_rng: Random, labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """The label with fewest lines; one that no line has is the least common."""
    right = most(_counts(labels, lines), len(labels))
    return "Which label is the least common? Answer with it alone.", OneOf(right, frozenset(labels))


def how_many(rng: Random, labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """Lines of one label."""
    label = rng.choice(labels)
    asked = f"How many lines have the label {label}? Answer with the number alone."
    return asked, Number(_counts(labels, lines)[label])


def which_of_two(rng: Random, labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """Whether one label is more common than another."""
    a, b = rng.sample(labels, 2)
    counts = _counts(labels, lines)
    return f"Is the label {a} more, less or the same in number as {b}? {_ANSWER_ORDER}", _order(counts[a], counts[b])


# ---- by user -----------------------------------------------------------------------------------------------------


def busiest_user(rng: Random, _labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """The user with most lines, or with the second most."""
    place = rng.choice((1, 2))
    return (
        f"Which user has the {'most' if place == 1 else 'second most'} lines? Answer with the user's number alone.",
        _one_user(lines, most(Counter(line.user for line in lines), place)),
    )


def busiest_with_label(rng: Random, _labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """The user with most lines of one label."""
    label = rng.choice(lines).label
    right = most(Counter(line.user for line in lines if line.label == label))
    asked = f"Which user has the most lines with the label {label}? Answer with the user's number alone."
    return asked, _one_user(lines, right)


def which_user(rng: Random, labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """Whether one user has more lines of a label than another."""
    label, (a, b) = rng.choice(labels), _some_users(rng, lines, 2)
    counts = Counter(line.user for line in lines if line.label == label)
    asked = (
        f"Does user {a} have more, less or the same number of lines with the label {label} as user {b}? {_ANSWER_ORDER}"
    )
    return asked, _order(counts[a], counts[b])


def of_some_users(rng: Random, labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """Lines of one label that belong to a few users."""
    label, users = rng.choice(labels), _some_users(rng, lines, 3)
    n = sum(line.label == label and line.user in users for line in lines)
    asked = (
        f"How many lines of the users {', '.join(users)} together have the label {label}? Answer with the number alone."
    )
    return asked, Number(n)


# ---- over time ---------------------------------------------------------------------------------------------------


def between(rng: Random, labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """Lines of one label between two days, both included."""
    label = rng.choice(labels)
    first = FIRST + timedelta(days=rng.randrange(DAYS // 2))
    last = first + timedelta(days=rng.randrange(20, DAYS // 2))
    n = sum(line.label == label and first <= line.day <= last for line in lines)
    when = f"from {shown_day(first)} to {shown_day(last)}, both days included"
    return f"How many lines {when}, have the label {label}? Answer with the number alone.", Number(n)


def before_or_after(rng: Random, labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """Whether a label has more lines before a day than from it on."""
    label, day = rng.choice(labels), FIRST + timedelta(days=rng.randrange(DAYS // 4, 3 * DAYS // 4))
    before = sum(line.label == label and line.day < day for line in lines)
    after = sum(line.label == label and line.day >= day for line in lines)
    asked = (
        f"Are there more, less or the same number of lines with the label {label} before {shown_day(day)} "
        f"as on that day and after it? {_ANSWER_ORDER}"
    )
    return asked, _order(before, after)


def top_in_month(rng: Random, labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """The most common label of one month of one year."""
    day = rng.choice(lines).day
    of_month = [line for line in lines if (line.day.year, line.day.month) == (day.year, day.month)]
    asked = f"Which label is the most common in {_MONTHS[day.month - 1]} {day.year}? Answer with it alone."
    return asked, OneOf(most(_counts(labels, of_month)), frozenset(labels))


def months_ahead(rng: Random, labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """In how many months of the two years one label has more lines than another."""
    a, b = rng.sample(labels, 2)
    n = sum(by[a] > by[b] for by in _by_month(lines).values())
    asked = (
        f"Take each month of each year for itself: in how many of them are there more lines with the label {a} "
        f"than with {b}? Answer with the number alone."
    )
    return asked, Number(n)


def months_on_top(rng: Random, labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """In how many months one label has most lines, alone or tied."""
    label = rng.choice(labels)
    n = sum(by[label] == max(by.values()) for by in _by_month(lines).values())
    asked = (
        f"Take each month of each year for itself: in how many of them has no label more lines than {label}? "
        "Leave out months without any line. Answer with the number alone."
    )
    return asked, Number(n)


def days_with(rng: Random, _labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """How many days occur exactly so often."""
    counts = Counter(line.day for line in lines)
    often = rng.choice(list(counts.values()))
    asked = f"How many days occur on exactly {often} line{'s' * (often > 1)}? Answer with the number alone."
    return asked, Number(sum(n == often for n in counts.values()))


def busiest_day(_rng: Random, _labels: Sequence[str], lines: Sequence[Instance]) -> Asked:
    """The day with most lines."""
    counts = Counter(line.day for line in lines)
    top = max(counts.values())
    return "Which day has the most lines? Answer with the day alone.", Day(
        frozenset(day for day, n in counts.items() if n == top)
    )


COUNTING: tuple[Form, ...] = (most_common, least_common, how_many, which_of_two)
USERS: tuple[Form, ...] = (busiest_user, busiest_with_label, which_user, of_some_users)
TIMELINE: tuple[Form, ...] = (
    between,
    before_or_after,
    top_in_month,
    months_ahead,
    months_on_top,
    days_with,
    busiest_day,
)

_ANSWER_ORDER = "Answer with more, less or same alone."


def _counts(labels: Iterable[str], lines: Iterable[Instance]) -> dict[str, int]:
    counts = Counter(line.label for line in lines)
    return {label: counts[label] for label in labels}


def _by_month(lines: Iterable[Instance]) -> dict[tuple[int, int], Counter[str]]:
    months: dict[tuple[int, int], Counter[str]] = {}
    for line in lines:
        months.setdefault((line.day.year, line.day.month), Counter())[line.label] += 1
    return months


def _order(a: int, b: int) -> OneOf:
    return OneOf(compared(a, b), ORDER)


def _one_user(lines: Sequence[Instance], right: frozenset[str]) -> OneOf:
    return OneOf(right, frozenset(line.user for line in lines))


def _some_users(rng: Random, lines: Sequence[Instance], n: int) -> list[str]:
    users = sorted({line.user for line in lines})
    return rng.sample(users, min(n, len(users)))
