"""The sub calls of a command: asked in parallel, each slot failing alone, nested runs among them."""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from llamalab.engine import Usage
from llamalab.rlm.answer import Answer
from llamalab.rlm.budget import Budget
from llamalab.rlm.event import Answered, Event, SubCall
from llamalab.rlm.execute import SubCall as Asked
from llamalab.rlm.execute import SubPlan
from llamalab.rlm.protocol import sub_messages
from llamalab.rlm.tree import Tree, ask_model

Nest: TypeAlias = Callable[[Asked, str], Iterator[Event]]
"""Begins the run of a `delegate`, under the path of its own."""

_MOST = 32  # threads


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run sub calls are made.

    Attributes:
        path: of the run.
        n: its turn.
        key: in the journal.
        deadline: until when they may take, so that time for an answer remains; None without a limit.
    """

    path: str
    n: int
    key: str
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class _Reply:
    text: str
    error: str = ""
    provider: str = ""
    usage: Usage = Usage()  # noqa: RUF009 - frozen


def ask_all(
    tree: Tree, budget: Budget, plan: SubPlan, place: Place, fence: str, nest: Nest
) -> Generator[Event, None, list[str | None]]:
    """Make the calls of one round; events come as they end.

    Returns:
        The replies by slot; None for one that failed.
    """
    events: queue.SimpleQueue[Event | _Ended] = queue.SimpleQueue()
    replies: list[str | None] = [None] * len(plan.calls)
    with _workers(tree, len(plan.calls)) as workers:
        for call in plan.calls:
            future = workers.submit(_ask, tree, budget, call, place, fence, nest, events.put)
            future.add_done_callback(partial(_end, events.put, call.index))
        left = len(plan.calls)
        while left:
            event = events.get()
            if not isinstance(event, _Ended):
                yield event
                continue
            left -= 1
            reply = event.future.result()
            replies[event.index] = None if reply.error else reply.text
            yield SubCall(
                place.n,
                event.index,
                len(plan.calls),
                "" if reply.error else reply.text,
                reply.error,
                reply.provider,
                reply.usage,
                place.path,
            )
    return replies


def keeping_answer(tree: Tree, budget: Budget, tokens: int) -> Budget:
    """The budget for sub calls, without what the root's answer after them may take.

    Args:
        tree: of the run.
        budget: of this run.
        tokens: of the answer's turn, prompt and reply.
    """
    if tree.pool is None:
        return budget
    prices = [max(each.cost(Usage(fresh=tokens)), each.cost(Usage(output=tokens))) for each in tree.pool.of("root")]
    return budget.keeping(tokens, max(prices, default=0.0))


@dataclass(frozen=True, slots=True)
class _Ended:
    index: int
    future: Future[_Reply]


def _end(tell: Callable[[_Ended], None], index: int, future: Future[_Reply]) -> None:
    tell(_Ended(index, future))


@contextmanager
def _workers(tree: Tree, calls: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for the calls; where they are given up, the calls that have begun are ended, and no other begins."""
    places = 1 if tree.pool is None else sum(provider.concurrency for provider in tree.pool.of("sub"))
    workers = ThreadPoolExecutor(max(1, min(places, calls, _MOST)), thread_name_prefix="rlm-sub")
    try:
        yield workers
    except BaseException:
        tree.cancel.set()
        workers.shutdown(wait=True, cancel_futures=True)
        raise
    workers.shutdown()


def _ask(
    tree: Tree,
    budget: Budget,
    call: Asked,
    place: Place,
    fence: str,
    nest: Nest,
    tell: Callable[[Event], None],
) -> _Reply:
    if call.context is not None:
        return _nested(nest(call, f"{place.path}{place.n}.{call.index}/"), tell)
    said = ask_model(
        tree,
        budget,
        f"{place.key}.{call.index}",
        "sub",
        sub_messages(call, fence),
        tree.settings.sub_tokens,
        deadline=place.deadline,
    )
    if said.why:
        return _Reply("", said.why, said.provider, said.usage)
    if not said.text.strip():
        return _Reply("", "the reply was empty", said.provider, said.usage)
    cut = f" (cut after {tree.settings.sub_tokens} tokens)" if said.cut and tree.settings.grounded else ""
    return _Reply(said.text + cut, "", said.provider, said.usage)


def _nested(run: Iterator[Event], tell: Callable[[Event], None]) -> _Reply:
    answer: Answer | None = None
    for event in run:
        tell(event)
        if isinstance(event, Answered):
            answer = event.answer
    if answer is None:
        return _Reply("", "the nested run ended without an answer")
    return _Reply(answer.text if answer.complete else f"{answer.text} (incomplete: {answer.why})")
