"""One provider, asked once: what is reserved for it, what came of it, and what that cost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from llamalab.engine import (
    ChatModel,
    FinishReason,
    Message,
    Reply,
    SamplingParams,
    Schema,
    SchemaSupport,
    Timings,
    Usage,
)
from llamalab.engines.connection import Cancelled
from llamalab.engines.remote_probe import Probe
from llamalab.engines.remote_schema import ANY_OBJECT
from llamalab.errors import ContextOverflow, EngineError, LlamalabError, ProviderError, ProviderUnavailable
from llamalab.rlm.budget import Budget, Role
from llamalab.rlm.config import Roles

_PROBE = Usage(fresh=300, output=1100)
"""The most that finding out about schemas takes: two short questions."""

_FOR_GOOD = frozenset({301, 302, 303, 307, 308, 401, 402, 403, 404, 405, 410})


@dataclass(frozen=True, slots=True)
class Provider:
    """A model and its place in the pool.

    Attributes:
        name: in journals and messages; one of its own.
        model: that answers.
        role: what it is asked for.
        weight: its share beside others of the same role.
        price_in: of a million fresh tokens of prompts.
        price_out: of a million tokens of replies, reasoning included.
        price_cached: of a million tokens of prompts that the provider had cached; None: as `price_in`.
        concurrency: calls that it takes at the same time.
    """

    name: str
    model: ChatModel
    role: Roles = "both"
    weight: int = 1
    price_in: float = 0.0
    price_out: float = 0.0
    price_cached: float | None = None
    concurrency: int = 8

    def cost(self, usage: Usage) -> float:
        """What `usage` costs here."""
        cached = self.price_in if self.price_cached is None else self.price_cached
        return (usage.fresh * self.price_in + usage.cached * cached + usage.output * self.price_out) / 1e6


@dataclass(frozen=True, slots=True)
class Attempt:
    """A try that failed.

    Attributes:
        provider: who failed.
        error: its message.
        usage: what it is charged at.
        cost: of that.
    """

    provider: str
    error: str
    usage: Usage = field(default_factory=Usage)
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolReply:
    """An answer and who gave it.

    Attributes:
        reply: the answer; `reply.finish_reason` may be "deadline" or "cancelled", its text is then cut or empty.
        provider: name of the one that answered.
        cost: of the answer.
        attempts: those that failed before.
    """

    reply: Reply
    provider: str
    cost: float = 0.0
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class SchemaMode:
    """How a provider holds a schema, as a probe has found.

    Attributes:
        provider: its name.
        mode: None where it could not be asked.
        said: in a sentence.
        usage: of the probe.
    """

    provider: str
    mode: SchemaSupport | None
    said: str
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be asked. Attributes as the arguments of `Pool.chat`."""

    messages: Sequence[Message]
    params: SamplingParams
    schema: Schema | None = None
    described: bool = False
    deadline: float | None = None
    cancel: threading.Event | None = None

    def over(self) -> FinishReason | None:
        """Why there is no point in asking any more."""
        if self.cancel is not None and self.cancel.is_set():
            return "cancelled"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "deadline"
        return None


@dataclass(frozen=True, slots=True)
class Failed:
    """A try that came to nothing, and why."""

    attempt: Attempt
    error: LlamalabError


@runtime_checkable
class Probing(Protocol):
    """A chat model of which it has to be found out what a schema is worth."""

    @property
    def probed(self) -> bool:
        """Whether that is known."""
        ...

    def probe(self, *, deadline: float | None = None, cancel: threading.Event | None = None) -> Probe:
        """Find it out."""
        ...


def ask(provider: Provider, role: Role, call: Call, budget: Budget | None, *, counted: bool) -> PoolReply | Failed:
    """Ask a provider, within the budget.

    Raises:
        BudgetExceeded: it does not fit.
        LlamalabError: something that no other provider would do better: the schema, the messages, the parameters.
    """
    worst = most(provider, call)
    if budget is None:
        return _asked(provider, call, worst)
    with budget.reserve(
        worst.fresh + worst.output,
        provider.cost(worst),
        role,
        counted=counted,
        wait=True,
        deadline=call.deadline,
        cancel=call.cancel,
    ) as held:
        done = _asked(provider, call, worst)
        if isinstance(done, Failed):
            held.settle(done.attempt.usage, done.attempt.cost)
        else:
            held.settle(done.reply.usage, done.cost)
    return done


def most(provider: Provider, call: Call) -> Usage:
    """The most that a call can use: exact tokens of the prompt where they can be counted, else one for each byte."""
    count = provider.model.count_tokens(call.messages)
    prompt, output = count.n, call.params.max_tokens
    if call.schema is not None and not count.exact:  # it may be shown to the model
        text = call.schema if isinstance(call.schema, str) else json.dumps(call.schema, ensure_ascii=False)
        prompt += len(text.encode()) + 100
    if output is None:
        output = max(provider.model.info.context_length - prompt, 1)
    if call.schema is None or not isinstance(provider.model, Probing) or provider.model.probed:
        return Usage(fresh=prompt, output=output)
    return Usage(fresh=prompt + _PROBE.fresh, output=output + _PROBE.output)


def for_good(error: LlamalabError) -> bool:
    """Whether the provider would refuse every other call as well: its key, its model or its address is wrong."""
    return isinstance(error, ProviderError) and error.status in _FOR_GOOD


def passes(error: LlamalabError) -> bool:
    """Whether the same call may succeed there later."""
    return isinstance(error, ProviderUnavailable | EngineError)


def combined(role: Role, errors: Mapping[str, LlamalabError], tries: int) -> LlamalabError:
    """One error for all that failed."""
    if not errors:
        return ProviderError(f"No provider has the role {role}.")
    if len(errors) == 1 and tries <= 1:
        return next(iter(errors.values()))
    if all(isinstance(error, ContextOverflow) for error in errors.values()):
        return max((e for e in errors.values() if isinstance(e, ContextOverflow)), key=lambda each: each.available)
    said = " ".join(f"{name}: {error}" for name, error in errors.items())
    text = f"No provider of the {role} answers, tried {tries} {'time' if tries == 1 else 'times'}. {said}"
    if any(passes(error) for error in errors.values()):
        return ProviderUnavailable(text)
    return ProviderError(text)


def probed(provider: Provider, deadline: float | None) -> SchemaMode:
    """How a provider holds a schema. Never raises."""
    model = provider.model
    if not isinstance(model, Probing):
        support = model.info.schema_support
        said = {
            "exact": "every token is held to the schema",
            "json": "gives JSON, and is only asked to follow the schema",
            "none": "is only asked for JSON that follows the schema",
        }[support]
        return SchemaMode(provider.name, support, f"{provider.name}: {said}.")
    if model.probed:
        return SchemaMode(provider.name, model.info.schema_support, f"{provider.name}: known before.")
    try:
        found = model.probe(deadline=deadline)
    except LlamalabError as error:
        return SchemaMode(provider.name, None, f"{provider.name} could not be asked: {error}")
    return SchemaMode(provider.name, found.support, f"{provider.name}: {found.said}", found.usage)


def _asked(provider: Provider, call: Call, worst: Usage) -> PoolReply | Failed:
    model, schema, before = provider.model, call.schema, Usage()
    try:
        if schema is not None and isinstance(model, Probing) and not model.probed:
            before = model.probe(deadline=call.deadline, cancel=call.cancel).usage
        if schema is not None and call.described and model.info.schema_support != "exact":
            schema = ANY_OBJECT
        reply = model.chat(call.messages, call.params, schema=schema, deadline=call.deadline, cancel=call.cancel)
    except Cancelled:
        return PoolReply(Reply("", (), "cancelled", before, Timings(), model.info.name), provider.name)
    except ProviderUnavailable as error:
        known = Usage() if error.usage is None and not error.sent else error.usage or worst
        return _failed(provider, error, _sum(before, known) if known is not worst else worst)
    except ProviderError as error:
        # A status is that of a request which was not taken; an answer that is withheld has been written.
        return _failed(provider, error, before if error.status is not None else worst)
    except (ContextOverflow, EngineError) as error:
        return _failed(provider, error, before)
    reply = replace(reply, usage=_sum(before, reply.usage))
    return PoolReply(reply, provider.name, provider.cost(reply.usage))


def _failed(provider: Provider, error: LlamalabError, usage: Usage) -> Failed:
    return Failed(Attempt(provider.name, str(error), usage, provider.cost(usage)), error)


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.fresh + other.fresh,
        one.cached + other.cached,
        one.output + other.output,
        one.reasoning + other.reasoning,
    )
