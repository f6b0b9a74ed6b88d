"""Questions that the built-in model was trained for: find one line, count lines, and what is not there.

The wording is its training's canonical one, or another that its training never showed. The text is lines about other
things, a third of them facts of the same form, so the asked-for line is told from them by its words alone.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from llamalab.rlm.bench import names
from llamalab.rlm.bench.case import Generator, Made, fill
from llamalab.rlm.bench.scorers import Absent, Number, Value

ATTRIBUTES: dict[str, Callable[[Random], str]] = {
    "access code": lambda rng: names.digits(rng, 5),
    "phone number": lambda rng: names.digits(rng, 7),
    "serial number": lambda rng: f"{chr(rng.randint(65, 90))}{chr(rng.randint(65, 90))}-{names.digits(rng, 3)}",
    "room number": lambda rng: names.digits(rng, 3),
    "owner": names.person,
    "keeper": names.person,
    "location": lambda rng: names.made_up(rng).capitalize(),
    "height": lambda rng: f"{rng.randint(10, 900)} meters",
    "price": lambda rng: f"{rng.randint(10, 900)} dollars",
    "opening time": lambda rng: f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}",
    "year of construction": lambda rng: str(rng.randint(1400, 2030)),
    "next inspection": lambda rng: f"{rng.randint(1, 28)} {rng.choice(('March', 'June', 'October'))}",
}
CANONICAL = "What is the {A} of the {E}?"
OTHERS = (
    "Could you find out the {A} of the {E}?",
    "I would like to know the {A} of the {E}.",
    "What would be the {A} of the {E}?",
)
CANONICAL_COUNT = "How many {W} lines are there?"
OTHER_COUNTS = (
    "What is the total of {W} lines?",
    "How many of the lines include {W}?",
    "How many lines do you see with {W}?",
)
_EVENTS = "timeout login logout retry upload download restart backup payment delivery refund".split()
_OTHER_LEVELS = ("INFO", "DEBUG", "WARN", "TRACE")


def find(*, canonical: bool) -> Generator:
    """One line says it."""

    def make(rng: Random, size: int) -> Made:
        thing, attribute, value = _fact(rng)
        text = fill(rng, size, [_told(thing, attribute, value)], _noise_without(thing, rng))
        return text, _asked(rng, thing, attribute, canonical=canonical), Value(value)

    return make


def absent(*, canonical: bool) -> Generator:
    """No line names what is asked about."""

    def make(rng: Random, size: int) -> Made:
        thing, attribute, _ = _fact(rng)
        text = fill(rng, size, [], _noise_without(thing, rng))
        return text, _asked(rng, thing, attribute, canonical=canonical), Absent()

    return make


def unsaid(rng: Random, size: int) -> Made:
    """A line names what is asked about, and says something else of it."""
    thing, attribute, _ = _fact(rng)
    other = rng.choice([name for name in ATTRIBUTES if name != attribute])
    value = ATTRIBUTES[other](rng)
    text = fill(rng, size, [_told(thing, other, value)], _noise_without(thing, rng))
    return text, _asked(rng, thing, attribute, canonical=True), Absent(frozenset({value}))


def count(*, canonical: bool) -> Generator:
    """Lines of a log with a word in them; other lines hold longer words that begin with it."""

    def make(rng: Random, size: int) -> Made:
        word = names.made_up(rng, syllables=2).upper()
        total = int(2 ** rng.uniform(0, 9))
        levels = (*_OTHER_LEVELS, names.made_up(rng, syllables=2).upper(), word + "X")
        marked = [_log_line(rng, word) for _ in range(min(total, max(size // 400, 1)))]
        text = fill(rng, size, marked, lambda rng: _log_line(rng, rng.choice(levels)))
        asked = CANONICAL_COUNT if canonical else rng.choice(OTHER_COUNTS)
        return text, asked.replace("{W}", word), Number(len(marked))

    return make


def _fact(rng: Random) -> tuple[str, str, str]:
    attribute = rng.choice(list(ATTRIBUTES))
    return names.thing(rng), attribute, ATTRIBUTES[attribute](rng)


def _told(thing: str, attribute: str, value: str) -> str:
    return f"The {attribute} of the {thing} is {value}."


def _asked(rng: Random, thing: str, attribute: str, *, canonical: bool) -> str:
    asked = CANONICAL if canonical else rng.choice(OTHERS)
    return asked.replace("{A}", attribute).replace("{E}", thing)


def _noise_without(thing: str, rng: Random) -> Callable[[Random], str]:
    """Lines about anything but `thing`; few things have many lines each, as in real texts."""
    things = [name for name in names.distinct(rng, 200, names.thing) if name != thing]

    def noise(rng: Random) -> str:
        if rng.random() < 0.66:
            return names.essay_line(rng)
        attribute = rng.choice(list(ATTRIBUTES))
        return _told(rng.choice(things), attribute, ATTRIBUTES[attribute](rng))

    return noise


def _log_line(rng: Random, level: str) -> str:
    clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}"
    return f"{clock} {level} {rng.choice(names.NOUNS)} {rng.choice(_EVENTS)}"
