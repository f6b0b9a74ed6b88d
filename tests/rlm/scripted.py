"""Chat models that say what a test tells them, and runs of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from llamalab import rlm
from llamalab.engine import (
    ChatEvent,
    ChatInfo,
    FinishReason,
    Message,
    Reply,
    SamplingParams,
    Schema,
    SchemaSupport,
    Timings,
    TokenCount,
    Usage,
)
from llamalab.errors import LlamalabError
from llamalab.rlm.config import ProviderSettings, RlmConfig
from llamalab.rlm.providers import Pool, Provider
from llamalab.rlm.text import Context, Document

Says: TypeAlias = Callable[[Sequence[Message], Any], str]
"""What a model says to messages, under a schema."""

TEXT = "\n".join(
    [
        "10:01 INFO login of ada",
        "10:02 ERROR upload took 31 ms",
        "The access code of the Blue Harbor vault is 48213.",
        "10:03 ERROR backup took 7 ms",
        "10:04 INFO logout of ada",
    ]
)


class Scripted:
    """A chat model that says texts one after another (the last for ever), or what a function makes of the messages.

    A token is a character. It keeps what it was asked.
    """

    def __init__(
        self,
        says: Sequence[str | LlamalabError] | Says,
        *,
        support: SchemaSupport = "exact",
        n_ctx: int = 1_000_000,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self.says, self.support, self.n_ctx, self.before = says, support, n_ctx, before
        self.asked: list[list[Message]] = []
        self.schemas: list[Any] = []
        self.params: list[SamplingParams | None] = []
        self.lock = threading.Lock()

    @property
    def info(self) -> ChatInfo:
        return ChatInfo("scripted", "test", self.n_ctx, self.support)

    def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        return TokenCount(sum(len(message["content"]) for message in messages), exact=True)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        schema: Schema | None = None,
        deadline: float | None = None,  # noqa: ARG002 - it answers at once
        cancel: threading.Event | None = None,  # noqa: ARG002
    ) -> Reply:
        self.before()
        with self.lock:
            number = len(self.asked)
            self.asked.append([dict(message) for message in messages])
            self.schemas.append(schema)
            self.params.append(params)
        said = self.says(messages, schema) if callable(self.says) else self.says[min(number, len(self.says) - 1)]
        if isinstance(said, LlamalabError):
            raise said
        most = params.max_tokens if params is not None and params.max_tokens is not None else len(said)
        usage = Usage(fresh=self.count_tokens(messages).n, output=min(len(said), most))
        reason: FinishReason = "stop" if len(said) <= most else "length"
        return Reply(said[:most], (), reason, usage, Timings(), "scripted")

    def stream(self, *_: Any, **__: Any) -> Iterator[ChatEvent]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def pool_of(root: Scripted, sub: Scripted | None = None, **settings: Any) -> Pool:
    """A pool of one root, and one sub model; without one the root answers sub-questions as well."""
    providers = [Provider("root", root, "both" if sub is None else "root", **settings)]
    if sub is not None:
        providers.append(Provider("sub", sub, "sub", **settings))
    return Pool(providers, retries=0)


def settings(**changed: Any) -> RlmConfig:
    """A configuration of the full protocol without a bypass."""
    return RlmConfig(
        (ProviderSettings("test", "scripted"),), **{"bypass_enabled": False, "protocol": "full", **changed}
    )


def text(content: str = TEXT, name: str = "log.txt") -> Context:
    """A context of one document."""
    return Context([Document.of(content, name)])


def ask(
    root: Scripted,
    sub: Scripted | None = None,
    *,
    question: str = "What is the access code?",
    context: Context | None = None,
    config: RlmConfig | None = None,
    schema: dict[str, Any] | None = None,
    journal: Path | None = None,
    resume: Path | None = None,
) -> rlm.Answer:
    """Ask scripted models."""
    return rlm.ask(
        question,
        context or text(),
        config=config or settings(),
        schema=schema,
        journal=journal,
        resume=resume,
        pool=pool_of(root, sub),
    )


def told(model: Scripted) -> list[str]:
    """What a root was told after each of its turns but the last."""
    return [message["content"] for message in model.asked[-1] if message["role"] == "user"][1:]


def ops_of(schema: Any) -> set[str]:
    """The operations that a schema of a turn allows."""
    return {branch["properties"]["op"]["const"] for branch in schema["anyOf"]}
