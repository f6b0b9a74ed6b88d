"""What a turn of the root may do: decided before it, by what is left of window and budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llamalab.engine import Message
from llamalab.rlm.budget import Budget
from llamalab.rlm.protocol import Protocol, user_message
from llamalab.rlm.tree import Tree, prompt_tokens

ANSWER: Mapping[Protocol, int] = {"compact": 40, "full": 160}
"""Tokens that are kept for an answer while the root may still do something else."""
RESULT: Mapping[Protocol, int] = {"compact": 80, "full": 200}
"""Tokens that are kept for the result before it."""
ROOM: Mapping[Protocol, int] = {protocol: ANSWER[protocol] + RESULT[protocol] for protocol in ANSWER}
"""Both."""
_LEAST = 16  # tokens of the shortest answer


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one turn may do.

    Attributes:
        end: why there is no turn any more; "" where there is one.
        last: why only an answer is allowed; "" where everything is.
        limit: of the budget, that is the reason; "" where none is.
        tokens: longest reply.
        prompt: tokens of the prompt, at most.
        shown: how much of the last result the root is shown: lines (compact) or characters (full).
        subs: sub models may be asked.
        nested: a run may be nested.
    """

    end: str = ""
    last: str = ""
    limit: str = ""
    tokens: int = 0
    prompt: int = 0
    shown: int = 0
    subs: bool = False
    nested: bool = False


@dataclass(frozen=True, slots=True)
class Before:
    """What is known before a turn.

    Attributes:
        messages: of the conversation, without the result that is to be shown.
        result: that message, given how much of it is shown; None before the first turn.
        most_shown: as much as a result may have.
        longest: tokens of the longest reply.
        turns_left: of this run, this one included.
        slowest: seconds of its slowest turn so far.
    """

    messages: Sequence[Message]
    result: Callable[[int], str] | None
    most_shown: int
    longest: int
    turns_left: int
    slowest: float


def allow(tree: Tree, budget: Budget, before: Before) -> Allowance:
    """What the next turn may do. For a run that is no replay.

    Args:
        tree: of the run.
        budget: of this run.
        before: the state of the conversation.
    """
    protocol = tree.settings.protocol
    iterations = budget.iterations_left
    turns = before.turns_left if iterations is None else min(before.turns_left, iterations - budget.depth)
    why_turns = f"{'turns' if turns == before.turns_left else 'max_iterations'}"
    if turns < 1:
        return Allowance(end="all turns of the root are used (max_iterations)", limit="max_iterations")
    left_s = None if budget.deadline is None else budget.deadline - time.monotonic()
    if left_s is not None and left_s <= 0:
        return Allowance(end="the time is over (max_seconds)", limit="max_seconds")
    shown, prompt, room = _fit(tree, budget, before)
    if room.final < _LEAST:
        why = f"no further answer fits {room.what}" if before.result else _unseen(tree, room, prompt, room.limit)
        return Allowance(end=why, limit=room.limit, shown=shown, prompt=prompt)
    last, limit = "", ""
    if turns == 1:
        last, limit = f"it is the last turn ({why_turns})", "max_iterations"
    elif left_s is not None and left_s < 2 * before.slowest:
        last, limit = "the time is almost over (max_seconds)", "max_seconds"
    elif room.turn < ANSWER[protocol]:
        last, limit = f"only one more answer fits {room.what}", room.limit
    if last and before.result is None:
        return Allowance(end=_unseen(tree, room, prompt, limit), limit=limit, prompt=prompt)
    subs = budget.sub_calls_left
    return Allowance(
        last=last,
        limit=limit,
        tokens=min(before.longest, room.final if last else room.turn),
        prompt=prompt,
        shown=shown,
        subs=subs is None or subs > 0,
        nested=budget.may_nest and turns > 2,
    )


def _unseen(tree: Tree, room: _Room, prompt: int, limit: str) -> str:
    """Why a run ends before its first turn: an answer would be made up, for no document was looked at."""
    if limit != "context":
        return f"{limit} leaves no turn to look at the documents before the answer"
    protocol = tree.settings.protocol
    other = ' or protocol = "compact"' if protocol == "full" else ""
    return (
        f"the first prompt of the {protocol} protocol has {prompt:,} tokens, of which a result and an answer are to "
        f"follow, and the root's window has {prompt + room.final + 1:,}: give it a longer context (n_ctx){other}, or "
        "take a model with a longer one"
    )


@dataclass(frozen=True, slots=True)
class _Room:
    """Tokens that a reply may have: if it is the final one, if another turn is to follow; and what sets the bound."""

    final: int
    turn: int
    what: str
    limit: str


def _fit(tree: Tree, budget: Budget, before: Before) -> tuple[int, int, _Room]:
    """How much of the result is shown so that an answer still fits; tokens of the prompt; room for the reply."""
    shown = before.most_shown
    while True:
        messages = list(before.messages)
        if before.result is not None:
            messages.append(user_message(before.result(shown)))
        prompt = prompt_tokens(tree.models, "root", messages)
        room = _room(tree, budget, prompt)
        if room.turn >= ANSWER[tree.settings.protocol] or before.result is None or shown == 0:
            return shown, prompt, room
        shown = shown - 1 if tree.settings.protocol == "compact" else (shown // 2 if shown > 100 else 0)


def _room(tree: Tree, budget: Budget, prompt: int) -> _Room:
    protocol = tree.settings.protocol
    after = ROOM[protocol]
    roots = tree.models.of("root")
    window = min(provider.model.info.context_length for provider in roots) - prompt - 1
    bounds = [_Room(window, window - after, "the model's window", "context")]
    if (left := budget.tokens_left) is not None:
        bounds.append(_Room(left - prompt, (left - 2 * prompt - after) // 2, "max_tokens", "max_tokens"))
    if (money := budget.cost_left) is not None:
        micro = money * 1e6
        for provider in roots:
            if provider.price_out > 0:
                final = (micro - prompt * provider.price_in) / provider.price_out
                again = (prompt + after) * provider.price_in
                turn = (final - ANSWER[protocol] - again / provider.price_out) / 2
                bounds.append(_Room(int(final), int(turn), "max_cost", "max_cost"))
            elif provider.price_in > 0 and prompt * provider.price_in > micro:
                bounds.append(_Room(0, 0, "max_cost", "max_cost"))
    tightest = min(bounds, key=lambda room: room.final)
    return _Room(tightest.final, min(room.turn for room in bounds), tightest.what, tightest.limit)
