"""One response in progress: where it stands, and the events it leaves behind."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llamalab.engine import Event, FinishReason, GenerateRequest, Generation, Timings, Token, TokenLogprob, Usage
from llamalab.engines.streaming import TextStream

if TYPE_CHECKING:
    from llamalab.engines.constrain import Constraint  # imports llguidance, which few runs need

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]
Queue = deque[Event | BaseException]
"""Events of one `generate` call, and errors to raise there."""

# What `Token(...)` does, without the price of a frozen dataclass's __init__: there is one event for each token.
_new_token = object.__new__
_set_request, _set_id, _set_text, _set_logprob = (
    getattr(Token, field.name).__set__ for field in dataclasses.fields(Token)
)


class Drawing(Protocol):
    """How a response's tokens are drawn, as far as the response has to know.

    Attributes:
        seed: of the draws.
        constraint: the schema's state, None without a schema.
        plain: a draw is no more than one native call on `chain`.
        chain: address of llama.cpp's sampler chain, None without one.
    """

    seed: int
    constraint: Constraint | None
    plain: bool
    chain: int | None

    def free(self) -> None:
        """Free the native side; safe to call twice."""
        ...


class Pieces(Protocol):
    """What tokens read as."""

    @property
    def texts(self) -> Mapping[int, str]:
        """Text of tokens seen so far that are whole characters."""
        ...

    def bytes_of(self, id: int) -> bytes:
        """The bytes of one token; none for a control token."""
        ...


class Response:
    """One response in progress.

    Attributes:
        number: of its request in the call.
        prompt: token ids.
        sampler: draws its tokens.
        chain: the sampler's native chain where drawing is all there is to do, else None.
        constraint: the state of its schema, None without one.
        queue: where its events go.
        limit: most tokens.
        stops: tokens that end it.
        schema: it is held to a JSON schema.
        text: its readable text.
        cancel, deadline: as in the request.
        watched: it may be ended from outside.
        dropped: nobody reads it any more.
        ids: tokens drawn so far.
        logprobs: theirs, if asked for.
        sequence: of the context, -1 while it has none.
        at: tokens of it that the KV cache holds.
        row: of its logits in the last batch.
        cached: prompt tokens that did not have to be computed.
        submitted, started, first, last: when it was queued, when its work began, its first and last token.
    """

    __slots__ = (
        "_held",
        "_texts",
        "at",
        "cached",
        "cancel",
        "chain",
        "constraint",
        "deadline",
        "dropped",
        "first",
        "ids",
        "last",
        "limit",
        "logprobs",
        "number",
        "prompt",
        "queue",
        "row",
        "sampler",
        "schema",
        "sequence",
        "started",
        "stops",
        "submitted",
        "text",
        "watched",
    )

    def __init__(
        self,
        number: int,
        request: GenerateRequest,
        prompt: Ids,
        sampler: Drawing,
        queue: Queue,
        *,
        n_ctx: int,
        stop_ids: frozenset[int],
    ) -> None:
        params = request.params
        room = n_ctx - len(prompt)
        constrained = request.schema is not None or request.grammar is not None
        self.number = number
        self.prompt = prompt
        self.sampler = sampler
        self.constraint = sampler.constraint
        self.chain = sampler.chain if sampler.plain else None
        self.queue = queue
        self.limit = room if params.max_tokens is None else min(params.max_tokens, room)
        self.stops = frozenset() if params.ignore_eos and not constrained else stop_ids
        self.schema = request.schema is not None
        self.text = TextStream(params.stop)
        self.cancel = request.cancel
        self.deadline = request.deadline
        self.watched = request.cancel is not None or request.deadline is not None
        self.dropped = False
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if request.logprobs is None else []
        self.sequence = -1
        self.at = 0
        self.row = -1
        self.cached = 0
        self.submitted = time.monotonic()
        self.started = 0.0
        self.first = self.last = 0.0
        self._held: tuple[int, str, TokenLogprob | None] | None = None
        self._texts: list[str] = []

    def take(self, token: int, logprob: TokenLogprob | None, vocabulary: Pieces, now: float) -> FinishReason | None:
        """Add a token that was drawn and queue its event; the reason if it was the last.

        The event of a token whose text is held back waits, so that it can carry the rest.
        """
        ids, stream = self.ids, self.text
        if not ids:
            self.first = now
        self.last = now
        ids.append(token)
        if logprob is not None and self.logprobs is not None:
            self.logprobs.append(logprob)
        reason: FinishReason | None = None
        if token in self.stops:
            text, reason = "", "stop"
        else:
            whole = vocabulary.texts.get(token) if stream.passes else None
            text = stream.push(vocabulary.bytes_of(token)) if whole is None else whole
            constraint = self.constraint
            if stream.stopped or (constraint is not None and constraint.complete):
                reason = "stop"
            elif len(ids) >= self.limit:
                reason = "length"
        if reason is not None:
            text += stream.finish()
        self._texts.append(text)
        if self._held is not None:
            self._release("")
        if reason is None and not stream.passes and stream.pending:
            self._held = (token, text, logprob)
        else:
            event = _new_token(Token)
            _set_request(event, self.number)
            _set_id(event, token)
            _set_text(event, text)
            _set_logprob(event, logprob)
            self.queue.append(event)
        return reason

    def finish(self, reason: FinishReason) -> None:
        """Queue the last event and free the sampler."""
        if self._held is not None:
            rest = self.text.finish()
            self._texts.append(rest)
            self._release(rest)
        began = self.started or time.monotonic()
        self.queue.append(
            Generation(
                request=self.number,
                text="".join(self._texts),
                ids=tuple(self.ids),
                finish_reason=reason,
                logprobs=None if self.logprobs is None else tuple(self.logprobs),
                usage=Usage(
                    fresh=max(0, min(self.at, len(self.prompt)) - self.cached), cached=self.cached, output=len(self.ids)
                ),
                timings=Timings(
                    queued=began - self.submitted,
                    prompt=self.first - began if self.ids else 0.0,
                    generation=self.last - self.first,
                ),
                seed=self.sampler.seed,
                schema_mode="exact" if self.schema else None,
            )
        )
        self.sampler.free()

    def fail(self, error: BaseException) -> None:
        """Queue an error instead of the last event."""
        self.queue.append(error)
        self.sampler.free()

    def _release(self, rest: str) -> None:
        assert self._held is not None
        token, text, logprob = self._held
        self._held = None
        self.queue.append(Token(self.number, token, text + rest, logprob))
