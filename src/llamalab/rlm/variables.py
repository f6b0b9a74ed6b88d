"""Commands on variables, and those that end a run: `set`, `get`, `print`, `final`, `final_var`.

`${name}` stands for what a variable holds, once: what is put in is never looked at again, and a name that is none
stays as it is written.
"""

from __future__ import annotations

import json
import re

from llamalab.errors import InputError
from llamalab.rlm.commands import Final, FinalVar, Get, Print, Set
from llamalab.rlm.show import show
from llamalab.rlm.state import SPANS_KEPT, Clock, Result, State
from llamalab.rlm.text import Span
from llamalab.rlm.values import Value

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]{0,31})\}")


def set_(command: Set, state: State, _clock: Clock) -> Result:
    """Keep a text.

    Raises:
        InputError: it is too long.
    """
    text, spans = expand(command.value, state, state.limits.value_bytes + 1)
    if len(text.encode()) > state.limits.value_bytes:
        raise InputError(f"the text has more than {state.limits.value_bytes} bytes: use on instead of copying")
    value = Value.of_text(text, spans[0] if len(spans) == 1 else None)
    return Result(value, f"{len(text)} characters", spans=spans)


def get(command: Get, state: State, _clock: Clock) -> Result:
    """Look at a variable."""
    return _look(command.name, state)


def print_(command: Print, state: State, _clock: Clock) -> Result:
    """Look at a variable or a text.

    Raises:
        InputError: there is neither.
    """
    if command.var is not None:
        return _look(command.var, state)
    if command.value is None:
        raise InputError('print needs "value" or "var"')
    text, spans = expand(command.value, state, state.limits.output)
    value = Value.of_text(text)
    shown = show(value, state)
    return Result(value, f"{len(text)} characters", shown.text, spans=spans)


def final(command: Final, state: State, _clock: Clock) -> Result:
    """The answer of a run: text, or JSON as it was given.

    Raises:
        InputError: it is empty.
    """
    if not isinstance(command.answer, str):
        return Result(answer=json.dumps(command.answer, ensure_ascii=False))
    text, spans = expand(command.answer, state, state.limits.output)
    if not text.strip():
        raise InputError('the answer is empty: say what was found, or "not found"')
    return Result(answer=text, spans=spans)


def final_var(command: FinalVar, state: State, _clock: Clock) -> Result:
    """A variable as the answer of a run.

    Raises:
        InputError: there is no such variable, or nothing in it.
    """
    value = state.source(command.name)
    text = value.joined(state.limits.output)
    if not text.strip():
        raise InputError(f'{command.name} is empty: answer with final, and say "not found" if that is so')
    return Result(answer=text, spans=value.spans(SPANS_KEPT))


def expand(text: str, state: State, most: int) -> tuple[str, tuple[Span, ...]]:
    """A text with what its variables hold put in, at most so many characters, and where that stands."""
    spans: list[Span] = []

    def held(found: re.Match[str]) -> str:
        value = state.variables.get(found[1])
        if value is None:
            return found[0]
        spans.extend(value.spans(SPANS_KEPT - len(spans)))
        return value.joined(most)

    return _REFERENCE.sub(held, text)[:most], tuple(spans)


def references(text: str, state: State) -> tuple[str, ...]:
    """The variables that a text names, each once."""
    return tuple(dict.fromkeys(name for name in _REFERENCE.findall(text) if name in state.variables))


def _look(name: str, state: State) -> Result:
    value = state.source(name)
    shown = show(value, state)
    size = "1 text" if value.kind == "text" else f"{value.total} {'piece' if value.total == 1 else 'pieces'}"
    notes = (*(() if shown.whole else (f"shown up to {state.limits.output} characters",)), *shown.notes)
    return Result(
        value, value.items[0].text if value.kind == "number" else size, shown.text, notes, value.spans(SPANS_KEPT)
    )
