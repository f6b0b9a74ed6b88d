"""What commands work on and what they give; the clock that one command runs against."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from llamalab.errors import InputError
from llamalab.rlm.patterns import BLOCK, Stop
from llamalab.rlm.places import Piece, Places, Searched
from llamalab.rlm.text import Context, Span
from llamalab.rlm.values import Value

LAST = "_"
"""The variable that holds the last result."""
SPANS_KEPT = 20
"""Places that a result carries."""


NEVER = 1 << 62
"""A `stop_at` that no search reaches: that of a command which ended by itself."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one command may use.

    Attributes:
        seconds: of searching; what was found until then is the result, marked partial.
        output: characters of a result's text.
        matches: pieces that a search keeps; further ones are counted.
        variables: names in a run.
        value_bytes: bytes of text in a variable that come from no document.
    """

    seconds: float = 2.0
    output: int = 10_000
    matches: int = 200_000
    variables: int = 100
    value_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class State:
    """What commands work on; `execute` returns the next one.

    Attributes:
        context: the documents.
        variables: by name; `_` is the last result.
        limits: for each command.
    """

    context: Context
    variables: Mapping[str, Value] = field(default_factory=dict)
    limits: Limits = Limits()

    def source(self, name: str | None) -> Value:
        """What `on` names: a variable, a document (`doc1`), the last result (`_`), or without a name the whole text.

        Raises:
            InputError: there is none of that name; says which there are.
        """
        if name is None:
            return Value.of_context(self.context)
        name = LAST if name == "last" and name not in self.variables else name
        if name in self.variables:
            return self.variables[name]
        number = document_number(name)
        if number is not None and 1 <= number <= len(self.context.documents):
            return Value("text", Places.whole(self.context.documents[number - 1 : number]), 1)
        raise InputError(f"there is no {name}: {self._names()}")

    def stored(self, name: str | None, value: Value) -> State:
        """The state in which a result is the last one, and kept under a name if there is one.

        Raises:
            InputError: the name is not free to use, or there are too many.
        """
        added = {LAST: value} if name is None else {LAST: value, name: value}
        if name is not None:
            if document_number(name) is not None or name in (LAST, "last"):
                raise InputError(f"{name} is taken: it names a document or the last result. Choose another name")
            if name not in self.variables and len(self.variables.keys() - {LAST}) >= self.limits.variables:
                raise InputError(f"there are {self.limits.variables} variables already. Use one of their names again")
        return replace(self, variables={**self.variables, **added})

    def _names(self) -> str:
        names = sorted(name for name in self.variables if name != LAST)
        n = len(self.context.documents)
        documents = f"documents doc1 to doc{n}" if n > 1 else ""
        known = f"variables {', '.join(names[:20])}" if names else "no variables yet"
        return "there are " + " and ".join(part for part in (known, documents) if part)


@dataclass(frozen=True, slots=True)
class Result:
    """What a command gave.

    Attributes:
        value: what it found; None after an error and for `final`.
        head: one line in this program's own words ("3 matches in hits"): nothing in it comes from a document,
            but for numbers.
        text: what was found, as the root is shown it: lines of documents, to be fenced. At most
            `Limits.output` characters; the protocol may cut further. Each line stands behind its number or name.
        notes: what the root should know (a range that was clipped, a search that stopped early); our own words.
        spans: where the first pieces of the result stand, for evidence.
        partial_at: how far a search had come when its time ran out, in characters of all that it had to read (of
            all documents one after the other, or of the pieces of `on`, one to a line; a second reading counts on).
            None where it ended.
        error: what was wrong with the command and what to do instead; the state is unchanged then.
        stored: name under which the value is kept.
        answer: of `final` and `final_var`: the run ends. Text, or JSON where the answer is none.
        lacking: what sub models were asked for and did not give; "" where nothing is missing.
    """

    value: Value | None = None
    head: str = ""
    text: str = ""
    notes: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    partial_at: int | None = None
    error: str | None = None
    stored: str | None = None
    answer: str | None = None
    lacking: str = ""


class Clock:
    """The time that one command has, or the point at which it stopped in an earlier run.

    Attributes:
        partial_at: characters read when time ran out; None while it has not.
    """

    def __init__(self, seconds: float, stop_at: int | None = None) -> None:
        self.partial_at: int | None = None
        self._deadline = float("inf") if stop_at is not None else time.monotonic() + seconds
        self._stop_at = stop_at
        self._before = self._whole = 0

    def read(self, value: Value) -> Iterator[tuple[Piece, Stop]]:
        """The pieces of a value, each with when to stop in it; ends after the one in which time ran out."""
        starts = None if self._stop_at is None else value.char_starts()
        for at in range(len(value.items)):
            piece = value.piece(at)
            stop = Stop(deadline=self._deadline)
            if starts is not None and self._stop_at is not None:
                left = self._stop_at - self._before - int(starts[at])
                if left < int(starts[at + 1] - starts[at]):
                    stop.position = piece.byte_of(left)
            yield piece, stop
            if stop.reached is not None:
                begun = value.char_starts() if starts is None else starts
                self.partial_at = self._before + int(begun[at]) + piece.char_of(stop.reached)
                self._whole = int(begun[-1])
                return

    def read_lines(self, value: Value) -> Iterator[tuple[Searched, Stop]]:
        """As `read`, for searches that keep within lines: the pieces of a list are joined, one to a line."""
        if value.kind == "text":
            yield from self.read(value)
            return
        begun = self._before
        for text in value.joined_pieces(BLOCK):
            stop = Stop(deadline=self._deadline)
            if self._stop_at is not None and self._stop_at - begun < text.n_chars:
                stop.position = text.byte_of(self._stop_at - begun)
            yield text, stop
            if stop.reached is not None:
                self.partial_at = begun + text.char_of(stop.reached)
                self._whole = _size(value)
                return
            begun += text.n_chars + 1

    def again(self, value: Value) -> None:
        """A second reading of a value by `read_lines` begins: its characters count on."""
        self._before += _size(value)

    def note(self) -> str:
        """What a result that was cut short says."""
        read = (self.partial_at or 0) - self._before
        which = " in a second reading, for the words" if self._before else ""
        return (
            f"partial: its time ran out after {read} of {self._whole} characters{which}; "
            "what is there was found until then"
        )


def _size(value: Value) -> int:
    """Characters that `read_lines` reads; the newlines between pieces of a list count."""
    return int(value.char_starts()[-1]) + (0 if value.kind == "text" else max(len(value.items) - 1, 0))


def document_number(name: str) -> int | None:
    """7 for doc7; None for a name that is no document's."""
    digits = name.removeprefix("doc")
    return int(digits) if digits != name and digits.isascii() and digits.isdigit() and len(digits) < 8 else None
