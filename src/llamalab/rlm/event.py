"""What happens in a run, as it happens: what `llamalab.rlm.events` gives one by one.

A run is `Started`, `Routed`, then turns, each a `Turn` (the root's command) and a `Done` (its result) with the
`SubCall`s of the command between them, then `Answered`. Events of a run that a `delegate` began carry its path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from llamalab.engine import Usage
from llamalab.rlm.answer import Answer, Route


@dataclass(frozen=True, slots=True)
class Started:
    """A run begins.

    Attributes:
        question: that is asked.
        documents: their names, in order.
        n_chars: of all documents.
        n_lines: of all documents.
        protocol: that the root speaks: "compact" or "full".
        providers: their names, roots first.
        said: what the user should know before: of the configuration, the models, the documents.
        path: of the run: "" for the outermost, "3.0" for slot 0 of its turn 3, "3.0/2.1" below that.
    """

    question: str
    documents: tuple[str, ...]
    n_chars: int
    n_lines: int
    protocol: str
    providers: tuple[str, ...]
    said: tuple[str, ...] = ()
    path: str = ""


@dataclass(frozen=True, slots=True)
class Routed:
    """It was decided whether to answer directly."""

    route: Route
    path: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """The root has spoken.

    Attributes:
        n: of the turn, from 1.
        command: as JSON; where it was malformed, what the root said.
        thought: what the root wrote before it; "" in the compact protocol.
        provider: who spoke.
        usage: tokens of the turn.
        seconds: of the turn.
        last: only `final` was allowed.
        malformed: what was wrong with it; "" where nothing was.
        path: as in `Started`.
    """

    n: int
    command: str
    thought: str = ""
    provider: str = ""
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    last: bool = False
    malformed: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """A command is done.

    Attributes:
        n: its turn.
        head: the result in one line, in this program's words.
        text: what was found; lines of documents.
        notes: on the result.
        error: what was wrong with the command, and the remedy; None where nothing was.
        path: as in `Started`.
    """

    n: int
    head: str
    text: str = ""
    notes: tuple[str, ...] = ()
    error: str | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class SubCall:
    """A sub call has ended.

    Attributes:
        n: the turn whose command made it.
        index: its slot, from 0.
        total: slots of this round.
        text: the reply; "" where it failed.
        error: why it failed; "" where it did not.
        provider: who answered.
        usage: tokens; of a nested run: zero, its own events tell them.
        path: as in `Started`.
    """

    n: int
    index: int
    total: int
    text: str
    error: str = ""
    provider: str = ""
    usage: Usage = field(default_factory=Usage)
    path: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """The run has its answer; the last event of a run."""

    answer: Answer
    path: str = ""


Event: TypeAlias = Started | Routed | Turn | Done | SubCall | Answered
