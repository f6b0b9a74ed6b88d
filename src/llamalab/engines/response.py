"""One response in progress: where it stands, and the events it leaves behind."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from llamalab.engine import Event, FinishReason, GenerateRequest, Generation, Timings, Token, TokenLogprob, Usage
from llamalab.engines.sampling import Sampler
from llamalab.engines.streaming import TextStream

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]
Queue = deque[Event | BaseException]
"""Events of one `generate` call, and errors to raise there."""


class Response:
    """One response in progress."""

    __slots__ = (
        "_held",
        "_texts",
        "at",
        "cached",
        "cancel",
        "deadline",
        "dropped",
        "ids",
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
        "times",
        "watched",
    )

    def __init__(
        self,
        number: int,
        request: GenerateRequest,
        prompt: Ids,
        sampler: Sampler,
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
        self.at = 0  # tokens of this response that the KV cache holds
        self.row = -1
        self.cached = 0
        self.submitted = time.monotonic()
        self.started = 0.0
        self.times = (0.0, 0.0)
        self._held: tuple[int, str, TokenLogprob | None] | None = None
        self._texts: list[str] = []

    def emit(self, token: int, text: str, logprob: TokenLogprob | None, *, last: bool) -> None:
        """Queue the event of one token; one that holds text back waits, so that it can carry the rest."""
        self._texts.append(text)
        if self._held is not None:
            self._release("")
        if not last and self.text.pending:
            self._held = (token, text, logprob)
        else:
            self.queue.append(Token(self.number, token, text, logprob))

    def finish(self, reason: FinishReason) -> None:
        """Queue the last event and free the sampler."""
        if self._held is not None:
            rest = self.text.finish()
            self._texts.append(rest)
            self._release(rest)
        first, last = self.times
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
                    prompt=first - began if self.ids else 0.0,
                    generation=last - first,
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
