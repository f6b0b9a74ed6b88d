"""From conversations to batches of token ids with a weight for each token's loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from tokenizers import Tokenizer

from training.episode import Episode
from training.others import repeat
from training.tasks import part_of

TOKENS_PER_BATCH = 4096
"""Rows times row length of a batch."""

COPYING_FIRST = 200
"""Steps over which the surplus of copying fades."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that share one prefix.

    Attributes:
        prefix: (1, P) ids of the system message all rows begin with; P may be 0.
        ids: (B, T) ids, padded at the end.
        weights: (B, T) weight of predicting each id from those before it; 0 for padding.
        tokens: how many ids are no padding, the shared prefix not counted.
    """

    prefix: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    tokens: int


class Encoder:
    """Conversations as ids, in pico's layout: `<|role|>\\n`, content, `<|end|>\\n`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.pad, self._system, self._user, self._assistant, self.end = (
            tokenizer.token_to_id(t) for t in ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
        )
        (self._newline,) = self.text("\n")
        self._prefixes: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def system(self, text: str | None) -> list[int]:
        """The system message, or nothing."""
        if text is None:
            return []
        if text not in self._prefixes:
            self._prefixes[text] = [self._system, self._newline, *self.text(text), self.end, self._newline]
        return self._prefixes[text]

    def turns(self, turns: tuple[str, ...], other_weight: float = 0.1) -> tuple[list[int], list[float]]:
        """Ids and loss weights of alternating user and assistant turns; `other_weight` is that of the user's."""
        ids: list[int] = []
        weights: list[float] = []
        for i, turn in enumerate(turns):
            spoken = i % 2 == 1
            content = [*self.text(turn), self.end]
            ids += [self._assistant if spoken else self._user, self._newline, *content, self._newline]
            weights += [0.0, 0.0, *([1.0 if spoken else other_weight] * len(content)), 0.0]
        return ids[:-1], weights[:-1]


def batches(encoder: Encoder, seed: int) -> Iterator[Batch]:
    """Endless batches of fresh episodes, the same for the same seed.

    The system message of a root is shared by all rows of a batch, so that it is computed once; any other
    system message is part of its row.
    """
    rng = Random(seed)
    waiting: dict[tuple[str | None, int], list[tuple[list[int], list[float]]]] = {}
    step = 0
    while True:
        episode, part = draw(rng, step), part_of(step)
        shared = episode.system if episode.task.startswith("root") else None
        ids, weights = encoder.turns(episode.turns, part.other_weight)
        if episode.system and not shared:
            system = encoder.system(episode.system)
            ids, weights = system + ids, [0.0] * len(system) + weights
        length = next((b for b in part.buckets if b >= len(ids)), None)
        if length is None:
            continue
        rows = waiting.setdefault((shared, length), [])
        rows.append((ids, weights))
        if len(rows) == TOKENS_PER_BATCH // length:
            del waiting[shared, length]
            yield _pack(encoder, shared, rows, length)
            step += 1


def draw(rng: Random, step: int) -> Episode:
    """One episode of the mixture of this step; at first mostly copying."""
    part = part_of(step)
    surplus = 2.0 * max(0.0, 1 - step / COPYING_FIRST)
    shares = [share + (surplus if task is repeat else 0.0) for task, share in part.mixture.items()]
    (task,) = rng.choices(list(part.mixture), shares)
    return task(rng, part.level(step))


def _pack(encoder: Encoder, system: str | None, rows: list[tuple[list[int], list[float]]], length: int) -> Batch:
    ids = np.full((len(rows), length), encoder.pad, np.int32)
    weights = np.zeros((len(rows), length), np.float32)
    for i, (row, weight) in enumerate(rows):
        ids[i, : len(row)] = row
        weights[i, : len(row)] = weight
    prefix = np.array([encoder.system(system)], np.int32).reshape(1, -1)
    return Batch(prefix, ids, weights, sum(len(row) for row, _ in rows))
