"""Chat models that run elsewhere: ollama, DeepSeek, Fireworks, and whatever answers in the shape of OpenAI's API."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

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
from llamalab.engines.endpoint import read_key
from llamalab.engines.openai import OpenAIShape
from llamalab.engines.options import nearest
from llamalab.engines.remote_context import N_CTX, RemoteContext
from llamalab.engines.remote_options import OPTIONS, check_options
from llamalab.engines.remote_providers import OPENAI, PROVIDERS, address_from_environment
from llamalab.engines.remote_schema import ANY_OBJECT, bare, is_json, json_of, schema_object, with_schema
from llamalab.engines.remote_shape import Asked, Means, Said
from llamalab.errors import ConfigError, ContextOverflow, ProviderError, ProviderUnavailable
from llamalab.templates.messages import conversation

_SUPPORT: Mapping[Means, SchemaSupport] = {"schema": "exact", "json": "json", "none": "none"}
_MEANS: Mapping[SchemaSupport, Means] = {support: means for means, support in _SUPPORT.items()}

_WRAPPING = 64, 16  # tokens that a template may put around a conversation, and around each message: on the safe side
_SHORTEST = 0.75  # tokens for a word, at least
_LONGEST_TOKEN = 256  # characters; vocabularies have tokens of up to 128 spaces
_WORD = re.compile(r"[^\W\d_]+")

_CANARY = "k7q"  # nobody would say it who is not made to
_PROBE_TOKENS = 512  # a model that thinks first needs some
_SCHEMA_REFUSED = re.compile(
    r"response_format|json_schema|json_object|schema|grammar|guided|structured|\bformat\b", re.I
)
_TOO_LONG = re.compile(r"context.{0,12}(length|size|window)|maximum context|too many tokens|prompt is too long", re.I)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a server made of a schema.

    Attributes:
        support: what a schema is worth there.
        said: in a sentence.
        usage: tokens that finding out took.
    """

    support: SchemaSupport
    said: str
    usage: Usage = field(default_factory=Usage)


class RemoteChat:
    """A `ChatModel` on a server. Safe from several threads.

    Each request says how to draw in full, so that no server's own defaults come in; with `params=None` it is left to
    them. A schema is held by the server's own means, the best that it really has: some take a schema and ignore it, so
    a probe comes before the first one. Where a server can only be asked, the schema stands behind the last message.
    Nothing comes back that is silently wrong: an empty answer, a broken one, and a conversation of which the server has
    read only a part are errors.

    Args:
        provider: one of `PROVIDERS`.
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
        known = PROVIDERS.get(provider)
        if known is None:
            raise ProviderError(f"There is no remote provider {provider!r}; known are {', '.join(PROVIDERS)}.")
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
        address = base_url or address_from_environment(provider, known.address_variable) or known.base_url
        official = address.startswith(OPENAI)
        needed = known.key_needed or api_key_env is not None or official
        key = read_key(provider, api_key_env or known.key_variable, needed=needed)
        self._shape = OpenAIShape(known.shape.means, open=False) if official else known.shape
        self._open = not isinstance(self._shape, OpenAIShape) or self._shape.open
        self._connection = Connection(
            address,
            model=model,
            key=key,
            deadline=timeout,
            retries=retries,
            backoff=backoff,
            limit_name="timeout",
        )
        self._provider, self._model, self._extra = provider, model, dict(extra or {})
        self._context = RemoteContext(
            self._connection,
            self._shape,
            model,
            chosen=n_ctx,
            known=known.context_length,
            most=N_CTX if provider == "ollama" else None,
        )
        means = self._shape.means
        self._means = means[0] if schema_support is None else _MEANS[schema_support]
        self._known_means = schema_support is not None
        if self._means not in means:
            raise ConfigError(f"{provider} cannot hold a schema exactly: schema_support is json at best.")
        self._without: frozenset[str] = frozenset()
        self._lock, self._probing = threading.Lock(), threading.Lock()

    @property
    def info(self) -> ChatInfo:
        """The context is asked for at first; a schema is worth what a probe has found, and the best before one."""
        # Whoever draws with settings of his own must not stumble over one that this server does not have.
        sampling = {} if self._open else {"min_p": 0.0, "top_k": 0}
        return ChatInfo(self._model, self._provider, self._context.tokens(), _SUPPORT[self._means], sampling)

    @property
    def probed(self) -> bool:
        """Whether it is known what a schema is worth here."""
        return self._known_means

    @property
    def name(self) -> str:
        """Model and address, for messages."""
        return self._connection.name

    def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        """An upper bound: one for each byte of UTF-8, and some for the template."""
        turns = conversation(messages)
        whole, each = _WRAPPING
        return TokenCount(whole + sum(each + len(_text(turn).encode()) for turn in turns), exact=False)

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
        turns, held = self._checked(messages), schema_object(schema)
        before = self._probed_before(held, deadline, cancel)
        while True:
            asked = self._asked(turns, params, held, stream=False)
            try:
                body = self._shape.body(asked)
                answer = self._connection.post(self._shape.path, body, end=deadline, cancel=cancel)
            except Cancelled:
                return self._cut(turns, "cancelled", "", started)
            except ProviderUnavailable:
                if deadline is not None and time.monotonic() >= deadline:
                    return self._cut(turns, "deadline", "", started)
                raise
            except ProviderError as error:
                self._adapt(error, asked, body, turns)
            else:
                return self._reply(self._shape.said(answer, self.name), asked, turns, started, before)

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
        return self._events(self._checked(messages), params, schema_object(schema), deadline, cancel)

    def probe(self, *, deadline: float | None = None, cancel: threading.Event | None = None) -> Probe:
        """Find out by a question or two what a schema is worth there, once, and use that from now on.

        The answer to the first question can only be right where the schema forces it.

        Raises:
            ProviderUnavailable, ProviderError: the server cannot be asked.
            Cancelled: the flag was set.
        """
        spent = Usage()
        with self._probing:
            means = () if self._known_means else self._shape.means[self._shape.means.index(self._means) :]
            for each in means:
                found, usage = self._probed(each, deadline, cancel)
                spent = _sum(spent, usage)
                if found:
                    self._means, self._known_means = each, True
                    break
        said = {
            "schema": "the server holds every answer to the schema",
            "json": "the server gives JSON, and is only asked to follow the schema",
            "none": "the server is only asked for JSON that follows the schema",
        }[self._means]
        return Probe(_SUPPORT[self._means], f"{said}.", spent)

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
            asked = self._asked(turns, params, schema, stream=True)
            try:
                body = self._shape.body(asked)
                lines = self._connection.lines(self._shape.path, body, end=deadline, cancel=cancel)
                for piece in self._shape.pieces(lines, self.name):
                    if isinstance(piece, Said):
                        yield self._reply(piece, asked, turns, started, before)
                        return
                    text += piece
                    yield Delta(piece)
            except Cancelled:
                yield self._cut(turns, "cancelled", text, started)
                return
            except ProviderUnavailable:
                if deadline is None or time.monotonic() < deadline:
                    raise
                yield self._cut(turns, "deadline", text, started)
                return
            except ProviderError as error:
                if text:
                    raise
                self._adapt(error, asked, body, turns)

    def _checked(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        turns = conversation(messages)
        least, n_ctx = _least_tokens(turns), self._context.tokens()
        if least > n_ctx:
            self._overflows(least, n_ctx)
        return turns

    def _asked(
        self, turns: list[dict[str, Any]], params: SamplingParams | None, schema: dict[str, Any] | None, *, stream: bool
    ) -> Asked:
        means = self._means
        if schema is not None and means != "schema":
            turns = with_schema(turns, schema)
        return Asked(
            self._model, turns, params, self._context.tokens(), means, schema, stream, self._without, self._extra
        )

    def _adapt(self, error: ProviderError, asked: Asked, body: Mapping[str, Any], turns: list[dict[str, Any]]) -> None:
        """Get ready to ask once more in another way, where the refusal says what was wrong with this one.

        Raises:
            ContextOverflow: what was wrong is its length.
            ProviderError: as given, if there is no other way.
        """
        said = str(error)
        if error.status == 404 and self._provider == "ollama":
            raise ProviderError(f"{said.partition(' base_url')[0]} `ollama pull {self._model}` fetches it.", status=404)
        if error.status not in (400, 413, 422):
            raise error
        if _TOO_LONG.search(said):
            self._overflows(max(_least_tokens(turns), asked.n_ctx + 1), asked.n_ctx, said)
        refused = {name for name, value in self._shape.neutral().items() if name in said and body.get(name) == value}
        if "max_completion_tokens" in said and "max_tokens" in body:
            refused.add("max_tokens")
        if refused - asked.without:
            with self._lock:
                self._without |= refused
            return
        left = self._shape.means[self._shape.means.index(asked.means) + 1 :]
        if asked.schema is None or not left or not _SCHEMA_REFUSED.search(said):
            raise error
        self._means = left[0]

    def _probed_before(
        self, schema: Mapping[str, Any] | None, deadline: float | None, cancel: threading.Event | None
    ) -> Usage:
        """Find out what a schema is worth before the first one; what that took."""
        if schema is None or self._known_means:
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
        said, mode = _bounded(said, asked.params), None
        text = said.text
        if not text.strip() and said.reason == "stop":
            raise ProviderUnavailable(f"{self.name} answers with an empty text.", usage=said.usage)
        if said.usage is not None and said.usage.fresh + said.usage.cached < _least_tokens(turns):
            read = said.usage.fresh + said.usage.cached
            self._overflows(
                _least_tokens(turns), min(asked.n_ctx, read), f"{self.name} has read only {read:,} tokens of it."
            )
        if asked.schema is not None:
            mode = _SUPPORT[asked.means]
            if mode != "exact":
                text = bare(text)
            if said.reason == "stop" and not is_json(text):
                mode = "none"
        return Reply(
            text=text,
            ids=(),
            finish_reason=said.reason,
            usage=_sum(before, said.usage or self._most(turns, said.text)),
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
        return Usage(fresh=self.count_tokens(turns).n, output=len(text.encode()))

    def _probed(self, means: Means, deadline: float | None, cancel: threading.Event | None) -> tuple[bool, Usage]:
        """Whether the server can be held by `means`, and what finding out took."""
        if means == "none":
            return True, Usage()
        if means == "schema":
            schema: dict[str, Any] = {
                "type": "object",
                "properties": {"canary": {"enum": [_CANARY]}},
                "required": ["canary"],
                "additionalProperties": False,
            }
            question = "Say hello."
        else:
            schema, question = dict(ANY_OBJECT), 'Say hello as JSON: an object with the key "greeting".'
        params = SamplingParams(max_tokens=_PROBE_TOKENS, temperature=0.0)
        turns = [{"role": "user", "content": question}]
        while True:
            asked = Asked(
                self._model, turns, params, self._context.tokens(), means, schema, False, self._without, self._extra
            )
            body = self._shape.body(asked)
            try:
                said = self._shape.said(
                    self._connection.post(self._shape.path, body, end=deadline, cancel=cancel), self.name
                )
            except ProviderError as error:
                before = self._means, self._without
                try:
                    self._adapt(error, asked, body, turns)
                except ContextOverflow:
                    raise error from None
                if self._without == before[1]:  # it was the schema that the server did not take
                    return False, Usage()
                continue
            answer = json_of(said.text)
            held = answer == {"canary": _CANARY} if means == "schema" else isinstance(answer, dict)
            return held, said.usage or Usage()

    def _overflows(self, needed: int, available: int, said: str = "") -> NoReturn:
        raise ContextOverflow(
            f"The conversation needs {needed:,} tokens or more, and {self._model} takes {available:,}."
            f"{f' {said}' if said else ''} Shorten it, or set a larger n_ctx if the model has one.",
            needed=needed,
            available=available,
        )


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


def _least_tokens(turns: Sequence[Message]) -> int:
    """Fewer tokens than this no tokeniser makes of a conversation: hardly any token has more than one word."""
    return int(_SHORTEST * sum(1 for turn in turns for _ in _WORD.finditer(str(turn["content"]))))


def _text(turn: Message) -> str:
    return "".join(str(value) for value in turn.values())


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.fresh + other.fresh,
        one.cached + other.cached,
        one.output + other.output,
        one.reasoning + other.reasoning,
    )
