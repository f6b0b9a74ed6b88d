"""What a model is worth as a root: does it write JSON, are its commands valid, does it finish, and is it right?

Measured twice: held to the commands' schema while it decodes, and writing freely.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from llamalab.engine import ChatEvent, ChatInfo, ChatModel, Message, Reply, SamplingParams, Schema, TokenCount
from llamalab.rlm.bench.outcome import Outcome
from llamalab.rlm.bench.runner import Plan, run
from llamalab.rlm.config import RlmConfig
from llamalab.rlm.providers import Pool

Viable: TypeAlias = Literal["yes", "unreliable", "no"]

MATRIX = Plan(("find", "count", "absent"), (8_000, 32_000), 10, modes=("rlm",))
"""The questions of the matrix."""
YES, UNRELIABLE = (0.9, 0.8), (0.5, 0.4)
"""Least share of runs that the root ends itself, and least share of right answers, to be viable, or unreliable."""


@dataclass(frozen=True, slots=True)
class Steering:
    """A model as a root, in one way of decoding.

    Attributes:
        questions: that were asked.
        turns: that it took for them.
        json: share of its turns that are one JSON object and nothing else.
        valid: share of its turns that are a command of the protocol, as the state allows it.
        finished: share of runs that it ended itself.
        right: share of right answers.
        errors: runs that ended in an error.
    """

    questions: int
    turns: int
    json: float
    valid: float
    finished: float
    right: float
    errors: int

    @property
    def viable(self) -> Viable:
        """Whether it can steer: by `YES` and `UNRELIABLE`."""
        if self.finished >= YES[0] and self.right >= YES[1]:
            return "yes"
        return "unreliable" if self.finished >= UNRELIABLE[0] and self.right >= UNRELIABLE[1] else "no"


@dataclass(frozen=True, slots=True)
class Capability:
    """A model's row of the matrix.

    Attributes:
        model: its name.
        schema: how it holds a schema: exact, json, none.
        free: writing freely.
        constrained: held to the schema by its provider's means.
    """

    model: str
    schema: str
    free: Steering
    constrained: Steering


HEADERS = ("model", "decoding", "n", "JSON", "valid commands", "finished", "right", "root viable?")


def capability(
    pool: Pool, config: RlmConfig, *, plan: Plan = MATRIX, told: Callable[[str, int], object] = lambda _how, _n: None
) -> Capability:
    """Measure the root of a pool.

    Args:
        pool: its first root is measured; it stays open.
        config: of the runs.
        plan: what is asked, twice.
        told: after each question how it was decoded, and how many are done.
    """
    root = pool.of("root")[0]
    free = _steer(pool, config, plan, lambda n: told("free", n), free=True)
    held = _steer(pool, config, plan, lambda n: told("held to the schema", len(plan) + n), free=False)
    return Capability(root.name, root.model.info.schema_support, free, held)


def rows(found: Sequence[Capability]) -> list[tuple[str, ...]]:
    """The matrix in words, under `HEADERS`: two rows for each model."""
    return [
        (
            capability.model,
            how,
            str(steering.questions),
            f"{steering.json:.0%}",
            f"{steering.valid:.0%}",
            f"{steering.finished:.0%}",
            f"{steering.right:.0%}",
            steering.viable,
        )
        for capability in found
        for how, steering in (("free", capability.free), (f"schema ({capability.schema})", capability.constrained))
    ]


def _steer(pool: Pool, config: RlmConfig, plan: Plan, told: Callable[[int], object], *, free: bool) -> Steering:
    heard: list[str] = []
    root = pool.of("root")[0]
    listened = replace(root, role="root", model=Listened(root.model, heard.append, free=free))
    subs = [replace(each, role="sub", name=f"{each.name} (sub)") for each in pool.of("sub")]
    outcomes: list[Outcome] = []
    for outcome in run(plan, Pool([listened, *subs]), config):
        outcomes.append(outcome)
        told(len(outcomes))
    turns = sum(outcome.turns for outcome in outcomes)
    return Steering(
        questions=len(outcomes),
        turns=turns,
        json=sum(map(is_json_object, heard)) / max(len(heard), 1),
        valid=1 - sum(outcome.malformed for outcome in outcomes) / max(turns, 1),
        finished=_share(outcomes, lambda outcome: outcome.complete),
        right=_share(outcomes, lambda outcome: outcome.right),
        errors=sum(bool(outcome.error) for outcome in outcomes),
    )


def is_json_object(text: str) -> bool:
    """Whether a text is one JSON object and nothing else."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _share(outcomes: Sequence[Outcome], holds: Callable[[Outcome], bool]) -> float:
    return sum(map(holds, outcomes)) / max(len(outcomes), 1)


class Listened:
    """A chat model whose replies are told to somebody; with `free`, one that no schema reaches."""

    def __init__(self, model: ChatModel, told: Callable[[str], object], *, free: bool = False) -> None:
        self._model, self._told, self._free = model, told, free

    @property
    def info(self) -> ChatInfo:
        """As of the model; with `free`, no support of schemas."""
        info = self._model.info
        return replace(info, schema_support="none") if self._free else info

    def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        """As of the model."""
        return self._model.count_tokens(messages)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        schema: Schema | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> Reply:
        """As of the model."""
        reply = self._model.chat(
            messages, params, schema=None if self._free else schema, deadline=deadline, cancel=cancel
        )
        self._told(reply.text)
        return reply

    def stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        schema: Schema | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
        logprobs: int | None = None,
    ) -> Iterator[ChatEvent]:
        """As of the model."""
        for event in self._model.stream(
            messages,
            params,
            schema=None if self._free else schema,
            deadline=deadline,
            cancel=cancel,
            logprobs=logprobs,
        ):
            if isinstance(event, Reply):
                self._told(event.text)
            yield event

    def close(self) -> None:
        """As of the model."""
        self._model.close()
