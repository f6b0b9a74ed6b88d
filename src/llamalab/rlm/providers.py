"""Who answers: the providers of a run, shared out by weight, and what happens when one of them fails.

Each role has its providers. Calls go to them by smooth weighted round robin: while all are up and free, every window of
as many calls as the weights sum to gives each exactly its weight. A provider that is down or has no free place is
passed over and gathers no credit for that; a call that fails is asked elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llamalab.engine import ChatModel, Message, Reply, SamplingParams, Schema, SchemaSupport, Usage
from llamalab.rlm.budget import Budget, Role
from llamalab.rlm.config import RlmConfig, Roles

if TYPE_CHECKING:
    from collections.abc import Callable


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


class Pool:
    """The providers of a run. Safe from several threads; a context manager that closes their models.

    Args:
        providers: at least one for each role that is asked.
    """

    def __init__(self, providers: Sequence[Provider]) -> None:
        self.providers = tuple(providers)

    def chat(
        self,
        role: Role,
        messages: Sequence[Message],
        params: SamplingParams,
        *,
        schema: Schema | None = None,
        described: bool = False,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
        budget: Budget | None = None,
    ) -> PoolReply:
        """Ask one of the providers of `role`; where it fails, another, or the same again after a pause.

        Args:
            role: whose turn it is.
            messages: the conversation.
            params: how to draw; `max_tokens` bounds what is reserved.
            schema: that the answer has to satisfy.
            described: the messages themselves say what the schema says: a provider that can only be asked for JSON is
                not shown the schema again.
            deadline: a value of `time.monotonic()`.
            cancel: ends the call.
            budget: each try reserves what it may cost at most, and is settled after; a lost one is charged in full.

        Raises:
            BudgetExceeded: the call, or a further try, does not fit.
            ProviderUnavailable: all tries failed.
            ProviderError: every provider refuses.
            ContextOverflow: it fits no provider's context.
        """
        raise NotImplementedError

    def probe(self, *, deadline: float | None = None) -> tuple[SchemaMode, ...]:
        """Find out how each provider holds a schema; a few tokens for each that runs elsewhere. Never raises."""
        raise NotImplementedError

    def of(self, role: Role) -> tuple[Provider, ...]:
        """The providers of a role."""
        raise NotImplementedError

    @property
    def state(self) -> Mapping[str, Any]:
        """Where the round robin stands, as JSON: for journals."""
        raise NotImplementedError

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            InputError: it was taken from other providers.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close every model."""
        for model in {id(provider.model): provider.model for provider in self.providers}.values():
            model.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_pool(config: RlmConfig, *, progress: Callable[[str], None] | None = None) -> Pool:
    """Load the models of a configuration; a model that two blocks name is loaded once.

    Raises:
        LlamalabError: as `llamalab.chat_model`, with the place in the file.
    """
    raise NotImplementedError
