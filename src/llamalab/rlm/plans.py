"""What commands ask of sub models: `llm_query`, `map`, `reduce`, `delegate`; and what becomes of the replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llamalab.errors import InputError
from llamalab.rlm.commands import Delegate, LlmQuery, Map, Reduce
from llamalab.rlm.looking import listed
from llamalab.rlm.places import Item
from llamalab.rlm.show import show
from llamalab.rlm.state import SPANS_KEPT, Result, State
from llamalab.rlm.text import Context, Document, Span
from llamalab.rlm.values import Value
from llamalab.rlm.variables import references

MAX_GIVEN = 24_000
"""Characters that go with one question of `llm_query`."""
MAX_CHUNKS = 1000
"""Calls of one round."""
NO_ANSWER = "(no answer)"
"""What stands in the list for a call that failed."""
ONLY_FIRST = "only the first"
"""How a note begins that says that not all was given to sub models."""
_TOGETHER = "These are findings from the parts of one text, in order. Bring them together into one."
_DELEGATED = 16 << 20

SubCommand = LlmQuery | Map | Reduce | Delegate


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

    Attributes:
        calls: to ask, by slot.
        error: what is wrong with the command, and what to do instead.
        command: that asks.
        state: before it.
        notes: what the root should know.
        findings: of `reduce`: the replies of the round before.
        lacking: what was not asked for want of calls, or not answered in the rounds before; "" where nothing is.
    """

    calls: tuple[SubCall, ...]
    error: str | None
    command: SubCommand
    state: State
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    lacking: str = ""

    def further(self, replies: Sequence[str | None]) -> SubPlan | None:
        """The next round, given the replies of this one by slot; None when this was the last."""
        if self.error is not None or not isinstance(self.command, Reduce):
            return None
        found = tuple(reply for reply in replies if reply is not None and reply.strip())
        if len(self.calls) < 2 or len(found) < 2:
            return None
        calls = []
        for at, (text, spans) in enumerate(_grouped(self.calls, replies, self.command.chunk_size)):
            calls.append(SubCall(at, f"{self.command.directive}\n{_TOGETHER}", text, spans))
        failed = _failed(replies)
        lacking = self.lacking or "".join(failed)
        return replace(self, calls=tuple(calls), notes=self.notes + failed, findings=found, lacking=lacking)

    def combine(self, replies: Sequence[str | None]) -> tuple[Result, State]:
        """The result, given the replies of the last round by slot. A slot with None failed, and says so."""
        try:
            if self.error is not None:
                raise InputError(self.error)
            result = self._combined([None if reply is None else self._cut(reply, len(replies)) for reply in replies])
            lacking = self.lacking or "".join(_failed(replies))
            result = replace(result, notes=self.notes + result.notes, lacking=lacking)
            return kept(result, self.state, self.command.store)
        except InputError as error:
            return Result(error=str(error)), self.state

    def _combined(self, replies: Sequence[str | None]) -> Result:
        answered = [reply for reply in replies if reply is not None]
        spans = tuple(dict.fromkeys(span for call in self.calls for span in call.spans))[:SPANS_KEPT]
        if isinstance(self.command, Map):
            if self.calls and not answered:
                raise InputError("no sub call was answered. Ask fewer, or answer from what is known")
            items = tuple(
                Item(NO_ANSWER if reply is None else reply, call.spans[0] if call.spans else None)
                for call, reply in zip(self.calls, replies, strict=True)
            )
            result = listed(Value("list", items, len(items)), self.state, "answer", "answers")
            return replace(result, notes=result.notes + _failed(replies))
        if not answered and self.findings:
            value = Value("list", tuple(Item(found) for found in self.findings), len(self.findings))
            result = listed(value, self.state, "finding", "findings")
            return replace(result, spans=spans, notes=(*result.notes, "they could not be brought together"))
        if not answered or not "".join(answered).strip():
            raise InputError("the sub model gave no answer. Ask in other words, or answer from what is known")
        value = Value.of_text("\n".join(answered))
        return Result(value, "1 answer", show(value, self.state).text, _failed(replies), spans)

    def _cut(self, reply: str, slots: int) -> str:
        most = self.state.limits.value_bytes // max(slots, 1)
        return reply if len(reply.encode()) <= most else reply.encode()[:most].decode("utf-8", "ignore")


def sub_calls(command: SubCommand, state: State, *, most: int | None = None) -> SubPlan:
    """What a command asks of sub models.

    Args:
        command: one of these.
        state: before.
        most: calls that may be made now; `map` leaves out the rest, and its result says so.
    """
    room = MAX_CHUNKS if most is None else min(most, MAX_CHUNKS)
    lacking = ""
    try:
        if room < 1:
            raise InputError("no sub calls are left. Answer from what is known")
        match command:
            case LlmQuery():
                calls, notes = _query(command, state)
            case Map():
                calls, notes = _map(command, state, room)
                lacking = "".join(notes) if room < command.limit else ""
            case Reduce():
                calls, notes = _reduce(command, state, room)
            case Delegate():
                calls, notes = _delegate(command, state)
    except InputError as error:
        return SubPlan((), str(error), command, state)
    return SubPlan(tuple(calls), None, command, state, tuple(notes), lacking=lacking)


def kept(result: Result, state: State, store: str | None) -> tuple[Result, State]:
    """A result as the last one of the state, and under its name.

    Raises:
        InputError: the name is not free to use.
    """
    if result.value is None:
        return result, state
    after = state.stored(store, result.value)
    return (result if store is None else replace(result, stored=store, head=f"{result.head} in {store}")), after


def _query(command: LlmQuery, state: State) -> tuple[list[SubCall], list[str]]:
    """One question. What `${name}` stands for goes with it as data, and is no part of the question."""
    named = references(command.prompt, state)
    prompt = command.prompt
    for name in named:
        prompt = prompt.replace(f"${{{name}}}", name)
    sources = [(name, state.source(name)) for name in (*named, *([command.on] if command.on else ()))]
    parts: list[str] = []
    spans: list[Span] = []
    notes: list[str] = []
    for name, value in sources:
        text = value.joined(MAX_GIVEN // len(sources) + 1)
        if len(text) > MAX_GIVEN // len(sources):
            text = text[:-1]
            notes.append(f"{ONLY_FIRST} {len(text)} characters of {name} were given; use map or reduce for all")
        parts.append(text if len(sources) == 1 else f"{name}:\n{text}")
        spans += value.spans(SPANS_KEPT)
    return [SubCall(0, prompt, "\n\n".join(parts), tuple(spans[:SPANS_KEPT]))], notes


def _map(command: Map, state: State, room: int) -> tuple[list[SubCall], list[str]]:
    source = state.source(command.on)
    most = min(room, command.limit)
    items: Iterator[Item]
    if source.kind == "text":
        items, total = _chunks(source, command.chunk_size, 0), None
    else:
        items = (source.head(at, command.chunk_size) for at in range(len(source.items)))
        total = len(source.items)
    calls: list[SubCall] = []
    for item in items:
        if len(calls) == most:
            break
        if item.text.strip():
            calls.append(SubCall(len(calls), command.prompt, item.text, (item.span,) if item.span else ()))
    else:
        total = None
    if not calls:
        raise InputError("there is nothing in it to ask about")
    if len(calls) < most:
        return calls, []
    left = next((True for item in items if item.text.strip()), False) if total is None else total > most
    return calls, [f"{ONLY_FIRST} {most} pieces were asked about"] if left else []


def _reduce(command: Reduce, state: State, room: int) -> tuple[list[SubCall], list[str]]:
    source = state.source(command.on)
    calls: list[SubCall] = []
    overlap = min(command.overlap, command.chunk_size // 2)
    for item in _chunks(source, command.chunk_size, overlap):
        if item.text.strip():
            if len(calls) == room:
                raise InputError(
                    f"the text has {int(source.char_starts()[-1])} characters, and {room} sub calls are left: use a "
                    "larger chunk_size, or search first and give the matches as on"
                )
            calls.append(SubCall(len(calls), command.directive, item.text, (item.span,) if item.span else ()))
    if not calls:
        raise InputError("there is nothing in it to go through")
    return calls, []


def _delegate(command: Delegate, state: State) -> tuple[list[SubCall], list[str]]:
    context, notes = state.context, []
    spans: tuple[Span, ...] = ()
    if command.on is not None:
        value = state.source(command.on)
        spans = value.spans(SPANS_KEPT)
        text = value.joined(_DELEGATED + 1)
        if len(text) > _DELEGATED:
            notes.append(f"{ONLY_FIRST} {_DELEGATED} characters of {command.on} were given")
        context = Context([Document.of(text[:_DELEGATED], command.on)])
    return [SubCall(0, command.task, "", spans, context, command.max_iterations)], notes


def _chunks(source: Value, size: int, overlap: int) -> Iterator[Item]:
    """A value in chunks of at most so many characters, cut at line ends where there are some; short items together."""
    if source.kind != "text":
        text: list[Item] = []
        joined = 0
        for at in range(len(source.items)):
            item = source.head(at, size)
            if joined and joined + len(item.text) > size:
                yield Item("\n".join(part.text for part in text), text[0].span)
                text, joined = [], 0
            text.append(item)
            joined += len(item.text) + 1
        if text:
            yield Item("\n".join(part.text for part in text), text[0].span)
        return
    for piece in source.pieces():
        begin, whole = 0, len(piece.data)
        while begin < whole:
            end = piece.byte_of(piece.char_of(begin) + size)
            if end < whole:
                end = piece.data.rfind(b"\n", begin, end) + 1 or end
            yield piece.item(begin, end)
            if end == whole:
                break
            back = piece.byte_of(piece.char_of(end) - overlap)
            line = piece.data.find(b"\n", back, end - 1) + 1
            begin = end if back <= begin else line or back


def _grouped(
    calls: Sequence[SubCall], replies: Sequence[str | None], size: int
) -> Iterator[tuple[str, tuple[Span, ...]]]:
    """Replies in groups of at least two, as many as fit."""
    found = [(reply, call.spans) for call, reply in zip(calls, replies, strict=True) if reply and reply.strip()]
    group: list[tuple[str, tuple[Span, ...]]] = []
    for at, (reply, spans) in enumerate(found):
        group.append((reply, spans))
        length = sum(len(text) for text, _ in group)
        following = len(found[at + 1][0]) if at + 1 < len(found) else 0
        if len(group) >= 2 and length + following > size and at + 2 < len(found):
            yield _merged(group)
            group = []
    if group:
        yield _merged(group)


def _merged(group: Sequence[tuple[str, tuple[Span, ...]]]) -> tuple[str, tuple[Span, ...]]:
    spans = tuple(dict.fromkeys(span for _, some in group for span in some))
    return "\n\n".join(text for text, _ in group), spans[:SPANS_KEPT]


def _failed(replies: Sequence[str | None]) -> tuple[str, ...]:
    slots = [str(at + 1) for at, reply in enumerate(replies) if reply is None]
    if not slots:
        return ()
    return (f"{len(slots)} of {len(replies)} sub calls failed (number {', '.join(slots[:10])})",)
