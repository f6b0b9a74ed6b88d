"""How far two sets of logits lie apart: the records, and the sums that make them.

Dimension key: R rows of logits, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BUCKETS = (0, 16, 64, 256, 1024, 4096, 16384)
"""First positions of the ranges that a report tells apart."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a number was found: prompt and position from 0, and the token of the vocabulary (or the width's index)."""

    prompt: int
    position: int
    token: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two sets of numbers lie apart.

    Attributes:
        largest: largest |a - b|; infinite where either is not a number or infinite.
        mean: mean |a - b|.
        where: place of the largest; None where nothing was compared.
        outside: how many values lie further apart than atol + rtol * |b|.
        values: how many were compared.
    """

    largest: float
    mean: float
    where: Place | None
    outside: int
    values: int

    @property
    def close(self) -> bool:
        """All values lie within the tolerance."""
        return self.outside == 0


@dataclass(frozen=True, slots=True)
class PositionRange:
    """The comparison of some positions, over all prompts.

    Attributes:
        first: position, from 0.
        last: position, inclusive.
        rows: how many were compared.
        largest: largest |a - b| of a logit.
        kl: largest Kullback-Leibler divergence of a row, nats.
        disagreements: rows whose most probable tokens differ.
    """

    first: int
    last: int
    rows: int
    largest: float
    kl: float
    disagreements: int


class DifferenceSum:
    """Adds up a `Difference`, block by block.

    Attributes:
        excess: by prompt and position, for rows with a value outside the tolerance: by how much the worst is.
        shares: of each row, in the order they came: how much of its tolerance its worst value takes, 1 being all.
    """

    def __init__(self, rtol: float, atol: float) -> None:
        self._rtol, self._atol = rtol, atol
        self._largest, self._sum, self._outside, self._values = -1.0, 0.0, 0, 0
        self._where: Place | None = None
        self.excess: dict[tuple[int, int], float] = {}
        self.shares: list[float] = []

    def add(self, a: Array, b: Array, *, prompt: int, first: int) -> Array:
        """Count two blocks (R, V), whose first row stands at position `first`; the largest of each row, (R,)."""
        with np.errstate(invalid="ignore"):
            delta = np.abs(np.subtract(a, b, dtype=np.float32))
            np.copyto(delta, 0, where=a == b)  # of two infinities the difference would not be a number
        np.copyto(delta, np.inf, where=~np.isfinite(delta))
        with np.errstate(invalid="ignore", divide="ignore"):
            tolerance = self._atol + self._rtol * np.abs(b)
            beyond = delta - tolerance
            # An exact zero takes nothing, even of a tolerance of zero.
            self.shares += np.where(delta == 0, 0, delta / tolerance).max(axis=1).tolist()
        # An infinite b widens its own tolerance without bound; nothing is close to it but itself.
        np.copyto(beyond, np.inf, where=np.isinf(delta))
        self._outside += int(np.count_nonzero(beyond > 0))
        worst = beyond.max(axis=1)
        for at in np.flatnonzero(worst > 0):
            self.excess[prompt, first + int(at)] = float(worst[at])
        self._values += delta.size
        self._sum += float(delta.sum(dtype=np.float64))
        rows = delta.max(axis=1)
        if len(rows) and float(rows.max()) > self._largest:
            row = int(rows.argmax())
            self._largest = float(rows[row])
            self._where = Place(prompt, first + row, int(delta[row].argmax()))
        return np.asarray(rows)

    def result(self) -> Difference:
        """What was added up so far."""
        mean = self._sum / self._values if self._values else 0.0
        return Difference(max(self._largest, 0.0), mean, self._where, self._outside, self._values)


class PositionSum:
    """Largest difference, divergence and disagreements by position, over all prompts."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.largest: list[float] = []
        self.kl: list[float] = []
        self.disagreements: list[int] = []

    def add(self, position: int, largest: float, kl: float, agrees: bool) -> None:
        """Count one row."""
        while len(self.rows) <= position:
            self.rows.append(0)
            self.largest.append(0.0)
            self.kl.append(0.0)
            self.disagreements.append(0)
        self.rows[position] += 1
        self.largest[position] = max(self.largest[position], largest)
        self.kl[position] = max(self.kl[position], kl)
        self.disagreements[position] += not agrees

    def ranges(self) -> tuple[PositionRange, ...]:
        """By the ranges of `BUCKETS`, those without a row left out."""
        found = []
        for first, after in zip(BUCKETS, (*BUCKETS[1:], max(BUCKETS[-1], len(self.rows))), strict=True):
            part = slice(first, min(after, len(self.rows)))
            rows = sum(self.rows[part])
            if rows:
                last = min(after, len(self.rows)) - 1
                largest, kl = max(self.largest[part]), max(self.kl[part])
                found.append(PositionRange(first, last, rows, largest, kl, sum(self.disagreements[part])))
        return tuple(found)


def divergences(log_p: Array, log_q: Array) -> Array:
    """KL(p || q) of each row of two sets of log probabilities, nats, float64, (R,); infinite where not a number."""
    with np.errstate(invalid="ignore"):
        terms = np.where(log_p == -np.inf, 0, np.exp(log_p) * (log_p - log_q))
        # Rounding can take a sum of positive and negative terms that is 0 a little below it.
        found = np.maximum(terms.sum(axis=1), 0)
    return np.where(np.isfinite(found), found, np.inf)


def log_softmax(logits: Array) -> Array:
    """Log probabilities of each row, float64."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        wide -= wide.max(axis=1, keepdims=True)
        wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide
