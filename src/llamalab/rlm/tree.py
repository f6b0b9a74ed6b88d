"""What all runs of one tree share, and the calls of models that they make."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llamalab.engine import Message, SamplingParams, Schema, Usage
from llamalab.errors import BudgetExceeded, ContextOverflow, LlamalabError, ProviderUnavailable
from llamalab.rlm.budget import Budget, Limits, Role, Spent
from llamalab.rlm.journal import Data, Tape
from llamalab.rlm.protocol import Protocol
from llamalab.rlm.providers import Pool


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run goes by, besides its question and documents. All of it is in the journal.

    Attributes:
        protocol: that roots speak.
        tolerant: a root's provider cannot hold a schema, so a command is looked for in what it says.
        output_limit: characters of one result that a root is shown.
        turn_tokens: longest reply of a root's turn, tokens; None: the longest command.
        sub_tokens: longest reply of a sub call, tokens.
        bypass_enabled: answer directly where that is better.
        bypass_threshold: as in `RlmConfig`.
        answer_schema: of a typed answer.
        limits: of the budget.
        grounded: an answer is complete only where the root has read something and what it was given is whole. Journals
            of versions that did not ask for that say nothing of it: their runs are replayed as they were.
    """

    protocol: Protocol = "compact"
    tolerant: bool = False
    output_limit: int = 10_000
    turn_tokens: int | None = None
    sub_tokens: int = 512
    bypass_enabled: bool = True
    bypass_threshold: int | Literal["auto"] = "auto"
    answer_schema: Mapping[str, Any] | None = None
    limits: Limits = field(default_factory=Limits)
    grounded: bool = False

    def as_data(self) -> Data:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Settings:
        """From JSON."""
        return cls(**{**data, "limits": Limits(**data["limits"])})


@dataclass(frozen=True, slots=True)
class Tree:
    """A run and all that are nested in it.

    Attributes:
        tape: its effects and facts.
        settings: that it goes by.
        budget: of the outermost run.
        pool: its models; None in a replay, which asks none.
        cancel: ends every call.
    """

    tape: Tape
    settings: Settings
    budget: Budget
    pool: Pool | None
    cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def models(self) -> Pool:
        """The models of a run that is no replay."""
        assert self.pool is not None, "a replay asks no model"
        return self.pool


@dataclass(frozen=True, slots=True)
class Said:
    """What came of a call.

    Attributes:
        text: of the reply; "" where there is none.
        why: there is no reply, or only its beginning; "" where it is whole.
        limit: of the budget, that stood in the way; "" where none did.
        provider: who answered.
        usage: tokens.
        seconds: of the call.
        cut: it ended where its room did.
    """

    text: str
    why: str = ""
    limit: str = ""
    provider: str = ""
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    cut: bool = False


def ask_model(
    tree: Tree,
    budget: Budget,
    key: str,
    role: Role,
    messages: Sequence[Message],
    max_tokens: int,
    *,
    schema: Schema | None = None,
    deadline: float | None = None,
    fatal: bool = False,
) -> Said:
    """One call of a model, greedy, in the journal.

    Raises:
        ProviderError: with `fatal`: no provider answers, or all refuse. Otherwise `Said.why` tells it.
    """
    digest = hashlib.sha256(json.dumps(list(messages)).encode()).hexdigest()
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)

    def make() -> Data:
        return {**happen(), "spent": spent_data(budget)}

    def happen() -> Data:
        begun = time.monotonic()
        try:
            found = tree.models.chat(
                role,
                messages,
                params,
                schema=schema,
                described=tree.settings.protocol == "full",
                deadline=budget.deadline if deadline is None else deadline,
                cancel=tree.cancel,
                budget=budget,
            )
        except BudgetExceeded as error:
            return {"asked": digest, "why": str(error), "limit": error.limit}
        except ContextOverflow as error:
            return {"asked": digest, "why": str(error), "limit": "context"}
        except LlamalabError as error:
            if fatal:
                raise
            return {"asked": digest, "why": str(error), "limit": ""}
        reply = found.reply
        return {
            "asked": digest,
            "text": reply.text,
            "finish": reply.finish_reason,
            "provider": found.provider,
            "usage": asdict(reply.usage),
            "cost": found.cost,
            "attempts": [asdict(attempt) for attempt in found.attempts],
            "seconds": round(time.monotonic() - begun, 4),
            "pool": dict(tree.models.state),
        }

    def charge() -> Data:
        usage = Usage(fresh=prompt_tokens(tree.models, role, messages), output=max_tokens)
        cost = max(provider.cost(usage) for provider in tree.models.of(role))
        budget.charge(role, usage, cost, counted=False)
        return {"role": role, "usage": asdict(usage), "cost": cost, "spent": spent_data(budget)}

    data = tree.tape.call(key, make, charge)
    tree.tape.same(key, "messages", data["asked"], digest)
    if data.get("why"):
        return Said("", data["why"], data["limit"])
    cut = {"deadline": "the time was over (max_seconds)", "cancelled": "the run was given up"}.get(data["finish"], "")
    limit = "max_seconds" if data["finish"] == "deadline" else ""
    usage, ended = Usage(**data["usage"]), data["finish"] == "length"
    return Said(data["text"], cut, limit, data["provider"], usage, data["seconds"], ended)


def prompt_tokens(pool: Pool, role: Role, messages: Sequence[Message]) -> int:
    """Tokens of a prompt, at most, whichever provider of the role is asked.

    Raises:
        ProviderUnavailable: the role has no provider.
    """
    counts = [provider.model.count_tokens(messages).n for provider in pool.of(role)]
    if not counts:
        raise ProviderUnavailable(f"No provider has the role {role}.")
    return max(counts)


def spent_data(budget: Budget) -> Data:
    """What a tree has used so far, as JSON; but for the time."""
    spent = budget.spent
    return {
        "iterations": spent.iterations,
        "sub_calls": spent.sub_calls,
        "cost": spent.cost,
        "usage": {role: asdict(used) for role, used in spent.usage.items()},
    }


def spent_before(tape: Tape) -> Spent:
    """What a journal tells of what its run has used.

    Each call notes what the whole tree had used when it ended. These only grow; calls that ran side by side may have
    been written down in another order than they ended, so the largest is the one that counts.
    """
    notes = [line["data"]["spent"] for line in tape.known if "spent" in line.get("data", ())]
    roles: tuple[Role, ...] = ("root", "sub")
    usage = {
        role: Usage(**{name: max((note["usage"][role][name] for note in notes), default=0) for name in asdict(Usage())})
        for role in roles
    }
    return Spent(
        max((note["iterations"] for note in notes), default=0),
        max((note["sub_calls"] for note in notes), default=0),
        sum(each.fresh + each.cached + each.output for each in usage.values()),
        max((note["cost"] for note in notes), default=0.0),
        tape.seconds,
        usage,
    )


def last_pool_state(tape: Tape) -> Mapping[str, Any] | None:
    """Where the round robin of a run stood when it was broken off."""
    states = [line["data"]["pool"] for line in tape.known if line["type"] == "effect" and "pool" in line["data"]]
    return states[-1] if states else None
