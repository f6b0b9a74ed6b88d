"""The eight needle variants of RULER: one fact, or several, among noise, an essay, or needles of the same form.

Source: Hsieh et al. 2024, "RULER", section 3.1 and its published settings; the wording is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Literal

from llamalab.rlm.bench import names
from llamalab.rlm.bench.case import Generator, Made, fill
from llamalab.rlm.bench.scorers import AllOf

_NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")


@dataclass(frozen=True, slots=True)
class Needle:
    """A variant.

    Attributes:
        haystack: noise: five sentences again and again; essay; needles: others of the same form.
        key: what a value is kept under.
        value: what is asked for.
        keys: needles with different keys.
        values: values of the key that is asked for.
        queries: keys that are asked for.
    """

    haystack: Literal["noise", "essay", "needles"]
    key: Literal["word", "uuid"] = "word"
    value: Literal["number", "uuid"] = "number"
    keys: int = 1
    values: int = 1
    queries: int = 1


VARIANTS: dict[str, Needle] = {
    "needle-single-1": Needle("noise"),
    "needle-single-2": Needle("essay"),
    "needle-single-3": Needle("essay", value="uuid"),
    "needle-multikey-1": Needle("essay", keys=4),
    "needle-multikey-2": Needle("needles"),
    "needle-multikey-3": Needle("needles", key="uuid", value="uuid"),
    "needle-multivalue": Needle("essay", values=4),
    "needle-multiquery": Needle("essay", keys=4, queries=4),
}


def generator(variant: Needle) -> Generator:
    """The generator of a variant."""
    return partial(_make, variant)


def _make(variant: Needle, rng: Random, size: int) -> Made:
    make_key, make_value = _KEYS[variant.key], _VALUES[variant.value]
    keys = names.distinct(rng, variant.keys, make_key)
    values = names.distinct(rng, variant.keys * variant.values, make_value)
    needles = [
        (key, value) for at, key in enumerate(keys) for value in values[at * variant.values : (at + 1) * variant.values]
    ]
    asked = set(rng.sample(keys, variant.queries))
    others: list[str] = []

    def haystack(rng: Random) -> str:
        if variant.haystack == "noise":
            return " ".join(_NOISE)
        if variant.haystack == "essay":
            return names.essay_line(rng)
        while True:
            key, value = make_key(rng), make_value(rng)
            if key not in asked and value not in values:
                others.append(value)
                return _told(variant, key, value)

    shuffled = rng.sample(needles, len(needles))
    text = fill(rng, size, [_told(variant, key, value) for key, value in shuffled], haystack)
    if others and others[-1] not in text:  # the line that did not fit any more
        others.pop()
    gold = frozenset(value for key, value in needles if key in asked)
    question = _asked(variant, [key for key in keys if key in asked])
    return text, question, AllOf(gold, frozenset(values) | frozenset(others))


def _key(rng: Random) -> str:
    return f"{rng.choice(names.ADJECTIVES)}-{names.made_up(rng)}"


def _number(rng: Random) -> str:
    return names.digits(rng, 7)


_KEYS: dict[str, Callable[[Random], str]] = {"word": _key, "uuid": names.identifier}
_VALUES: dict[str, Callable[[Random], str]] = {"number": _number, "uuid": names.identifier}


def _told(variant: Needle, key: str, value: str) -> str:
    return f"One of the special magic {variant.value}s for {key} is: {value}."


def _asked(variant: Needle, keys: list[str]) -> str:
    whose = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
    if variant.values == variant.queries == 1:
        return f"What is the special magic {variant.value} for {whose}? Answer with it alone."
    return f"What are all the special magic {variant.value}s for {whose}? Answer with them, separated by commas."
