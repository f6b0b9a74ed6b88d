"""Chat with an engine: a conversation becomes token ids through the model's template, a generation a reply.

Control tokens come from the template alone. Everything between them, template text and messages together,
is tokenised with specials off: a message that contains `<|eot_id|>` contains these ten characters, and no token
that ends the turn.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llamalab.engine import (
    ChatEvent,
    ChatInfo,
    ChatModel,
    Delta,
    Engine,
    GenerateRequest,
    Message,
    Reply,
    SamplingParams,
    Schema,
    Token,
    TokenCount,
)
from llamalab.errors import ConfigError, ContextOverflow, EngineError
from llamalab.templates import ChatTemplate, Piece
from llamalab.templates.choose import choose_template
from llamalab.templates.encode import Encoder
from llamalab.templates.messages import conversation

logger = logging.getLogger(__name__)

Truncate: TypeAlias = Literal["oldest"]
"""What to do with a conversation that is too long: "oldest" drops the oldest turns."""

DEFAULT_SAMPLING = SamplingParams(temperature=0.7, top_p=0.95, min_p=0.05)
"""How replies are drawn where neither the caller nor the model file says: a little sharper than the model."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation as it is sent.

    Attributes:
        messages: what is left of it.
        prompt_ids: its tokens, generation prompt included.
        dropped: how many messages were left out to make it fit.
    """

    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    dropped: int = 0


def chat_model(
    spec: str | Path,
    *,
    template: ChatTemplate | str | None = None,
    truncate: Truncate | None = None,
    template_variables: Mapping[str, Any] | None = None,
    **engine_options: Any,
) -> ChatModel:
    """Load the model `spec` and chat with it, or talk with one that runs elsewhere.

    Args:
        spec: a model spec, e.g. "pico", "llama_cpp:~/models/x.gguf" or "ollama:llama3.2:3b".
        template: see `EngineChat`.
        truncate: see `EngineChat`.
        template_variables: see `EngineChat`.
        engine_options: for the engine, as in `llamalab.load`; of a remote model, as in
            `llamalab.engines.remote.RemoteChat`, whose template and context are the server's affair.

    Raises:
        ModelFileError: no such model, or one that cannot be run.
        ProviderError: no such provider, or no key for it.
        ConfigError: an option that does not exist.
        TemplateMissing: no such template.
    """
    from llamalab.engines import REMOTE, load, split_spec

    provider, name = split_spec(spec)
    if provider in REMOTE:
        from llamalab.engines.remote import open_remote

        given = {"template": template, "truncate": truncate, "template_variables": template_variables}
        if named := [option for option, value in given.items() if value is not None]:
            raise ConfigError(f"{spec} runs elsewhere, where conversations are laid out: leave {named[0]} out.")
        return open_remote(provider, name, engine_options)
    engine = load(spec, **engine_options)
    try:
        return EngineChat(engine, template, truncate=truncate, template_variables=template_variables)
    except BaseException:
        engine.close()
        raise


class EngineChat:
    """A `ChatModel` on an engine. Safe from several threads if the engine is.

    Args:
        engine: the loaded model; `close` closes it.
        template: a `ChatTemplate`; the name of a built-in; a file or model folder that holds one; None takes
            the model's own.
        truncate: None raises `ContextOverflow` for a conversation that does not fit; "oldest" drops its oldest
            turns (a user's message and what answers it) until it fits with a reply, and keeps system messages
            and the last turn.
        template_variables: further variables for the template, e.g. `{"enable_thinking": False}`.

    Raises:
        ConfigError: another value of `truncate`.
        TemplateMissing: no such template.

    Attributes:
        engine: as given.
        encoder: from pieces of text to ids.
        template: in use.
        truncate: as given.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate | str | None = None,
        *,
        truncate: Truncate | None = None,
        template_variables: Mapping[str, Any] | None = None,
    ) -> None:
        if truncate not in (None, "oldest"):
            raise ConfigError(f"truncate={truncate!r} is not known: it is 'oldest' or None.")
        info = engine.info
        self.engine = engine
        self.truncate = truncate
        self.encoder = Encoder(engine)
        self.template = choose_template(
            template,
            own=info.chat_template,
            path=info.path,
            bos=self.encoder.text_of(info.bos_id),
            eos=self.encoder.text_of(info.eos_id),
            variables=template_variables,
        )
        self._last = threading.local()

    @property
    def info(self) -> ChatInfo:
        """Context length is that of one request; a schema is held exactly, token by token."""
        info = self.engine.info
        return ChatInfo(info.name, info.provider, info.n_ctx, "exact", info.sampling)

    @property
    def dropped(self) -> int:
        """How many messages the last `chat` or `stream` of this thread left out to make the conversation fit."""
        return getattr(self._last, "dropped", 0)

    @property
    def end_of_turn_id(self) -> int | None:
        """The first control token that the template writes after an assistant's words; None if it writes none."""
        probe = "probe"
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": probe}]
        pieces = self.pieces(turns, add_generation_prompt=False)
        said = max((i for i, piece in enumerate(pieces) if probe in piece.text), default=len(pieces))
        return next((self.encoder.id_of(piece) for piece in pieces[said:] if piece.special), None)

    def prompt_ids(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of the whole conversation, in the model's layout.

        The ids are those of transformers' `apply_chat_template`, with two differences: a special string inside a
        message gives no control token, and a BOS is put in front where the model wants one and the template
        writes none.

        Args:
            messages: the conversation, oldest first.
            add_generation_prompt: end with the header of the assistant's next turn.

        Raises:
            InputError: messages that cannot be used, or that the template refuses.
            TemplateMissing: the template does not render.
        """
        return self.piece_ids(self.pieces(messages, add_generation_prompt=add_generation_prompt))

    def pieces(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[Piece]:
        """The text of the whole conversation, cut at its control tokens. Arguments and errors as of `prompt_ids`."""
        return self.template.pieces(messages, self.encoder.special, add_generation_prompt=add_generation_prompt)

    def piece_ids(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of a conversation in pieces, with a BOS in front where the model wants one and none is there."""
        ids = self.encoder.encode(pieces)
        info = self.engine.info
        if info.add_bos and info.bos_id is not None and ids[:1] != [info.bos_id]:
            ids.insert(0, info.bos_id)
        return ids

    def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        """Exact number of tokens of the whole prompt; nothing is truncated. Raises as `prompt_ids`."""
        return TokenCount(len(self.prompt_ids(messages)), exact=True)

    def fit(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Fitted:
        """The conversation as `chat` would send it, shortened if `truncate` says so.

        Truncation leaves room for a reply: `params.max_tokens`, at most a quarter of the context.

        Raises:
            InputError: messages that cannot be used.
            ContextOverflow: it does not fit, or not even its system messages and last turn do.
        """
        n_ctx = self.engine.info.n_ctx
        ids = self.prompt_ids(messages)
        room = n_ctx // 4
        if params is not None and params.max_tokens is not None:
            room = min(room, params.max_tokens)
        if self.truncate is None or len(ids) + max(room, 1) <= n_ctx:
            return self._checked(Fitted(tuple(messages), tuple(ids)))
        turns = _turns(messages)

        def without(oldest: int) -> tuple[Message, ...]:
            gone = {number for turn in turns[:oldest] for number in turn}
            return tuple(message for number, message in enumerate(messages) if number not in gone)

        counts = range(len(turns))
        enough = bisect_left(counts, True, key=lambda n: len(self.prompt_ids(without(n))) + max(room, 1) <= n_ctx)
        kept = without(min(enough, len(turns) - 1)) if turns else tuple(messages)
        dropped = len(messages) - len(kept)
        fitted = self._checked(Fitted(kept, tuple(self.prompt_ids(kept)), dropped))
        if dropped:
            logger.warning("The conversation is too long: its oldest %d messages were left out.", dropped)
        return fitted

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        schema: Schema | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> Reply:
        """See `ChatModel.chat`; `params=None` takes the file's recommended settings over `DEFAULT_SAMPLING`."""
        for event in self.stream(messages, params, schema=schema, deadline=deadline, cancel=cancel):
            if isinstance(event, Reply):
                return event
        raise EngineError("The engine ended a request without saying how.")

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
        """See `ChatModel.stream`. What is wrong with the messages is raised here, not at the first piece.

        A stream that is closed or dropped before its end ends the request.
        """
        if params is None:
            params = _recommended(self.engine.info.sampling)
        fitted = self.fit(messages, params)
        self._last.dropped = fitted.dropped
        if not isinstance(params.stop, str):  # a mistake that the engine refuses: of its letters, each would end it
            params = replace(params, stop=(*params.stop, *self.template.stop))
        request = GenerateRequest(
            fitted.prompt_ids, params, schema=schema, logprobs=logprobs, deadline=deadline, cancel=cancel
        )
        return self._events(request)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def _events(self, request: GenerateRequest) -> Iterator[ChatEvent]:
        events = self.engine.generate([request])
        try:
            for event in events:
                if isinstance(event, Token):
                    if event.text or event.logprob is not None:
                        yield Delta(event.text, event.logprob)
                else:
                    yield Reply(
                        text=event.text,
                        ids=event.ids,
                        finish_reason=event.finish_reason,
                        usage=event.usage,
                        timings=event.timings,
                        model=self.engine.info.name,
                        logprobs=event.logprobs,
                        schema_mode=event.schema_mode,
                        seed=event.seed,
                    )
        finally:
            if (close := getattr(events, "close", None)) is not None:
                close()

    def _checked(self, fitted: Fitted) -> Fitted:
        n_ctx, needed = self.engine.info.n_ctx, len(fitted.prompt_ids) + 1
        if needed > n_ctx:
            what = "system messages and last turn need" if self.truncate else "conversation needs"
            raise ContextOverflow(
                f"The {what} {needed:,} tokens, one of them for the reply, and the context holds {n_ctx:,}. Shorten "
                f"it, load the model with a larger n_ctx{'' if self.truncate else ', or drop old turns (truncate)'}.",
                needed=needed,
                available=n_ctx,
            )
        return fitted


def _recommended(sampling: Mapping[str, Any]) -> SamplingParams:
    known = {field.name for field in fields(SamplingParams)}
    return replace(DEFAULT_SAMPLING, **{name: value for name, value in sampling.items() if name in known})


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """Numbers of the messages of each turn, oldest first: a user's message and all that answers it."""
    turns: list[list[int]] = []
    for number, message in enumerate(conversation(messages)):
        if message["role"] == "system":
            continue
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(number)
    return turns
