"""Exact scorers: an answer is right or wrong, and no part of a longer word or number counts.

Each scorer is a frozen record of what is right. `score` gives a share in [0, 1] by the published rule where there is
one (a number that is off by one gets 0.75, a list its overlap); an answer is right if it gets 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Protocol

_NUMBER = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|[-+]?\d+(?:\.\d+)?")
_WORD = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![^\W_])|\d+\.\d+(?![^\W_])|[^\W_]+")
_LEAD = re.compile(r"^.*(?:\bis|\bare|\bwas|\bwere|:|=)\s+", re.DOTALL | re.IGNORECASE)
_WRAPPING = " \t\r\n\"'`*_[](){}“”‘’"
_DAY = re.compile(r"\b(?:\d{4}-\d{2}-\d{2}|[A-Z][a-z]{2,8} \d{1,2}, \d{4}|\d{1,2} [A-Z][a-z]{2,8} \d{4})\b")
_DATES = ("%b %d, %Y", "%B %d, %Y", "%Y-%m-%d", "%d %B %Y", "%d %b %Y")
_ABSENT = re.compile(
    r"\bnot (?:found|there|in the text|given|mentioned|stated|said|present|specified|available|provided|contained)\b"
    r"|\bno (?:mention|such|information|record|match|matches|answer|line|lines)\b"
    r"|\b(?:does not|doesn't|do not|don't|cannot|can't|could not|couldn't|never) "
    r"(?:say|mention|state|tell|give|contain|find|include|specify|answer|appear)\b"
    r"|\b(?:unknown|unanswerable|absent|nothing|none|n/a)\b",
    re.IGNORECASE,
)


class Scorer(Protocol):
    """What is right, and how near an answer comes to it."""

    @property
    def shown(self) -> str:
        """What is right, in words."""
        ...

    def score(self, answer: str) -> float:
        """In [0, 1]; 1 where the answer is right."""
        ...


@dataclass(frozen=True, slots=True)
class Value:
    """The answer is this text: alone, or after the last colon, equals sign or "is". Case does not count.

    Numbers and dates are equal where they mean the same ("1,204" and "1204"); "40" is not "240".
    """

    gold: str

    @property
    def shown(self) -> str:
        """What is right."""
        return self.gold

    def score(self, answer: str) -> float:
        """1 or 0."""
        return float(any(_same(said, self.gold) for said in _endings(answer)))


@dataclass(frozen=True, slots=True)
class Number:
    """The answer is this number, alone or at the end of a sentence.

    An answer that is another number gets 0.75 to the power of the difference: the rule of OOLONG.
    Source: Bertsch et al. 2025, scoring of numeric answers.
    """

    gold: int

    @property
    def shown(self) -> str:
        """What is right."""
        return str(self.gold)

    def score(self, answer: str) -> float:
        """1, a power of 0.75, or 0 where the answer is no number."""
        for said in _endings(answer):
            number = _number(said.split(" ")[0]) if len(_NUMBER.findall(said)) == 1 else None
            if number is not None:
                off = abs(number - self.gold)
                return float(0.75 ** min(float(off), 1e3)) if off else 1.0
        return 0.0


@dataclass(frozen=True, slots=True)
class AllOf:
    """The answer names these, all of them, and no other that could have been meant.

    Attributes:
        gold: what has to be named.
        among: what could be named: the names in the text. What the question itself names does not count.
    """

    gold: frozenset[str]
    among: frozenset[str]

    @property
    def shown(self) -> str:
        """What is right."""
        return ", ".join(sorted(self.gold))

    def score(self, answer: str) -> float:
        """The overlap of what was named with what is right: size of the intersection over that of the union."""
        said = named(answer, self.gold | self.among)
        return len(said & self.gold) / len(said | self.gold)


@dataclass(frozen=True, slots=True)
class OneOf:
    """The answer names one of these and none of the others. Where several are tied, each of them is right, as are all.

    Attributes:
        gold: what is right; more than one only in a tie.
        among: what could be named.
    """

    gold: frozenset[str]
    among: frozenset[str]

    @property
    def shown(self) -> str:
        """What is right."""
        return " or ".join(sorted(self.gold))

    def score(self, answer: str) -> float:
        """1 or 0."""
        said = named(answer, self.gold | self.among)
        return float(bool(said) and said <= self.gold)


@dataclass(frozen=True, slots=True)
class Day:
    """The answer names one of these days and no other, in any of the usual ways of writing them.

    Attributes:
        gold: what is right; more than one only in a tie.
    """

    gold: frozenset[date]

    @property
    def shown(self) -> str:
        """What is right."""
        return " or ".join(day.isoformat() for day in sorted(self.gold))

    def score(self, answer: str) -> float:
        """1 or 0."""
        days = {_day(found) for found in _DAY.findall(answer)}
        return float(bool(days) and days <= self.gold)


@dataclass(frozen=True, slots=True)
class Absent:
    """The answer says that the text does not say, and gives nothing that looks like a value.

    Attributes:
        decoys: values of other things in the text: an answer that names one of them is wrong.
    """

    decoys: frozenset[str] = frozenset()

    @property
    def shown(self) -> str:
        """What is right."""
        return "not found"

    def score(self, answer: str) -> float:
        """1 or 0."""
        return float(bool(_ABSENT.search(answer)) and not named(answer, self.decoys))


def named(answer: str, names: frozenset[str]) -> frozenset[str]:
    """Which of `names` stand in the answer, whole and in any case; one inside a longer one that was named is not."""
    text = answer.casefold()
    found = set()
    for name in sorted((name for name in names if not name.isalnum() and name.casefold() in text), key=len)[::-1]:
        whole = re.compile(rf"(?<![^\W_]){re.escape(name.casefold())}(?![^\W_])")
        if whole.search(text):
            found.add(name)
            text = whole.sub("\0", text)
    words = {word.replace(",", "") for word in _WORD.findall(text)}
    return frozenset(found | {name for name in names if name.isalnum() and name.casefold() in words})


def _endings(answer: str) -> list[str]:
    """What an answer may mean: all of it, what follows its last "is", colon or equals sign."""
    whole = _bare(answer)
    after = _bare(_LEAD.sub("", whole))
    return [whole] if after == whole else [whole, after]


def _bare(text: str) -> str:
    """Without quotes, stars, brackets and the full stop at its end."""
    text = " ".join(text.split()).strip(_WRAPPING)
    return text.rstrip(".!").strip(_WRAPPING)


def _same(said: str, gold: str) -> bool:
    if said.casefold() == gold.casefold():
        return True
    a, b = _number(said), _number(gold)
    if a is not None and b is not None:
        return a == b
    day = _day(gold)
    return day is not None and _day(said) == day


def _number(text: str) -> Decimal | None:
    if not _NUMBER.fullmatch(text) or len(text) > 100:
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def _day(text: str) -> date | None:
    for form in _DATES:
        try:
            return datetime.strptime(text, form).date()
        except ValueError:
            continue
    return None
