"""The loop: the root gives commands, they are done, and it is shown what they gave, until it answers.

Messages are only ever appended. Everything that comes from outside goes through the journal's tape, so the same loop
serves a run, one that is resumed, and a replay.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from llamalab.errors import InputError
from llamalab.rlm.allowance import Allowance, Before, allow
from llamalab.rlm.answer import Route
from llamalab.rlm.bounds import fills, fitting
from llamalab.rlm.budget import Budget
from llamalab.rlm.compact import LINES_SHOWN
from llamalab.rlm.conclude import NO_ANSWER, NOTHING_READ, End, answered, conclude, given_up, weighed
from llamalab.rlm.event import Answered, Done, Event, Routed, Started, Turn
from llamalab.rlm.evidence import Looked, whole
from llamalab.rlm.execute import Limits, Result, State, SubCall
from llamalab.rlm.grammar import longest_sentence
from llamalab.rlm.protocol import (
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
    user_message,
    without_fence,
    written,
)
from llamalab.rlm.routing import DIRECT_REPLY, choose_route
from llamalab.rlm.talk import Pending, Run, Talk, do_command, schema_of, take_result
from llamalab.rlm.text import Context
from llamalab.rlm.tree import Said, Tree, ask_model

_REPAIRS = 1  # turns in a row that may be no command, and be followed by another
_SHOWN_BAD = 2000  # characters of a turn that was no command
_REPEATS: Mapping[Protocol, int] = {"compact": 1, "full": 2}  # the same results, until only an answer is allowed
READ_FIRST = "nothing of the text was read yet: search or read first, then answer"
_ABSENT = (NOT_FOUND, "not in the text")  # the second is what pico says of a passage


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
        Differs: the journal tells of another run than this one.
    """
    if path:
        tree = replace(tree, settings=replace(tree.settings, answer_schema=None))
    settings, budget = tree.settings, budget or tree.budget
    here = Run(tree, budget, question, context, fence_of(context, question), path)
    ops = allowed_ops(settings.protocol, subs=settings.limits.max_sub_calls != 0, nested=budget.may_nest, last=False)
    first = opening(settings.protocol, question, context, here.fence, ops=ops, answer=settings.answer_schema)
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
            f"{path}route", lambda: asdict(choose_route(tree, budget, question, context, here.fence, first))
        )
    )
    yield Routed(route, path)
    talk = Talk(first, State(context, {}, Limits(output=settings.output_limit)))
    end = yield from (_directly(here, talk) if route.mode == "direct" else _by_commands(here, talk, max_turns))
    yield Answered(conclude(here, talk, route, end, said), path)


def _directly(here: Run, talk: Talk) -> Generator[Event, None, End]:
    """One call that is shown the documents whole."""
    protocol, schema = here.settings.protocol, here.settings.answer_schema
    messages = direct_messages(protocol, here.question, here.context, here.fence, answer=schema)
    here.tree.tape.fact(f"{here.path}direct", {"messages": messages})
    reply = ask_model(
        here.tree,
        here.budget,
        f"{here.path}direct.reply",
        "root",
        messages,
        DIRECT_REPLY,
        schema=direct_schema(protocol, schema),
        fatal=not here.path,
    )
    text = without_fence(reply.text.strip(), here.fence)
    yield Turn(1, text, "", reply.provider, reply.usage, reply.seconds, last=True, path=here.path)
    if reply.why:
        return End(text or NO_ANSWER, why=reply.why)
    if text.strip(".").casefold() in _ABSENT:
        text = NOT_FOUND
    talk.looked_at.append(Looked(whole(here.context)))
    end = answered(schema, text)
    if reply.cut and here.settings.grounded and not end.why:
        return replace(end, why=f"the answer was cut after {DIRECT_REPLY} tokens")
    return end


def _by_commands(here: Run, talk: Talk, max_turns: int | None) -> Generator[Event, None, End]:
    """Turn by turn."""
    settings, tape, path = here.settings, here.tree.tape, here.path
    tape.fact(f"{path}opening", {"messages": talk.messages})
    turns = max_turns or settings.limits.max_iterations or 10**9
    pending: Pending | None = None
    for n in range(1, turns + 2):
        may = _allowance(here, talk, n, turns - n + 1, pending)
        if may.end:
            return given_up(talk, may.end)
        last = may.last
        if not last and talk.repeats >= _REPEATS[settings.protocol]:
            last = "the root repeats itself"
        if pending is not None:
            content = pending.message(settings.protocol, may.shown, last=bool(last))
            talk.messages.append(user_message(content))
            tape.fact(f"{path}{n}.message", {"content": content})
        ops = allowed_ops(settings.protocol, subs=may.subs, nested=may.nested, last=bool(last))
        schema = fitting(schema_of(here, talk, ops), may.tokens)
        reply = ask_model(
            here.tree,
            here.budget,
            f"{path}{n}.reply",
            "root",
            talk.messages,
            may.tokens,
            schema=schema,
            fatal=not path,
        )
        if reply.why:
            return given_up(talk, reply.why)
        talk.messages.append(assistant_message(reply.text))
        talk.slowest = max(talk.slowest, reply.seconds)
        command = _read(here, reply.text)
        if isinstance(command, InputError):
            talk.malformed, talk.bad = talk.malformed + 1, talk.bad + 1
            # A provider that knows no end of a reply must not fill the window with it.
            talk.messages[-1] = assistant_message(reply.text[:_SHOWN_BAD])
            yield _turn(here, n, reply.text[:_SHOWN_BAD], reply, last, malformed=str(command))
            if last or talk.bad > _REPAIRS:
                return given_up(talk, f"{f'{last}, and ' if last else ''}the root gave no valid command ({command})")
            yield Done(n, "", error=str(command), path=path)
            pending = Pending(malformed_message(settings.protocol, str(command), here.fence))
            continue
        talk.bad = 0
        yield _turn(here, n, written(command), reply, last, thought=getattr(command, "thought", None) or "")
        refused = refusal(command, ops)
        if refused is None:
            result = yield from do_command(here, talk, n, command, may, reply, partial(_nest, here.tree))
        else:
            result = Result(error=refused)
        if result.answer is not None:
            end = answered(settings.answer_schema, without_fence(result.answer, here.fence))
            if not end.why and fills(schema, getattr(command, "answer", "")):
                return replace(end, why=f"the answer was cut where its room ended{f' ({last})' if last else ''}")
            judged = weighed(end, talk, settings)
            unread = judged.why == NOTHING_READ
            if last or not (end.why or unread):
                return replace(judged, why=f"{judged.why} ({last})") if unread else judged
            result = Result(error=READ_FIRST if unread else f"{end.why}. Give another answer")
        yield Done(n, result.head, result.text, result.notes, result.error, path)
        if last:
            return given_up(talk, f"{last}, and it brought no answer ({result.error or result.head})")
        pending = take_result(here, talk, n, command, result)
    return given_up(talk, "all turns of the root are used (max_iterations)")


def _allowance(here: Run, talk: Talk, n: int, turns_left: int, pending: Pending | None) -> Allowance:
    """What turn `n` may do."""
    settings, protocol = here.settings, here.settings.protocol

    def decide() -> dict[str, Any]:
        widest = schema_of(here, talk, allowed_ops(protocol, subs=True, nested=True, last=False))
        before = Before(
            talk.messages,
            None if pending is None else partial(pending.message, protocol, last=True),
            LINES_SHOWN if protocol == "compact" else settings.output_limit,
            settings.turn_tokens or longest_sentence(widest),
            turns_left,
            talk.slowest,
        )
        return asdict(allow(here.tree, here.budget, before))

    return Allowance(**here.tree.tape.effect(f"{here.path}{n}.allowed", decide))


def _nest(tree: Tree, call: SubCall, path: str, budget: Budget) -> Iterator[Event]:
    assert call.context is not None
    return run(tree, call.prompt, call.context, path=path, budget=budget, max_turns=call.max_iterations)


def _read(here: Run, text: str) -> AnyCommand | InputError:
    try:
        return read_turn(here.settings.protocol, text, tolerant=here.settings.tolerant)
    except InputError as error:
        return error


def _turn(here: Run, n: int, command: str, reply: Said, last: str, *, thought: str = "", malformed: str = "") -> Turn:
    return Turn(n, command, thought, reply.provider, reply.usage, reply.seconds, bool(last), malformed, here.path)
