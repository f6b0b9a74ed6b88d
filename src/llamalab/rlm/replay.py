"""Replay: a journal's run, done again without any model, and compared byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamalab.rlm.answer import Answer
from llamalab.rlm.sources import Source


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay found.

    Attributes:
        equal: every command, result, note, span and message, and the answer are those of the journal.
        compared: how many were compared.
        difference: the first that differs, in a sentence; "" where none does.
        finished: the journal holds a whole run; one that was broken off is compared as far as it goes.
        answer: that the replay came to; None for a run that was broken off.
    """

    equal: bool
    compared: int
    difference: str
    finished: bool
    answer: Answer | None


def replay(path: Path | str, sources: Sequence[Source] | Source | None = None) -> Replayed:
    """Do the run of a journal again.

    Args:
        path: of the journal.
        sources: the documents; None: where the run found them.

    Raises:
        InputError: no journal, one of another version, or documents that are missing or have changed.
    """
    raise NotImplementedError
