"""Commands as pure, total functions: a command and a state give a result and the next state.

Nothing here reads a file that the caller did not name, reaches a network or runs code, and no command ends in an
exception: what it gets wrong comes back in `Result.error`, with the remedy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from llamalab.errors import InputError
from llamalab.rlm import aggregate, looking, searching, variables
from llamalab.rlm.commands import COMMANDS, SUB_COMMANDS, Command, Set, check_command
from llamalab.rlm.plans import SubCall, SubPlan, kept
from llamalab.rlm.plans import sub_calls as _plan
from llamalab.rlm.state import LAST, NEVER, Clock, Limits, Result, State

__all__ = ["LAST", "NEVER", "Limits", "Result", "State", "SubCall", "SubPlan", "execute", "sub_calls"]

_DO: dict[str, Callable[[Any, State, Clock], Result]] = {
    "slice": looking.slice_,
    "lines": looking.lines,
    "find": searching.find_,
    "regex": searching.regex,
    "count": looking.count,
    "split": looking.split,
    "len": looking.len_,
    "index_terms": searching.index_terms,
    "aggregate": aggregate.aggregate,
    "set": variables.set_,
    "get": variables.get,
    "print": variables.print_,
    "final": variables.final,
    "final_var": variables.final_var,
}


def execute(command: BaseModel, state: State, *, stop_at: int | None = None) -> tuple[Result, State]:
    """Run one command.

    Args:
        command: of the registry, or of the compact protocol; not one that asks sub models (`sub_calls`).
        state: before.
        stop_at: `partial_at` of an earlier run: search exactly as far as it did, whatever the clock says; `NEVER`
            where it ended by itself.

    Raises:
        InputError: a document changed while the run was going on.
    """
    state.context.check()
    clock = Clock(state.limits.seconds, stop_at)
    try:
        full = _widened(command)
        if full.op in SUB_COMMANDS:
            raise InputError(f"{full.op} asks a sub model, and there is none now")
        result = _DO[full.op](full, state, clock)
        if clock.partial_at is not None:
            result = replace(result, partial_at=clock.partial_at, notes=(clock.note(), *result.notes))
        name = full.name if isinstance(full, Set) else getattr(full, "store", None)
        return kept(result, state, name)
    except InputError as error:
        return Result(error=str(error)), state


def sub_calls(command: BaseModel, state: State, *, most: int | None = None) -> SubPlan:
    """What `llm_query`, `map`, `reduce` or `delegate` asks of sub models.

    Args:
        command: one of these.
        state: before.
        most: calls that may be made now; `map` leaves out the rest, and its result says so.

    Raises:
        TypeError: it is another command.
    """
    full: Any = _widened(command)
    if full.op not in SUB_COMMANDS:
        raise TypeError(f"{full.op} asks no sub model")
    return _plan(full, state, most=most)


def _widened(command: BaseModel) -> Command:
    """A command of the registry: one of the compact protocol is a sentence of the full language too."""
    if isinstance(command, tuple(COMMANDS.values())):
        found: Any = command
        return found  # type: ignore[no-any-return]
    return check_command(command.model_dump(exclude_none=True))
