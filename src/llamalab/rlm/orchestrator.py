"""The loop: the root gives commands, they are done, and it is shown what they gave, until it answers.

Messages are only ever appended. Everything that comes from outside goes through the journal's tape, so the same loop
serves a run, one that is resumed, and a replay.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from llamalab.engine import Message, Usage
from llamalab.errors import InputError
from llamalab.rlm.allowance import ROOM, Allowance, Before, allow
from llamalab.rlm.answer import Answer, Route
from llamalab.rlm.budget import Budget
from llamalab.rlm.commands import SUB_COMMANDS
from llamalab.rlm.compact import LINES_SHOWN
from llamalab.rlm.event import Answered, Done, Event, Routed, Started, Turn
from llamalab.rlm.evidence import Looked, evidence_for, whole
from llamalab.rlm.execute import NEVER, Limits, Result, State, SubCall, execute, sub_calls
from llamalab.rlm.grammar import longest_sentence
from llamalab.rlm.protocol import (
    LAST,
    NOT_FOUND,
    AnyCommand,
    Protocol,
    allowed_ops,
    assistant_message,
    direct_messages,
    direct_schema,
    fence_of,
    malformed_message,
    opening,
    read_turn,
    refusal,
    result_message,
    sub_fence,
    turn_schema,
    user_message,
    without_fence,
    written,
)
from llamalab.rlm.routing import DIRECT_REPLY, choose_route
from llamalab.rlm.subcalls import Place, ask_all, keeping_answer
from llamalab.rlm.text import Context
from llamalab.rlm.tree import Said, Tree, ask_model, spent_data
from llamalab.rlm.typed import read_answer

NO_ANSWER = "no answer was reached"
"""The text of an answer where the run ended before it had looked at anything."""
_REPAIRS = 1  # turns in a row that may be no command, and be followed by another
_REPEATS = {"compact": 1, "full": 2}  # results that come again, until only an answer is allowed


@dataclass(slots=True)
class _Talk:
    """The conversation of one run, as it grows."""

    messages: list[Message]
    state: State
    looked_at: list[Looked] = field(default_factory=list)
    best: str = ""
    seen: dict[tuple[str, str], int] = field(default_factory=dict)
    repeats: int = 0
    bad: int = 0
    malformed: int = 0
    slowest: float = 0.0


@dataclass(frozen=True, slots=True)
class _End:
    """How a run ended: an answer, or why there is none."""

    text: str
    value: Any = None
    why: str = ""


def run(
    tree: Tree,
    question: str,
    context: Context,
    *,
    path: str = "",
    budget: Budget | None = None,
    max_turns: int | None = None,
    said: Sequence[str] = (),
) -> Iterator[Event]:
    """Answer a question over a context, event by event.

    Args:
        tree: tape, settings, budget and models.
        question: that is asked.
        context: documents.
        path: of a nested run.
        budget: as a nested run sees it; None: the tree's.
        max_turns: of a nested run.
        said: what the user should know before, in sentences.

    Raises:
        ProviderError: the root's providers do not answer.
        InputError: a document changed meanwhile, or the journal cannot be written.
    """
    budget = budget or tree.budget
    settings = tree.settings if not path else replace(tree.settings, answer_schema=None)
    tree = replace(tree, settings=settings)
    fence = fence_of(context, question)
    ops = allowed_ops(settings.protocol, subs=settings.limits.max_sub_calls != 0, nested=budget.may_nest, last=False)
    first = opening(settings.protocol, question, context, fence, ops=ops, answer=settings.answer_schema)
    yield Started(
        question,
        tuple(document.name for document in context.documents),
        context.n_chars,
        context.n_lines,
        settings.protocol,
        tuple(provider.name for provider in tree.pool.providers) if tree.pool is not None else (),
        tuple(said),
        path,
    )
    route = Route(
        **tree.tape.effect(
            f"{path}route", lambda: asdict(choose_route(tree, budget, question, context, fence, first))
        )
    )
    yield Routed(route, path)
    state = State(context, {}, Limits(output=settings.output_limit))
    talk = _Talk(first, state)
    if route.mode == "direct":
        end = yield from _directly(tree, budget, question, context, fence, path, talk)
    else:
        end = yield from _by_commands(tree, budget, talk, fence, path, max_turns)
    yield Answered(_answer(tree, budget, question, context, talk, route, end, path, said), path)


def _directly(
    tree: Tree, budget: Budget, question: str, context: Context, fence: str, path: str, talk: _Talk
) -> Generator[Event, None, _End]:
    schema = tree.settings.answer_schema
    messages = direct_messages(tree.settings.protocol, question, context, fence, answer=schema)
    tree.tape.fact(f"{path}direct", {"messages": messages})
    reply = ask_model(
        tree,
        budget,
        f"{path}direct.reply",
        "root",
        messages,
        DIRECT_REPLY,
        schema=direct_schema(tree.settings.protocol, schema),
        fatal=not path,
    )
    text = without_fence(reply.text.strip(), fence)
    yield Turn(1, text, "", reply.provider, reply.usage, reply.seconds, last=True, path=path)
    if reply.why or not text:
        return _End(text or NO_ANSWER, why=reply.why or "the model's reply was empty")
    if text.strip(".").casefold() in ("not in the text", NOT_FOUND):  # the first is what pico says of a passage
        text = NOT_FOUND
    talk.looked_at.append(Looked(whole(context)))
    return _typed(schema, text)


def _by_commands(
    tree: Tree, budget: Budget, talk: _Talk, fence: str, path: str, max_turns: int | None
) -> Generator[Event, None, _End]:
    settings = tree.settings
    tree.tape.fact(f"{path}opening", {"messages": talk.messages})
    most_turns = max_turns or settings.limits.max_iterations or 10**9
    pending: _Pending | None = None
    n = 0
    while True:
        n += 1
        # What the schema of a turn is depends on what is allowed, so its longest reply is that of the widest one.
        widest = _schema(tree, talk, allowed_ops(settings.protocol, subs=True, nested=True, last=False))
        before = Before(
            talk.messages,
            partial(_longest, settings.protocol, pending) if pending else None,
            LINES_SHOWN if settings.protocol == "compact" else settings.output_limit,
            settings.turn_tokens or longest_sentence(widest),
            most_turns - n + 1,
            talk.slowest,
        )
        may = Allowance(**tree.tape.effect(f"{path}{n}.allowed", partial(_allowed, tree, budget, before)))
        if may.end:
            return _End(talk.best or NO_ANSWER, why=may.end)
        last = may.last
        if not last and talk.repeats >= _REPEATS[settings.protocol]:
            last = "the root repeats itself"
        if pending is not None:
            text = pending.message(may.shown)
            talk.messages.append(user_message(_with_last(settings.protocol, text) if last else text))
            tree.tape.fact(f"{path}{n}.message", {"content": talk.messages[-1]["content"]})
        ops = allowed_ops(settings.protocol, subs=may.subs, nested=may.nested, last=bool(last))
        reply = ask_model(
            tree,
            budget,
            f"{path}{n}.reply",
            "root",
            talk.messages,
            may.tokens,
            schema=_schema(tree, talk, ops),
            fatal=not path,
        )
        if reply.why:
            return _End(talk.best or NO_ANSWER, why=reply.why)
        talk.messages.append(assistant_message(reply.text))
        talk.slowest = max(talk.slowest, reply.seconds)
        try:
            command = read_turn(settings.protocol, reply.text, tolerant=settings.tolerant)
        except InputError as error:
            talk.malformed += 1
            talk.bad += 1
            yield _turn(n, reply.text[:2000], reply, bool(last), path, malformed=str(error))
            if last or talk.bad > _REPAIRS:
                why = f"{f'{last}, and ' if last else ''}the root gave no valid command ({error})"
                return _End(talk.best or NO_ANSWER, why=why)
            yield Done(n, "", error=str(error), path=path)
            pending = _Pending(malformed_message(settings.protocol, str(error), fence))
            continue
        talk.bad = 0
        yield _turn(n, written(command), reply, bool(last), path, thought=getattr(command, "thought", None) or "")
        refused = refusal(command, ops)
        if refused is None:
            result = yield from _do(tree, budget, talk, command, may, reply, fence, path, n)
        else:
            result = Result(error=refused)
        if result.answer is not None:
            end = _finished(tree, without_fence(result.answer, fence), last=bool(last))
            if not isinstance(end, InputError):
                return end
            result = Result(error=f"{end}. Give another answer")
        yield Done(n, result.head, result.text, result.notes, result.error, path)
        if last:
            return _End(talk.best or NO_ANSWER, why=f"{last}, and it brought no answer ({result.error or result.head})")
        pending = _look(tree, talk, command, result, fence, n)


def _allowed(tree: Tree, budget: Budget, before: Before) -> dict[str, Any]:
    return asdict(allow(tree, budget, before))


@dataclass(frozen=True, slots=True)
class _Pending:
    """A message to the root, of a length that is still to be decided."""

    text: str = ""
    build: partial[str] | None = None

    def message(self, shown: int) -> str:
        return self.text if self.build is None else self.build(shown=shown)


def _longest(protocol: Protocol, pending: _Pending, shown: int) -> str:
    return _with_last(protocol, pending.message(shown))


def _with_last(protocol: Protocol, text: str) -> str:
    return f"{text}\n{LAST}" if protocol == "full" else text


def _do(
    tree: Tree,
    budget: Budget,
    talk: _Talk,
    command: AnyCommand,
    may: Allowance,
    reply: Said,
    fence: str,
    path: str,
    n: int,
) -> Generator[Event, None, Result]:
    """Do a command; the talk's state is the next one then."""
    key = f"{path}{n}.result"
    known = tree.tape.known_fact(key)
    if command.op in SUB_COMMANDS:
        result = yield from _ask_subs(tree, budget, talk, command, may, reply, fence, path, n)
    else:
        stop_at = None
        if known is not None:  # as far as it came then, whatever the clock says now
            stop_at = NEVER if known["partial_at"] is None else known["partial_at"]
        result, talk.state = execute(command, talk.state, stop_at=stop_at)
    tree.tape.fact(
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


def _ask_subs(
    tree: Tree,
    budget: Budget,
    talk: _Talk,
    command: AnyCommand,
    may: Allowance,
    reply: Said,
    fence: str,
    path: str,
    n: int,
) -> Generator[Event, None, Result]:
    room = keeping_answer(tree, budget, may.prompt + 2 * reply.usage.output + ROOM[tree.settings.protocol])

    def nest(call: SubCall, below: str) -> Iterator[Event]:
        assert call.context is not None
        return run(tree, call.prompt, call.context, path=below, budget=room.nested(), max_turns=call.max_iterations)

    left = tree.tape.effect(f"{path}{n}.most", lambda: {"most": budget.sub_calls_left})["most"]
    deadline = None if budget.deadline is None else budget.deadline - 2 * talk.slowest
    plan = sub_calls(command, talk.state, most=left)
    rounds = 0
    while True:
        place = Place(path, n, f"{path}{n}.sub.{rounds}", deadline)
        replies = yield from ask_all(tree, room, plan, place, sub_fence(fence), nest)
        further = None if plan.error is not None else plan.further(replies)
        if further is None:
            break
        plan, rounds = further, rounds + 1
    result, talk.state = plan.combine(replies)
    return result


def _look(tree: Tree, talk: _Talk, command: AnyCommand, result: Result, fence: str, n: int) -> _Pending:
    """Keep what a result is worth for the answer; what the root is to be told of it."""
    if result.error is None:
        talk.looked_at.append(Looked(result.spans, f"{result.head}\n{result.text}"))
        talk.best = without_fence(_best(result), fence) or talk.best
    shown = (written(command.model_copy(update={"thought": None})) if hasattr(command, "thought") else written(command))
    seen = (shown, f"{result.head}\n{result.text}\n{result.error}")
    before = talk.seen.setdefault(seen, n)
    notices: tuple[str, ...] = ()
    if before != n:
        talk.repeats += 1
        notices = (f"note: this is the command of turn {before}, with the same result. Give another one, or final",)
    build = partial(result_message, tree.settings.protocol, command, result, fence, notices=notices)
    return _Pending(build=build)


def _finished(tree: Tree, text: str, *, last: bool) -> _End | InputError:
    """The end of a run by the root's own answer; or what is wrong with that, where it may try again."""
    if not text.strip():
        return InputError("the answer is empty")
    end = _typed(tree.settings.answer_schema, text)
    if end.why and not last:
        return InputError(end.why)
    return end


def _typed(schema: Mapping[str, Any] | None, text: str) -> _End:
    if schema is None:
        return _End(text)
    try:
        return _End(text, read_answer(schema, text))
    except InputError as error:
        return _End(text, why=str(error))


def _schema(tree: Tree, talk: _Talk, ops: Sequence[str]) -> dict[str, Any]:
    return turn_schema(
        tree.settings.protocol,
        ops=ops,
        variables=list(talk.state.variables),
        context=talk.state.context,
        answer=tree.settings.answer_schema,
    )


def _answer(
    tree: Tree,
    budget: Budget,
    question: str,
    context: Context,
    talk: _Talk,
    route: Route,
    end: _End,
    path: str,
    said: Sequence[str],
) -> Answer:
    evidence = evidence_for(end.text, talk.looked_at, context, value=end.value)
    used = tree.tape.effect(
        f"{path}totals", lambda: {"spent": spent_data(budget), "seconds": round(budget.spent.seconds, 4)}
    )
    spent = used["spent"]
    tree.tape.fact(
        f"{path}answer",
        {
            "text": end.text,
            "value": end.value,
            "complete": not end.why,
            "why": end.why,
            "evidence": [asdict(each) for each in evidence],
        },
    )
    if not path:
        tree.tape.end()
    return Answer(
        question,
        end.text,
        end.value,
        not end.why,
        end.why,
        evidence,
        {role: Usage(**each) for role, each in spent["usage"].items()},
        spent["cost"],
        used["seconds"],
        route,
        spent["iterations"],
        spent["sub_calls"],
        talk.malformed,
        tuple(said),
        tree.tape.path,
    )


def _turn(
    n: int, command: str, reply: Said, last: bool, path: str, *, thought: str = "", malformed: str = ""
) -> Turn:
    return Turn(n, command, thought, reply.provider, reply.usage, reply.seconds, last, malformed, path)


def _best(result: Result) -> str:
    """What a result would be worth as an answer, should the run end now."""
    lines = [line for line in result.text.splitlines() if line.strip()]
    return (" ".join(lines[:2]) if lines else result.head)[:400]
