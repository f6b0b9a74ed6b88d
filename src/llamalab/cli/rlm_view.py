"""How a run is shown: its turns while it goes on, and its answer."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llamalab.cli.output import console, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from llamalab.rlm.answer import Answer
    from llamalab.rlm.event import Done, Event, Turn

LINES_SHOWN = 6
"""Lines of a result that are shown while a run goes on."""
EVIDENCE_SHOWN = 5
CHARACTERS_SHOWN = 300
"""Of a line; the JSON document has all of it."""
_SPACES = {ord("\n"): " ", ord("\t"): " "}


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
        yield _View(out, status).show


class _View:
    """A run as it goes on: what has happened stays above, one line below it says what is going on."""

    def __init__(self, out: Console, status: Status) -> None:
        self._out, self._status = out, status
        self._doing = ""
        self._answered = 0  # sub calls of the command that is being done

    def show(self, event: Event) -> None:
        """Print what an event tells."""
        from llamalab.rlm import Done, Routed, Started, SubCall, Turn

        margin = "    " * len([step for step in event.path.split("/") if step])
        below = f"{margin}   "
        if isinstance(event, Started):
            _print_said(self._out, event)
            named = ", ".join(event.documents[:3]) + (", ..." if len(event.documents) > 3 else "")
            what = f"{named}: {event.n_lines:,} lines, {event.n_chars:,} characters"
            self._say(margin, event.question if event.path else what, "dim", rows=3)
            self._status.update("thinking")
        elif isinstance(event, Routed) and (not event.path or event.route.mode == "direct"):
            self._say(margin, event.route.why, "dim", rows=3)
        elif isinstance(event, Turn):
            if event.thought:
                self._say(below, event.thought, "italic dim", rows=3)
            self._say(f"{margin}{event.n:2} ", _command(event), "red" if event.malformed else "bold", rows=4)
            if event.malformed:
                self._say(below, event.malformed, "red", rows=3)
            self._doing, self._answered = f"turn {event.n}{', the last one' if event.last else ''}", 0
            self._status.update(self._doing)
        elif isinstance(event, SubCall):
            self._answered += 1
            self._status.update(f"{self._doing}, {self._answered} of {event.total} sub calls")
            if event.error:
                self._say(below, f"sub call {event.index + 1}: {event.error}", "red", rows=3)
        elif isinstance(event, Done):
            self._show_result(below, event)

    def _show_result(self, below: str, done: Done) -> None:
        self._status.update("thinking")
        self._say(below, done.error or done.head, "red" if done.error else "", rows=3)
        lines = done.text.splitlines()
        for line in lines[:LINES_SHOWN]:
            self._say(below, line, "green")
        if len(lines) > LINES_SHOWN:
            left = len(lines) - LINES_SHOWN
            self._say(below, f"and {left:,} {'line' if left == 1 else 'lines'} more", "dim")
        for note in done.notes:
            self._say(below, note, "dim", rows=3)

    def _say(self, begin: str, text: str, style: str = "", *, rows: int = 1) -> None:
        """A text behind `begin`, cut where it would take more than so many rows of the screen."""
        from rich.text import Text

        for row in _rows(begin, printable(text.translate(_SPACES)), self._out.width, rows):
            self._out.print(Text(row, style=style), no_wrap=True, overflow="ignore", crop=False)


def _rows(begin: str, text: str, width: int, most: int) -> list[str]:
    """A text in rows of the screen, broken at words where it can be, all of them indented as the first is."""
    from rich.cells import cell_len, chop_cells

    rows: list[str] = []
    width = max(width - len(begin), 2)
    while cell_len(text) > width and len(rows) < most - 1:
        fits = chop_cells(text, width)[0]
        at = fits.rfind(" ", len(fits) // 2) + 1 or len(fits)
        rows.append(text[:at].rstrip())
        text = text[at:].lstrip()
    rows.append(text if cell_len(text) <= width else chop_cells(text, width - 1)[0] + "…")
    return [(begin if n == 0 else " " * len(begin)) + row for n, row in enumerate(rows)]


def _command(turn: Turn) -> str:
    """A command without its thought, which is shown above it; what was none as it is."""
    if turn.malformed or not turn.thought:
        return turn.command
    fields = {name: value for name, value in json.loads(turn.command).items() if name != "thought"}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _print_said(out: Console, event: Event) -> None:
    from rich.text import Text

    from llamalab.rlm import Started

    if isinstance(event, Started) and not event.path:
        for sentence in event.said:
            out.print(Text(printable(sentence)), soft_wrap=not out.is_terminal)


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
        line = _cut(evidence.text.rstrip("\r").replace("\r\n", " "), CHARACTERS_SHOWN)  # of a file of Windows
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
