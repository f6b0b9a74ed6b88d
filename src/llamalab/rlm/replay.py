"""Replay: a journal's run, done again without any model, and compared byte for byte.

Replies, times, usage and what was decided by budgets and clocks are read from the journal; every command is done again,
every message to the root is built again, and the answer with its evidence is found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from llamalab.errors import InputError
from llamalab.rlm.answer import Answer
from llamalab.rlm.asking import begin, versions
from llamalab.rlm.budget import Budget
from llamalab.rlm.event import Answered
from llamalab.rlm.journal import Differs, JournalEnds, Tape, not_ours, read_tape
from llamalab.rlm.orchestrator import run
from llamalab.rlm.sources import Source, open_sources
from llamalab.rlm.text import Context
from llamalab.rlm.tree import Settings, Tree


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay found.

    Attributes:
        equal: every command, result, note, span and message, and the answer are those of the journal.
        compared: how many were compared.
        difference: the first that differs, in a sentence; "" where none does.
        finished: the journal holds a whole run; one that was broken off is compared as far as it goes.
        answer: that the replay came to; None for a run that was broken off, or that differs.
        said: what else the user should know: versions that are not those of the run.
    """

    equal: bool
    compared: int
    difference: str
    finished: bool
    answer: Answer | None
    said: tuple[str, ...] = ()


def replay(path: Path | str, sources: Sequence[Source] | Source | Context | None = None) -> Replayed:
    """Do the run of a journal again.

    Args:
        path: of the journal.
        sources: the documents; None: where the run found them.

    Raises:
        InputError: no journal, one of another version, or documents that are missing or have changed.
    """
    tape = read_tape(Path(path))
    answer, difference = None, ""
    try:
        said = _versions(tape)
        settings, question = Settings.of_data(tape.header["settings"]), tape.header["question"]
        with ExitStack() as stack:
            context = _documents(tape, sources, stack)
            before = begin(tape, dict)
            tree = Tree(tape, replace(settings, tolerant=before.tolerant), Budget(settings.limits), None)
            for event in run(tree, question, context, said=before.said):
                if isinstance(event, Answered) and not event.path:
                    answer = event.answer
        if tape.compared < tape.facts:
            missing = tape.facts - tape.compared
            difference = f"The journal tells of {missing} results that the replay did not come to."
    except Differs as error:
        difference = str(error)
    except JournalEnds as error:
        difference = str(error) if tape.ended else ""
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_ours(tape.path, error) from None
    return Replayed(not difference, tape.compared, difference, tape.ended, None if difference else answer, said)


def _documents(tape: Tape, sources: Sequence[Source] | Source | Context | None, stack: ExitStack) -> Context:
    """The documents of a run.

    Raises:
        InputError: they are missing, or are not those of the run.
    """
    if isinstance(sources, Context):
        context = sources
    else:
        opened = open_sources(_found(tape) if sources is None else sources)
        stack.callback(opened.close)
        context = opened.context
    then = [(each["name"], each["sha256"]) for each in tape.header["documents"]]
    now = [(document.name, document.sha256) for document in context.documents]
    if [sha for _, sha in then] != [sha for _, sha in now]:
        changed = next((name for name, sha in then if sha not in {sha for _, sha in now}), "")
        raise InputError(
            f"{changed or 'One of the documents'} is not as it was when {tape.path} was written. A run can be replayed "
            "over the same documents, in the same order."
        )
    return context if context.sha256 == tape.header["context"] else _renamed(context, [name for name, _ in then])


def _found(tape: Tape) -> list[Source]:
    """The documents where the run found them."""
    folder = Path(tape.header["folder"])
    found: list[Source] = []
    for each in tape.header["documents"]:
        path = folder / Path(each["name"]).expanduser()
        if not path.is_file():
            raise InputError(f"{tape.path} is of a run over {each['name']}, which is not there. Name the documents.")
        found.append(path)
    return found


def _renamed(context: Context, names: Sequence[str]) -> Context:
    """The same documents under the names that the run knew them by."""
    for document, name in zip(context.documents, names, strict=True):
        document.name = name
    return Context(context.documents)


def _versions(tape: Tape) -> tuple[str, ...]:
    then = tape.header.get("versions", {})
    return tuple(
        f"The run was written with {name} {then.get(name, 'unknown')}; this is {now}."
        for name, now in versions().items()
        if then.get(name) != now
    )
