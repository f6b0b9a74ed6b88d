"""How a run is shown: its turns while it goes on, and its answer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llamalab.cli.output import console, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from llamalab.rlm.answer import Answer
    from llamalab.rlm.event import Event, Turn

LINES_SHOWN = 6
"""Lines of a result that are shown while a run goes on."""
EVIDENCE_SHOWN = 5
CHARACTERS_SHOWN = 300
"""Of a line; the JSON document has all of it."""


@contextmanager
def turns_view(wanted: bool) -> Iterator[Callable[[Event], None]]:
    """Gives a function to be told every event; it prints each turn on standard error, if that is wanted.

    What the user should know before a run is printed in any case.
    """
    out = console(stderr=True)
    if not wanted:
        yield lambda event: _print_said(out, event)
        return
    with out.status("opening documents and models") as status:
        yield lambda event: _show(out, status, event)


def _show(out: Console, status: Status, event: Event) -> None:
    from rich.text import Text

    from llamalab.rlm import Done, Routed, Started, SubCall, Turn

    indent = "    " * len([step for step in event.path.split("/") if step])

    def say(text: str, style: str = "") -> None:
        out.print(Text(_cut(indent + text, out.width), style=style), no_wrap=True, overflow="ignore", crop=False)

    if isinstance(event, Started):
        _print_said(out, event)
        named = ", ".join(event.documents[:3]) + (", ..." if len(event.documents) > 3 else "")
        say(f"{named}: {event.n_lines:,} lines, {event.n_chars:,} characters", "dim")
        status.update("thinking")
    elif isinstance(event, Routed):
        say(event.route.why, "dim")
    elif isinstance(event, Turn):
        if event.thought:
            say(f"   {event.thought}", "italic dim")
        say(f"{event.n:2} {event.command}", "red" if event.malformed else "bold")
        if event.malformed:
            say(f"   {event.malformed}", "red")
        status.update(_doing(event))
    elif isinstance(event, SubCall):
        status.update(f"turn {event.n}: sub call {event.index + 1} of {event.total} is done")
        if event.error:
            say(f"   sub call {event.index + 1}: {event.error}", "red")
    elif isinstance(event, Done):
        status.update("thinking")
        say(f"   {event.error or event.head}", "red" if event.error else "")
        lines = event.text.splitlines()
        for line in lines[:LINES_SHOWN]:
            say(f"   {line}", "green")
        if len(lines) > LINES_SHOWN:
            say(f"   and {len(lines) - LINES_SHOWN:,} lines more", "dim")
        for note in event.notes:
            say(f"   {note}", "dim")


def _doing(turn: Turn) -> str:
    return f"turn {turn.n}" + (", the last one" if turn.last else "")


def _print_said(out: Console, event: Event) -> None:
    from rich.text import Text

    from llamalab.rlm import Started

    if isinstance(event, Started) and not event.path:
        for sentence in event.said:
            out.print(Text(printable(sentence)), soft_wrap=True)


def print_answer(answer: Answer) -> None:
    """The answer, the lines that support it, and what it took."""
    shown = printable if sys.stdout.isatty() else str
    print(shown(answer.text))
    if not answer.complete:
        print(f"\nincomplete: {shown(answer.why)}")
    if answer.doubt:
        print(f"\nnote: {answer.doubt}")
    if answer.evidence:
        print()
    for evidence in answer.evidence[:EVIDENCE_SHOWN]:
        line = _cut(evidence.text.replace("\n", " "), CHARACTERS_SHOWN)
        print(shown(f"{evidence.document}:{evidence.line}: {line}"))
    if len(answer.evidence) > EVIDENCE_SHOWN:
        print(f"and {len(answer.evidence) - EVIDENCE_SHOWN:,} lines more")
    print(f"\n{_took(answer)}")
    if answer.journal is not None:
        print(f"journal: {shown(str(answer.journal))}")


def _took(answer: Answer) -> str:
    """Turns, tokens by role, time and cost, in a line."""
    counts = [_counted(answer.turns, "turn"), *([_counted(answer.sub_calls, "sub call")] if answer.sub_calls else [])]
    parts = ["answered directly" if answer.mode == "direct" else ", ".join(counts)]
    for role, usage in answer.usage.items():
        read = usage.fresh + usage.cached
        if read or usage.output:
            cached = f" ({usage.cached:,} of them cached)" if usage.cached else ""
            parts.append(f"{role}: {read:,} tokens read{cached}, {usage.output:,} written")
    parts.append(f"{answer.seconds:.1f} s")
    if answer.cost:
        parts.append(f"cost {answer.cost:.4g}")
    return "; ".join(parts)


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def describe_answer(answer: Answer) -> dict[str, Any]:
    """An answer as JSON."""
    document = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    return document | {
        "evidence": [dataclasses.asdict(each) for each in answer.evidence],
        "usage": {role: dataclasses.asdict(usage) for role, usage in answer.usage.items()},
        "tokens": answer.tokens,
        "mode": answer.mode,
        "route": dataclasses.asdict(answer.route),
        "journal": None if answer.journal is None else str(answer.journal),
    }


def _cut(text: str, width: int) -> str:
    text = printable(text.replace("\n", " "))
    return text if len(text) <= width else text[: width - 1] + "…"
