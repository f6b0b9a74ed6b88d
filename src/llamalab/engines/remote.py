"""Chat models that run elsewhere: ollama, DeepSeek, Fireworks, and whatever answers in the shape of OpenAI's API."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llamalab.engine import (
    ChatEvent,
    ChatInfo,
    Delta,
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
from llamalab.engines.connection import Cancelled, Connection
from llamalab.engines.openai import OpenAIShape
from llamalab.engines.options import nearest
from llamalab.engines.remote_context import N_CTX, RemoteContext
from llamalab.engines.remote_length import least_tokens, most_tokens, too_long
from llamalab.engines.remote_options import OPTIONS, check_options
from llamalab.engines.remote_probe import Probe, probe, together
from llamalab.engines.remote_providers import place_of
from llamalab.engines.remote_schema import in_form, schema_object
from llamalab.engines.remote_server import RemoteServer
from llamalab.engines.remote_shape import SUPPORT, Asked, Said
from llamalab.engines.sampling_params import check_stop
from llamalab.errors import ConfigError, ProviderError, ProviderUnavailable
from llamalab.templates.messages import conversation

_LONGEST_TOKEN = 256  # characters; vocabularies have tokens of up to 128 spaces


class RemoteChat:
    """A `ChatModel` on a server. Safe from several threads.

    Each request says how to draw in full, so that no server's own defaults come in; with `params=None` it is left to
    them. A schema is held by the server's own means, the best that it really has: some take a schema and ignore it, so
    a probe comes before the first one. Where a server can only be asked, the schema stands behind the last message.
    Nothing comes back that is silently wrong: an empty answer, a broken one, and a conversation of which the server has
    read only a part are errors.

    Args:
        provider: one of `llamalab.engines.remote_providers.PROVIDERS`.
        model: as the server names it.
        base_url: its address; None: the provider's.
        api_key_env: environment variable that holds the key; None: the provider's.
        n_ctx: tokens that prompt and reply may have together; None: as the server says. Ollama is told to use this
            many, and at most `N_CTX` where nobody says.
        timeout: seconds for one call, retries included.
        retries: how often a request is sent again after a failure that may pass.
        backoff: seconds before the first retry; doubled for each further one.
        schema_support: what a schema is worth there; None: a probe finds out.
        extra: further fields for the body of each request, e.g. {"keep_alive": "1h"} or {"think": false}.

    Raises:
        ProviderError: no such provider, or no key where one is needed.
        ConfigError: an option that cannot be.
    """

    def __init__(
        self,
        provider: str,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str | None = None,
        n_ctx: int | None = None,
        timeout: float = 600.0,
        retries: int = 2,
        backoff: float = 1.0,
        schema_support: SchemaSupport | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        check_options(
            {
                "base_url": base_url,
                "n_ctx": n_ctx,
                "timeout": timeout,
                "retries": retries,
                "backoff": backoff,
                "schema_support": schema_support,
                "extra": extra,
            }
        )
        place = place_of(provider, base_url=base_url, api_key_env=api_key_env)
        shape = place.shape
        self._open = not isinstance(shape, OpenAIShape) or shape.open
        self._connection = Connection(
            place.address,
            model=model,
            key=place.key,
            deadline=timeout,
            retries=retries,
            backoff=backoff,
            limit_name="timeout",
        )
        self._provider, self._model = provider, model
        self._context = RemoteContext(
            self._connection,
            shape,
            model,
            chosen=n_ctx,
            known=place.context_length,
            most=N_CTX if provider == "ollama" else None,
        )
        means = None
        if schema_support is not None:
            means = next((each for each in shape.means if SUPPORT[each] == schema_support), None)
            if means is None:
                raise ConfigError(f"{provider} cannot hold a schema exactly: schema_support is json at best.")
        self._server = RemoteServer(self._connection, shape, self._context, model=model, means=means, extra=extra or {})
        self._probing = threading.Lock()

    @property
    def info(self) -> ChatInfo:
        """The context is asked for at first; a schema is worth what a probe has found, and the best before one."""
        # Whoever draws with settings of his own must not stumble over one that this server does not have.
        sampling = {} if self._open else {"min_p": 0.0, "top_k": 0}
        return ChatInfo(self._model, self._provider, self._context.tokens(), SUPPORT[self._server.means], sampling)

    @property
    def probed(self) -> bool:
        """Whether it is known what a schema is worth here."""
        return self._server.known

    @property
    def name(self) -> str:
        """Model and address, for messages."""
        return self._connection.name

    def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        """An upper bound: one for each byte of UTF-8, and some for the template."""
        return TokenCount(most_tokens(conversation(messages)), exact=False)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        schema: Schema | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> Reply:
        """See `ChatModel.chat`. A deadline or a cancel flag leaves no text, as it comes in one piece.

        The usage of the first reply under a schema holds that of the probe before it.

        Raises:
            ProviderUnavailable: the server is down, busy, too slow, or gives nothing that is an answer.
            ProviderError: it refuses.
            ContextOverflow: the conversation does not fit, or the server has read only a part of it.
            SchemaError: the schema is no JSON.
        """
        started = time.monotonic()
        turns, held = self._checked(messages, params), schema_object(schema)
        before = self._probed_before(held, deadline, cancel)
        while True:
            asked = self._server.asked(turns, params, held)
            try:
                said = self._server.said(asked, end=deadline, cancel=cancel)
            except Cancelled:
                return self._cut(turns, "cancelled", "", started)
            except ProviderUnavailable:
                if deadline is not None and time.monotonic() >= deadline:
                    return self._cut(turns, "deadline", "", started)
                raise
            except ProviderError as error:
                self._learn(error, asked)
            else:
                return self._reply(said, asked, turns, started, before)

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
        """See `ChatModel.stream`. Errors as `chat`; those of the network come with the first piece.

        Raises:
            ConfigError: log probabilities are asked for.
        """
        if logprobs is not None:
            raise ConfigError(
                f"{self._provider} gives no log probabilities with a chat. Load the model with an engine."
            )
        return self._events(self._checked(messages, params), params, schema_object(schema), deadline, cancel)

    def probe(self, *, deadline: float | None = None, cancel: threading.Event | None = None) -> Probe:
        """Find out by a few questions what a schema is worth there, once, and use that from now on.

        Raises:
            As `llamalab.engines.remote_probe.probe`.
        """
        with self._probing:
            return probe(self._server, deadline=deadline, cancel=cancel)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def _events(
        self,
        turns: list[dict[str, Any]],
        params: SamplingParams | None,
        schema: dict[str, Any] | None,
        deadline: float | None,
        cancel: threading.Event | None,
    ) -> Iterator[ChatEvent]:
        started, text = time.monotonic(), ""
        before = self._probed_before(schema, deadline, cancel)
        while True:
            asked = self._server.asked(turns, params, schema, stream=True)
            try:
                for piece in self._server.pieces(asked, end=deadline, cancel=cancel):
                    if isinstance(piece, Said):
                        reply = self._reply(piece, asked, turns, started, before)
                        if asked.strict is not None:  # known only when the whole of it is
                            yield Delta(reply.text)
                        yield reply
                        return
                    text += piece
                    if asked.strict is None:
                        yield Delta(piece)
            except Cancelled:
                reason: FinishReason = "cancelled"
            except ProviderUnavailable:
                if deadline is None or time.monotonic() < deadline:
                    raise
                reason = "deadline"
            except ProviderError as error:
                if text:
                    raise
                self._learn(error, asked)
                continue
            if asked.strict is not None and text:
                yield Delta(text)
            yield self._cut(turns, reason, text, started)
            return

    def _checked(self, messages: Sequence[Message], params: SamplingParams | None) -> list[dict[str, Any]]:
        if params is not None:
            check_stop(params.stop)
        turns = conversation(messages)
        least, n_ctx = least_tokens(turns), self._context.tokens()
        if least > n_ctx:
            raise too_long(self._model, least, n_ctx)
        return turns

    def _learn(self, error: ProviderError, asked: Asked) -> None:
        """See `RemoteServer.learn`."""
        if error.status == 404 and self._provider == "ollama":
            said = str(error).partition(" base_url")[0]
            raise ProviderError(f"{said} `ollama pull {self._model}` fetches it.", status=404)
        self._server.learn(error, asked)

    def _probed_before(
        self, schema: Mapping[str, Any] | None, deadline: float | None, cancel: threading.Event | None
    ) -> Usage:
        """Find out what a schema is worth before the first one; what that took."""
        if schema is None or self.probed:
            return Usage()
        try:
            return self.probe(deadline=deadline, cancel=cancel).usage
        except Cancelled:
            return Usage()
        except ProviderUnavailable:
            if deadline is None or time.monotonic() < deadline:
                raise
            return Usage()

    def _reply(self, said: Said, asked: Asked, turns: list[dict[str, Any]], started: float, before: Usage) -> Reply:
        said = _bounded(said, asked.params)
        mode: SchemaSupport | None = None
        text = said.text
        if not text.strip() and said.reason == "stop":
            raise ProviderUnavailable(f"{self.name} answers with an empty text.", usage=said.usage)
        if said.usage is not None and said.usage.fresh + said.usage.cached < least_tokens(turns):
            read = said.usage.fresh + said.usage.cached
            part = f"{self.name} has read only {read:,} tokens of it."
            raise too_long(self._model, least_tokens(turns), min(asked.n_ctx, read), part)
        if asked.schema is not None:
            text, mode = in_form(text, asked, ended=said.reason == "stop")
        return Reply(
            text=text,
            ids=(),
            finish_reason=said.reason,
            usage=together(before, said.usage or self._most(turns, said.text)),
            timings=said.timings or Timings(generation=time.monotonic() - started),
            model=said.model or self._model,
            schema_mode=mode,
            seed=None if asked.params is None else asked.params.seed,
        )

    def _cut(self, turns: Sequence[Message], reason: FinishReason, text: str, started: float) -> Reply:
        """What there is of an answer that was not waited for; nobody says what it used, so that is an upper bound."""
        usage = self._most(turns, text)
        return Reply(text, (), reason, usage, Timings(generation=time.monotonic() - started), self._model)

    def _most(self, turns: Sequence[Message], text: str) -> Usage:
        """The most that an answer can have used, where nobody says."""
        return Usage(fresh=most_tokens(turns), output=len(text.encode()))


def open_remote(provider: str, model: str, options: Mapping[str, Any]) -> RemoteChat:
    """The chat model behind "provider:model".

    Raises:
        ProviderError, ConfigError: as `RemoteChat`; also for an option that it does not have.
    """
    for name in options:
        if name == "api_key":
            raise ConfigError(
                "A key does not belong into options or files: put it into the environment, and name the variable in "
                "api_key_env."
            )
        if name not in OPTIONS:
            raise ConfigError(f"{provider}, which runs elsewhere, has no option {name!r}.{nearest(name, OPTIONS)}")
    return RemoteChat(provider, model, **options)


def _bounded(said: Said, params: SamplingParams | None) -> Said:
    """An answer no longer than was asked for, also from a server that knows no end."""
    if params is None or params.max_tokens is None or len(said.text) <= params.max_tokens * _LONGEST_TOKEN:
        return said
    return replace(said, text=said.text[: params.max_tokens * _LONGEST_TOKEN], reason="length")
