"""The conversation of one run with its root: what it holds, and how a command is done in it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from llamalab.engine import Message
from llamalab.rlm.allowance import ROOM, Allowance
from llamalab.rlm.budget import Budget
from llamalab.rlm.commands import SUB_COMMANDS
from llamalab.rlm.event import Answered, Event
from llamalab.rlm.evidence import Looked
from llamalab.rlm.execute import NEVER, Result, State, SubCall, execute, sub_calls
from llamalab.rlm.plans import ONLY_FIRST
from llamalab.rlm.protocol import LAST, AnyCommand, Protocol, result_message, sub_fence, turn_schema, written
from llamalab.rlm.state import document_number
from llamalab.rlm.subcalls import Place, ask_all, keeping_answer
from llamalab.rlm.text import Context
from llamalab.rlm.tree import Said, Settings, Tree

_SEARCHES = frozenset({"find", "regex", "split", "index_terms", "aggregate"})


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a tree.

    Attributes:
        tree: that it belongs to.
        budget: as this run sees it.
        question: that is asked.
        context: documents.
        fence: around data.
        path: "" for the outermost run; before every key in the journal.
    """

    tree: Tree
    budget: Budget
    question: str
    context: Context
    fence: str
    path: str

    @property
    def settings(self) -> Settings:
        """That it goes by."""
        return self.tree.settings


@dataclass(slots=True)
class Talk:
    """A conversation as it grows.

    Attributes:
        messages: so far; only ever appended to.
        state: that commands work on.
        looked_at: results that the root has seen.
        best: what would be the answer if the run ended now; "" where there is nothing.
        seen: the turn in which a command first gave a result.
        repeats: how often one gave it again.
        bad: turns in a row that were no command.
        malformed: turns that were none.
        slowest: seconds of the slowest turn.
        partial: which search of the documents ended early, and none after it went to their end; "" where none did.
        lacking: what sub models were asked for last and did not give; "" where nothing is missing.
        read: some command has read documents, or searched them in vain.
        searched: some command has gone through all of them.
    """

    messages: list[Message]
    state: State
    looked_at: list[Looked] = field(default_factory=list)
    best: str = ""
    seen: dict[tuple[str, str], int] = field(default_factory=dict)
    repeats: int = 0
    bad: int = 0
    malformed: int = 0
    slowest: float = 0.0
    partial: str = ""
    lacking: str = ""
    read: bool = False
    searched: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """A message to the root, of which it is still to be decided how much is shown, and whether it is the last.

    Attributes:
        text: of the message, where that does not depend on how much is shown.
        build: makes the message.
    """

    text: str = ""
    build: partial[str] | None = None

    def message(self, protocol: Protocol, shown: int, *, last: bool) -> str:
        """The message.

        Args:
            protocol: that the root speaks.
            shown: characters of data (full), or lines (compact).
            last: only an answer can follow.
        """
        text = self.text if self.build is None else self.build(shown=shown)
        return f"{text}\n{LAST}" if last and protocol == "full" else text


Nest: TypeAlias = Callable[[SubCall, str, Budget], Iterator[Event]]
"""Begins a nested run: its call, its path, the budget as it sees it."""


def do_command(
    run: Run, talk: Talk, n: int, command: AnyCommand, may: Allowance, reply: Said, nest: Nest
) -> Generator[Event, None, Result]:
    """Do the command of turn `n`; the talk's state is the next one then.

    Raises:
        Differs: the journal tells of another result.
    """
    key = f"{run.path}{n}.result"
    known = run.tree.tape.known_fact(key)
    if command.op in SUB_COMMANDS:
        result = yield from _ask_subs(run, talk, n, command, may, reply, nest)
    else:
        stop_at = None
        if known is not None:  # as far as it came then, whatever the clock says now
            stop_at = NEVER if known["partial_at"] is None else known["partial_at"]
        result, talk.state = execute(command, talk.state, stop_at=stop_at)
    run.tree.tape.fact(
        key,
        {
            "command": written(command),
            "head": result.head,
            "text": result.text,
            "notes": list(result.notes),
            "spans": [[span.document, span.start, span.end, span.line] for span in result.spans],
            "partial_at": result.partial_at,
            "error": result.error,
            "stored": result.stored,
            "answer": result.answer,
        },
    )
    return result


def take_result(run: Run, talk: Talk, n: int, command: AnyCommand, result: Result) -> Pending:
    """Keep what a result is worth for the answer; what the root is to be told of it."""
    if result.error is None:
        talk.looked_at.append(Looked(result.spans, f"{result.head}\n{result.text}"))
        talk.best = _best(result) or talk.best
        if result.partial_at is not None:
            talk.partial = f"{command.op} in turn {n} was {result.notes[0]}"
        elif command.op in _SEARCHES and getattr(command, "on", None) is None:
            talk.partial = ""
        _note_reach(run, talk, n, command, result)
    without_thought = command.model_copy(update={"thought": None}) if hasattr(command, "thought") else command
    seen = (written(without_thought), f"{result.head}\n{result.text}\n{result.error}")
    before = talk.seen.setdefault(seen, n)
    notices: tuple[str, ...] = ()
    if before != n:
        talk.repeats += 1
        notices = (f"note: this is the command of turn {before}, with the same result. Give another one, or final",)
    return Pending(build=partial(result_message, run.settings.protocol, command, result, run.fence, notices=notices))


def _note_reach(run: Run, talk: Talk, n: int, command: AnyCommand, result: Result) -> None:
    """How much of the documents the conversation knows after a result."""
    on = getattr(command, "on", None)
    documents = on is None or document_number(on) is not None
    everything = on is None or (documents and len(run.context.documents) == 1)
    # What is searched in vain has no place; whoever asks in the documents' name has read them.
    talk.read |= bool(result.spans) or (documents and command.op in _SEARCHES | {"delegate"})
    left_out = result.lacking or any(note.startswith(ONLY_FIRST) for note in result.notes)
    whole = result.partial_at is None and not left_out
    talk.searched |= everything and whole and command.op in _SEARCHES | {"map", "reduce", "delegate"}
    if command.op in SUB_COMMANDS:
        talk.lacking = f"{command.op} in turn {n}: {result.lacking}" if result.lacking else ""


def schema_of(run: Run, talk: Talk, ops: Sequence[str]) -> dict[str, Any]:
    """JSON schema of a turn in which `ops` are allowed."""
    return turn_schema(
        run.settings.protocol,
        ops=ops,
        variables=list(talk.state.variables),
        context=run.context,
        answer=run.settings.answer_schema,
    )


def _ask_subs(
    run: Run, talk: Talk, n: int, command: AnyCommand, may: Allowance, reply: Said, nest: Nest
) -> Generator[Event, None, Result]:
    budget = run.budget
    room = keeping_answer(run.tree, budget, may.prompt + 2 * reply.usage.output + ROOM[run.settings.protocol])
    deadline = None if budget.deadline is None else budget.deadline - 2 * talk.slowest
    left = run.tree.tape.effect(f"{run.path}{n}.most", lambda: {"most": budget.sub_calls_left})["most"]

    unfinished: list[str] = []

    def nested(call: SubCall, path: str) -> Iterator[Event]:
        for event in nest(call, path, room.nested()):
            if isinstance(event, Answered) and event.path == path and not event.answer.complete:
                unfinished.append(f"the nested run is incomplete ({event.answer.why})")
            yield event

    plan, rounds = sub_calls(command, talk.state, most=left), 0
    while True:
        place = Place(run.path, n, f"{run.path}{n}.sub.{rounds}", deadline)
        replies = yield from ask_all(run.tree, room, plan, place, sub_fence(run.fence), nested)
        further = None if plan.error is not None else plan.further(replies)
        if further is None:
            break
        plan, rounds = further, rounds + 1
    result, talk.state = plan.combine(replies)
    return replace(result, lacking="".join(unfinished)) if unfinished else result


def _best(result: Result) -> str:
    """What a result would be worth as an answer, should the run end now."""
    lines = [line for line in result.text.splitlines() if line.strip()]
    return (" ".join(lines[:2]) if lines else result.head)[:400]
