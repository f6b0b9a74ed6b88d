"""An engine without a model: bytes as tokens, a fixed answer, and a record of what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamalab.engine import Event, GenerateRequest, Generation, ModelInfo, Token, Usage
from llamalab.scored import Scored, ScoreRequest
from tests.chat_cases import CONTROL


@dataclass
class FakeEngine:
    """Token ids 0 to 255 are bytes, those above are `control` in order.

    Attributes:
        control: the strings of the control tokens.
        answer: what every request is answered with, a byte at a time, then `eos`.
        n_ctx: context of one request.
        careless: plain tokenising finds control tokens too, as a merging vocabulary can.
        prefix: a space is put in front of every text.
        takes_after: control tokens that swallow white space behind them.
        takes_before: control tokens that swallow white space before them.
        before_token: called before each generated token.
    """

    control: Sequence[str] = tuple(CONTROL)
    answer: str = "Yes, sir."
    n_ctx: int = 4096
    bos: str = "<s>"
    eos: str = "</s>"
    add_bos: bool = True
    template: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    careless: bool = False
    prefix: bool = False
    takes_after: Sequence[str] = ()
    takes_before: Sequence[str] = ()
    before_token: Callable[[], None] = lambda: None
    requests: list[GenerateRequest] = field(default_factory=list)
    streams: list[Iterator[Event]] = field(default_factory=list)  # held, so that only `close` ends one early
    open_requests: int = 0
    closed: bool = False

    @property
    def ids(self) -> dict[str, int]:
        return {string: 256 + number for number, string in enumerate(self.control)}

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name="fake",
            provider="fake",
            path=None,
            architecture="none",
            n_params=0,
            size_bytes=0,
            context_length=self.n_ctx,
            n_ctx=self.n_ctx,
            n_vocab=256 + len(self.control),
            bos_id=self.ids.get(self.bos),
            eos_id=self.ids.get(self.eos),
            stop_ids=frozenset({self.ids[self.eos]} if self.eos in self.ids else ()),
            add_bos=self.add_bos,
            special_tokens=self.ids,
            chat_template=self.template,
            sampling=self.sampling,
        )

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        cut = next((s for s in self.control if s in text), None) if parse_special or self.careless else None
        if cut is not None:
            before, after = text.split(cut, 1)
            before = before.rstrip() if cut in self.takes_before else before
            after = after.lstrip() if cut in self.takes_after else after
            options = {"parse_special": parse_special}
            return [*self.tokenize(before, **options), self.ids[cut], *self.tokenize(after, **options)]
        return list(((" " if self.prefix else "") + text).encode()) if text else []

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        return b"".join(self.token_bytes(i, special=special) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        if id < 256:
            return bytes([id])
        return self.control[id - 256].encode() if special else b""

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Event]:
        self.requests += requests
        self.streams.append(self._events(requests))
        return self.streams[-1]

    def _events(self, requests: Sequence[GenerateRequest]) -> Iterator[Event]:
        self.open_requests += 1
        try:
            for number, request in enumerate(requests):
                yield from self._answer(number, request)
        finally:
            self.open_requests -= 1

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True

    def _answer(self, number: int, request: GenerateRequest) -> Iterator[Event]:
        text, ids, reason = "", [], "stop"
        limit = request.params.max_tokens
        for letter in self.answer:
            self.before_token()
            if request.cancel is not None and request.cancel.is_set():
                reason = "cancelled"
            elif request.deadline is not None and time.monotonic() >= request.deadline:
                reason = "deadline"
            elif limit is not None and len(ids) >= limit:
                reason = "length"
            if reason != "stop":
                break
            text += letter
            *first, last = letter.encode()
            ids += [*first, last]
            for byte in first:
                yield Token(number, byte, "")
            yield Token(number, last, letter)
        else:
            ids.append(self.ids[self.eos])
        mode = None if request.schema is None else "exact"
        usage = Usage(fresh=len(request.prompt_ids), output=len(ids))
        yield Generation(number, text, tuple(ids), reason, usage=usage, seed=request.params.seed, schema_mode=mode)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(0)` ... `work(count - 1)` give, each in a thread of its own, all started together."""
    results: list[Any] = [None] * count
    gate = threading.Barrier(count)

    def one(number: int) -> None:
        gate.wait()
        results[number] = work(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
