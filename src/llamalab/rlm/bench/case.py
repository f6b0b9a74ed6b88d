"""One question of the benchmark: a text, what is asked of it, and what is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from llamalab.rlm.bench.scorers import Scorer

NAME = "text"
"""What the document of a case is called."""


@dataclass(frozen=True, slots=True)
class Case:
    """A text and a question about it.

    Attributes:
        task: name of the kind of question.
        size: characters asked for; the text has at most so many, and nine tenths of them at least.
        seed: it was made from; task, size and seed give the same case everywhere.
        text: whole lines.
        question: in words.
        right: what is right, and how near an answer comes.
    """

    task: str
    size: int
    seed: int
    text: str
    question: str
    right: Scorer


Made: TypeAlias = tuple[str, str, Scorer]
"""Text, question, what is right."""

Generator: TypeAlias = Callable[[Random, int], Made]
"""Makes a text of at most that many characters, and a question."""


def fill(rng: Random, size: int, needles: Iterable[str], noise: Callable[[Random], str]) -> str:
    """Lines of noise with `needles` among them, in their order, at places drawn evenly; `size` characters at most.

    A needle may hold several lines, which stay together. Where not even the needles fit, the text is longer.
    """
    kept = list(needles)
    room = size - sum(len(needle) + 1 for needle in kept)
    lines: list[str] = []
    while room > 0:
        line = noise(rng)
        room -= len(line) + 1
        if room >= 0:
            lines.append(line)
    places = sorted(rng.randint(0, len(lines)) for _ in kept)
    for place, needle in zip(reversed(places), reversed(kept), strict=True):
        lines.insert(place, needle)
    return "\n".join(lines) + "\n"
