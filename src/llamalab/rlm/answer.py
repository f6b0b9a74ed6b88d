"""What a run comes to: the answer, the lines that support it, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llamalab.engine import Usage
from llamalab.rlm.budget import Role

Mode: TypeAlias = Literal["direct", "rlm"]
"""direct: one call that was shown the whole text; rlm: a root that steered over it by commands."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A line, or piece of a very long one, that supports an answer.

    Attributes:
        document: its name.
        line: on which it begins, from 1.
        start: first character in the document, from 0.
        end: after the last one.
        text: the document's characters from start to end.
    """

    document: str
    line: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Route:
    """Whether a run answers directly, and why.

    Attributes:
        mode: what was chosen.
        why: in one sentence, with the figures that it was decided by.
        direct_tokens: predicted for a direct answer; None where they were not asked for.
        run_tokens: predicted for a run; None likewise.
    """

    mode: Mode
    why: str
    direct_tokens: int | None = None
    run_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a run.

    Attributes:
        question: that was asked.
        text: the answer; never empty. Of an incomplete run: the best there was when it ended.
        value: the answer as a schema types it; None without a schema, or where no value of it was reached.
        complete: the model gave this answer itself, within its budget, after it had read something of the documents,
            and nothing that it asked for was missing.
        why: of an incomplete one: what ended the run, or what is missing. Empty otherwise.
        evidence: lines that support it, best first.
        doubt: of a complete one: what it claims beyond what was read. Empty where nothing is known against it.
        usage: tokens by role; the whole tree of nested runs, lost calls too.
        cost: in the currency of the configured prices.
        seconds: wall clock, those before a run was resumed included.
        route: direct or run, and why.
        turns: turns of the root, those of nested runs included.
        sub_calls: calls of a sub model.
        malformed: turns in which the root gave no valid command.
        notes: what the user should know of the documents, the models and the run, in sentences.
        journal: the file that the run can be replayed from; None where none was asked for.
    """

    question: str
    text: str
    value: Any = None
    complete: bool = True
    why: str = ""
    evidence: tuple[Evidence, ...] = ()
    doubt: str = ""
    usage: Mapping[Role, Usage] = field(default_factory=dict)
    cost: float = 0.0
    seconds: float = 0.0
    route: Route = Route("rlm", "")
    turns: int = 0
    sub_calls: int = 0
    malformed: int = 0
    notes: tuple[str, ...] = ()
    journal: Path | None = None

    @property
    def mode(self) -> Mode:
        """How it was answered."""
        return self.route.mode

    @property
    def tokens(self) -> int:
        """Of all calls, prompts and replies."""
        return sum(usage.fresh + usage.cached + usage.output for usage in self.usage.values())
