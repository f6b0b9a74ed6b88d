"""Who answers: the providers of a run, shared out by weight, and what happens when one of them fails.

Each role has its providers. Calls go to them by smooth weighted round robin: while all are up and free, every window of
as many calls as the weights sum to gives each exactly its weight. A provider that is down or has no free place is
passed over and gathers no credit for that; a call that fails is asked elsewhere.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llamalab.engine import ChatModel, FinishReason, Message, Reply, SamplingParams, Schema, Timings, Usage
from llamalab.engines import REMOTE
from llamalab.errors import ConfigError, InputError, LlamalabError
from llamalab.rlm.attempt import (
    Attempt,
    Call,
    Failed,
    PoolReply,
    Provider,
    SchemaMode,
    ask,
    combined,
    for_good,
    passes,
    probed,
)
from llamalab.rlm.budget import ROLES, Budget, Role
from llamalab.rlm.config import ProviderSettings, RlmConfig
from llamalab.rlm.health import Health
from llamalab.rlm.rotation import Rotation

__all__ = ["Attempt", "Pool", "PoolReply", "Provider", "SchemaMode", "open_pool"]

_POLL_S = 0.05  # between two looks at a flag
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Turn:
    """A place at a provider.

    Attributes:
        index: of the provider in the pool.
        places: of those that could have been asked, in the rotation of the role.
        picked: its own.
    """

    index: int
    places: tuple[int, ...]
    picked: int


class Pool:
    """The providers of a run. Safe from several threads; a context manager that closes their models.

    Args:
        providers: at least one for each role that is asked; their names differ.
        retries: how often all of a role are asked again, after a pause, when every one has failed.
        backoff: seconds of the first pause; doubled for each further one, and drawn between half and all of that.

    Raises:
        ConfigError: two providers of one name.
    """

    def __init__(self, providers: Sequence[Provider], *, retries: int = 2, backoff: float = 1.0) -> None:
        self.providers = tuple(providers)
        names = [each.name for each in self.providers]
        if len(set(names)) < len(names):
            raise ConfigError(f"Two providers have one name; the names are {', '.join(names)}.")
        self._retries, self._backoff = retries, backoff
        self._health = [Health(each.concurrency) for each in self.providers]
        self._members = {
            role: [n for n, each in enumerate(self.providers) if each.role in (role, "both")] for role in ROLES
        }
        self._rotations = {role: Rotation([self.providers[n].weight for n in self._members[role]]) for role in ROLES}
        self._changed = threading.Condition()

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
            budget: each try reserves what it may cost at most, and is settled after; a lost one is charged in full. A
                try waits while only calls that are still running stand in its way.

        Returns:
            The answer. Where the deadline or the flag came before any provider was asked, `provider` is "".

        Raises:
            BudgetExceeded: the call, or a further try, does not fit.
            ProviderUnavailable: all tries failed.
            ProviderError: every provider refuses.
            ContextOverflow: it fits no provider's context.
        """
        call = Call(messages, params, schema, described, deadline, cancel)
        attempts: list[Attempt] = []
        errors: dict[int, LlamalabError] = {}
        for again in range(self._retries + 1):
            tried: set[int] = set()
            while (turn := self._turn(role, tried, call)) is not None:
                if isinstance(turn, str):
                    return PoolReply(Reply("", (), turn, Usage(), Timings(), ""), "", attempts=tuple(attempts))
                done = self._once(turn, role, call, budget, counted=not attempts)
                if not isinstance(done, Failed):
                    return replace(done, attempts=tuple(attempts))
                tried.add(turn.index)
                errors[turn.index] = done.error
                attempts.append(done.attempt)
            hopeful = [error for error in errors.values() if passes(error)]
            if not hopeful or again == self._retries or not self._pause(again, hopeful, call):
                break
        refused = {n: error for n in self._members[role] if (error := self._health[n].refused) is not None}
        said = {self.providers[n].name: error for n, error in {**refused, **errors}.items()}
        raise combined(role, said, len(attempts))

    def probe(self, *, deadline: float | None = None) -> tuple[SchemaMode, ...]:
        """Find out how each provider holds a schema; a few tokens for each that runs elsewhere. Never raises."""
        return tuple(probed(each, deadline) for each in self.providers)

    def of(self, role: Role) -> tuple[Provider, ...]:
        """The providers of a role."""
        return tuple(self.providers[n] for n in self._members[role])

    @property
    def state(self) -> Mapping[str, Any]:
        """Where the round robin stands, as JSON: for journals."""
        with self._changed:
            return {role: self._names(role) | self._rotations[role].state for role in ROLES}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            InputError: it was taken from other providers.
        """
        with self._changed:
            for role in ROLES:
                found = state.get(role)
                if not isinstance(found, Mapping) or found.get("names") != self._names(role)["names"]:
                    raise InputError(f"The round robin of the {role} was left off with other providers than these.")
                self._rotations[role].restore(found)

    def close(self) -> None:
        """Close every model."""
        for model in {id(provider.model): provider.model for provider in self.providers}.values():
            model.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _names(self, role: Role) -> dict[str, Any]:
        return {"names": [self.providers[n].name for n in self._members[role]]}

    def _turn(self, role: Role, tried: set[int], call: Call) -> Turn | FinishReason | None:
        """A place at the provider whose turn it is; waits for one.

        Returns:
            None where everybody has been tried or refuses for good; a reason where the waiting ended.
        """
        members, rotation = self._members[role], self._rotations[role]
        with self._changed:
            while True:
                if (over := call.over()) is not None:
                    return over
                open_ = [n for n in members if n not in tried and self._health[n].refused is None]
                if not open_:
                    return None
                now = time.monotonic()
                up = [n for n in open_ if self._health[n].up(now)] or open_
                if free := [n for n in up if self._health[n].free]:
                    places = tuple(members.index(n) for n in free)
                    picked = rotation.pick(places)
                    self._health[members[picked]].running += 1
                    return Turn(members[picked], places, picked)
                self._changed.wait(_POLL_S)

    def _once(self, turn: Turn, role: Role, call: Call, budget: Budget | None, *, counted: bool) -> PoolReply | Failed:
        """One try, and what it means for the provider."""
        health = self._health[turn.index]
        done: PoolReply | Failed | None = None
        try:
            done = ask(self.providers[turn.index], role, call, budget, counted=counted)
        finally:
            with self._changed:
                health.running -= 1
                if isinstance(done, PoolReply):
                    if done.reply.finish_reason in ("stop", "length"):
                        health.answered()
                else:
                    self._rotations[role].undo(turn.places, turn.picked)
                if isinstance(done, Failed) and passes(done.error):
                    health.failed(time.monotonic(), getattr(done.error, "retry_after", None))
                elif isinstance(done, Failed) and for_good(done.error):
                    health.refused = done.error
                self._changed.notify_all()
        return done

    def _pause(self, again: int, errors: Sequence[LlamalabError], call: Call) -> bool:
        """Wait before all are asked again; False where there is no time for that."""
        asked = [after for error in errors if (after := getattr(error, "retry_after", None)) is not None]
        seconds = min(self._backoff * 2.0**again, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
        if len(asked) == len(errors):
            seconds = max(seconds, min(asked))
        if call.deadline is not None and time.monotonic() + seconds >= call.deadline:
            return False
        if call.cancel is None:
            time.sleep(seconds)
        else:
            call.cancel.wait(seconds)
        return True


def open_pool(config: RlmConfig, *, progress: Callable[[str], None] | None = None) -> Pool:
    """Load the models of a configuration; a model that two blocks name is loaded once.

    Args:
        config: its providers.
        progress: told the model spec before each is loaded.

    Raises:
        LlamalabError: as `llamalab.chat_model`.
    """
    from llamalab.chat import chat_model

    models: dict[str, ChatModel] = {}
    providers: list[Provider] = []
    try:
        for each in config.providers:
            key = f"{each.spec} {json.dumps(each.options, sort_keys=True, default=str)}"
            if key not in models:
                if progress is not None:
                    progress(each.spec)
                models[key] = chat_model(each.spec, **_options(each))
            providers.append(
                Provider(
                    each.name or each.spec,
                    models[key],
                    each.role,
                    each.weight,
                    each.price_in,
                    each.price_out,
                    each.price_cached,
                    each.concurrency,
                )
            )
        have = {each.role for each in providers}
        if not have & {"sub", "both"}:
            providers = [replace(each, role="both") for each in providers]
        return Pool(providers)
    except BaseException:
        for model in models.values():
            model.close()
        raise


def _options(settings: ProviderSettings) -> dict[str, Any]:
    """Options of the model, with what suits a run where the file says nothing."""
    options = dict(settings.options)
    if settings.provider_type in REMOTE:
        options.setdefault("retries", 0)  # the pool asks again itself, and elsewhere first
    elif settings.provider_type == "llama_cpp":
        options.setdefault("cache_prompts", True)  # each turn's prompt begins with the last one's
    return options
