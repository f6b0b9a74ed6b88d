"""Telling facts apart by what they are about, from the ground up.

Matching an entity in the question with the one before a value is a circuit of three parts that help only together, and
chance does not find it among thousands of names: 16 million tokens of passages did not. It forms within a hundred steps
if there are three entities in the whole world; then the world grows, a few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from training import words
from training.episode import Episode
from training.facts import ATTRIBUTES, CANONICAL_QUESTION, CANONICAL_STATEMENT, Fact, make_fact
from training.passages import CANONICAL_LAYOUT, lay_out

FIRST_KINDS = 3
_DIGITS = "123456789"
_CODES = tuple(
    attribute
    for attribute in ATTRIBUTES
    if attribute.name in ("access code", "pin", "phone number", "room number", "lucky number")
)


def short_facts(rng: Random, level: float) -> Episode:
    """"The vault is 4. The hotel is 7. The hotel?", many times over: as many questions to a token as there can be."""
    kinds = known_kinds(level)
    n = rng.randint(2, min(5, len(kinds)))
    values = dict(zip(rng.sample(kinds, n), rng.sample(_DIGITS, n), strict=True))
    stated = " ".join(f"The {kind} is {value}." for kind, value in values.items())
    turns: list[str] = []
    for kind in rng.choices(list(values), k=17 - n // 2):
        asked = f"The {kind}?"
        turns += [asked if turns else f"{stated} {asked}", values[kind]]
    return Episode("binding", tuple(turns))


def facts_by_kind(rng: Random, level: float) -> Episode:
    """Canonical wording, the entities a single word each."""
    kinds = known_kinds(level)
    n, attribute = rng.randint(2, min(4, len(kinds))), rng.choice(_CODES)
    values = (first + words.digits(rng, rng.randint(1, 4)) for first in rng.sample(_DIGITS, n))
    facts = [Fact(kind, attribute, value) for kind, value in zip(rng.sample(kinds, n), values, strict=True)]
    return _asked(rng, facts, 6)


def facts_by_name(rng: Random, _level: float) -> Episode:
    """Canonical wording and full names; the facts share their attribute."""
    facts = [make_fact(rng)]
    while len(facts) < 2 + (rng.random() < 0.3):
        other = make_fact(rng)
        value = facts[0].attribute.value(rng)
        if all(value != f.value and other.entity != f.entity for f in facts):
            facts.append(Fact(other.entity, facts[0].attribute, value))
    return _asked(rng, facts, 4)


def known_kinds(level: float) -> Sequence[str]:
    """The kinds of thing there are: three at level 0, all of `words.KINDS` at level 1."""
    return words.KINDS[: round(FIRST_KINDS * (len(words.KINDS) / FIRST_KINDS) ** level)]


def _asked(rng: Random, facts: list[Fact], n: int) -> Episode:
    """`n` questions, each to any of the facts: none can be answered by leaving out what was said before."""
    stated = [fact.fill(CANONICAL_STATEMENT) for fact in facts]
    turns: list[str] = []
    for fact in rng.choices(facts, k=n):
        asked = fact.fill(CANONICAL_QUESTION)
        turns += [asked if turns else lay_out(CANONICAL_LAYOUT, stated, asked), fact.value]
    return Episode("binding", tuple(turns))
