"""Commands as pure, total functions: a command and a state give a result and the next state.

Nothing here reads a file that the caller did not name, reaches a network or runs code, and no input ends in an
exception: what a command gets wrong comes back in `Result.error`, with the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamalab.rlm.text import Context, Span
from llamalab.rlm.values import Value


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
    variables: Mapping[str, Value]
    limits: Limits


@dataclass(frozen=True, slots=True)
class Result:
    """What a command gave.

    Attributes:
        value: what it found; None after an error and for `final`.
        head: one line in this program's own words ("3 matches in hits"): nothing in it comes from a document,
            but for names of documents, which cannot hold a newline.
        text: what was found, as the root is shown it: lines of documents, to be fenced. At most
            `Limits.output` characters; the protocol may cut further. Each line stands behind its number or name.
        notes: what the root should know (a range that was clipped, a search that stopped early); our own words.
        spans: where the first pieces of the result stand, for evidence.
        partial_at: the position that a search reached when its time ran out, in characters of all documents one
            after the other (or of the pieces searched); None where it ended.
        error: what was wrong with the command and what to do instead; the state is unchanged then.
        stored: name under which the value is kept.
        answer: of `final` and `final_var`: the run ends. Text, or JSON where a schema asks for it.
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


@dataclass(frozen=True, slots=True)
class SubCall:
    """One question to a sub model.

    Attributes:
        index: its slot, from 0.
        prompt: the root's instruction; holds nothing of the documents.
        text: what it is about, from documents or earlier answers: data, to be fenced. May be empty.
        spans: where the text stands.
        context: for `delegate`: the documents of the nested run; None otherwise.
        max_iterations: for `delegate`: turns of the nested run; None otherwise.
    """

    index: int
    prompt: str
    text: str
    spans: tuple[Span, ...] = ()
    context: Context | None = None
    max_iterations: int | None = None


@dataclass(frozen=True, slots=True)
class SubPlan:
    """The sub calls of a command, and what becomes of their replies.

    Ask every call (in parallel; one that fails gives None), then `further(replies)`: another plan to ask in the
    same way (`reduce` works in rounds), or None when it is done; then `combine(replies)` of the last plan.
    `error` is set where the command itself is wrong: nothing is to be asked, and `combine(())` gives that error.
    """

    calls: tuple[SubCall, ...]
    error: str | None = None

    def further(self, replies: Sequence[str | None]) -> SubPlan | None:
        """The next round, given the replies of this one by slot; None when this was the last."""
        raise NotImplementedError

    def combine(self, replies: Sequence[str | None]) -> tuple[Result, State]:
        """The result, given the replies of the last round by slot. A slot with None failed, and says so."""
        raise NotImplementedError


def execute(command: object, state: State, *, stop_at: int | None = None) -> tuple[Result, State]:
    """Run one command.

    Args:
        command: of the registry, or of the compact protocol; not one that needs a sub model (`sub_calls`).
        state: before.
        stop_at: `partial_at` of an earlier run: search exactly as far as it did, whatever the clock says.

    Raises:
        InputError: a document changed while the run was going on.
    """
    raise NotImplementedError


def sub_calls(command: object, state: State, *, most: int | None = None) -> SubPlan:
    """What `llm_query`, `map`, `reduce` or `delegate` asks of sub models.

    Args:
        command: one of these.
        state: before.
        most: calls that may be made now; `map` leaves out the rest, and its result says so.
    """
    raise NotImplementedError
