"""Many responses at once: continuous batching over the parallel sequences of one llama.cpp context.

There is no worker thread. Whoever asks for an event and finds none drives: one step, that is one
`llama_decode` for everything in progress (the next chunks of prompts and one token for each response), then
one draw for each response, the events left in the queue of whoever asked for it; where steps take
microseconds, a few of them. Others wait for the turn to end and take their events. So threads that generate
at the same time share batches, and one that stops reading holds nobody up.

A response that ends frees its sequence for the next one. Each sequence has a KV cache of its own; llama.cpp
computes several in one go only if they are neighbours, so when nothing waits, a gap is closed by moving
the last one into it.
"""

from __future__ import annotations

import bisect
import math
import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from llamalab.engine import Event, FinishReason
from llamalab.engines.batch import Batch
from llamalab.engines.native import api, decode, native_reason, sample
from llamalab.engines.response import Ids, Queue, Response
from llamalab.engines.sampling import DeadEndError
from llamalab.engines.vocabulary import Vocabulary
from llamalab.errors import EngineError, LlamalabError

_TURN = 0.002  # seconds after which a turn of several steps ends: too short to be seen in a stream
_LOOK = 0.1  # seconds between looks at those who wait: there may be thousands


class Scheduler:
    """The sequences of one context and who uses them. Safe from several threads."""

    def __init__(
        self, context: int, vocabulary: Vocabulary, *, n_seq: int, n_batch: int, movable: bool, keep: bool
    ) -> None:
        """Schedule over `n_seq` sequences.

        Args:
            context: llama.cpp's context.
            vocabulary: of its model.
            n_seq: sequences of the context.
            n_batch: most tokens of one decode.
            movable: a sequence's state can be copied to another one.
            keep: remember what ended responses computed and reuse common prefixes.
        """
        self._context = context
        self._memory = api.llama_get_memory(context)
        self._vocabulary = vocabulary
        self._movable = movable and not keep
        self._keep = keep
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._sleepers = 0
        self._changed = False  # somebody came, went or is not steady yet: the batch has to be made anew
        self._watching = False  # somebody can be ended from outside
        self._waiting_watched = False
        self._next_look = 0.0
        self._stepping = False
        self._closed = False
        self._waiting: deque[Response] = deque()
        self._active: list[Response] = []  # in the order of their sequences
        self._free = list(range(n_seq))
        self._kept: list[list[int]] = [[] for _ in range(n_seq)]
        self._batch = Batch(n_batch, n_seq)

    def submit(self, responses: Sequence[Response]) -> None:
        """Queue responses; work begins when somebody asks for an event."""
        with self._lock:
            self._check_open()
            for response in responses:
                if response.limit == 0:
                    response.finish("length")
                else:
                    self._waiting.append(response)
                    if response.watched:
                        self._waiting_watched = self._watching = True
            self._changed = True

    def next_event(self, queue: Queue) -> Event:
        """The next event of `queue`, driving as long as there is none.

        Raises:
            EngineError: closed, or the runtime failed.
        """
        while not queue:
            mine = False
            try:
                with self._lock:
                    while self._stepping and not queue:
                        self._sleep()
                    if queue:
                        break
                    self._check_open()
                    self._stepping = mine = True
                until = time.monotonic() + _TURN
                while self._step() < until and not self._changed and not self._sleepers:
                    pass
            except BaseException as error:
                if mine:
                    self._recover(error)
                if not (mine and isinstance(error, LlamalabError)):
                    raise  # otherwise it is in the queue of everybody concerned
            finally:
                if mine:
                    self._stepping = False
                    with self._lock:
                        if self._sleepers:
                            self._turn.notify_all()
        event = queue.popleft()
        if isinstance(event, BaseException):
            raise event
        return event

    def drop(self, responses: Sequence[Response]) -> None:
        """Nobody reads these any more: end them and free their sequences."""
        self.mark(responses)
        with self._lock:
            # A step in progress sees the mark when it is over; otherwise this is the moment.
            if not self._stepping and not self._closed:
                self._sweep(time.monotonic())

    def mark(self, responses: Sequence[Response]) -> None:
        """As `drop`, at the next step. Takes no lock: the garbage collector may call it anywhere."""
        for response in responses:
            response.dropped = response.watched = True
        self._next_look = 0.0
        self._waiting_watched = self._watching = True

    def close(self) -> None:
        """End everything in progress; later calls raise `EngineError`."""
        with self._lock:
            while self._stepping:
                self._sleep()
            if self._closed:
                return
            self._closed = True
            for response in [*self._active, *self._waiting]:
                response.fail(EngineError("The engine was closed while this response was in progress."))
            self._active.clear()
            self._waiting.clear()
            self._turn.notify_all()

    def _sleep(self) -> None:
        """Wait for the end of a step; the limit only matters if an interrupt swallowed the notification."""
        self._sleepers += 1
        try:
            self._turn.wait(1.0)
        finally:
            self._sleepers -= 1

    def _step(self) -> float:
        """One decode for everything in progress, one draw for each response that gets logits; the time after."""
        if self._watching:
            with self._lock:
                self._sweep(time.monotonic())
        batch = self._batch
        if self._changed:
            with self._lock:
                self._changed = False
                self._admit()
                self._close_gaps()
            if not self._active:
                return math.inf
            rows = batch.fill(self._active)
            self._changed = not batch.steady
        else:
            rows = batch.refill()
        context = self._context
        status = decode(context, batch.native)
        if status:
            raise EngineError(f"llama_decode failed with status {status} ({native_reason()}).")
        now = time.monotonic()
        for response in rows:
            if response.chain is None:
                self._draw(response, now)
                continue
            token = sample(response.chain, context, response.row)
            reason = response.take(token, None, self._vocabulary, now)
            if reason is not None:
                self._end(response, reason)
        return now

    def _draw(self, response: Response, now: float) -> None:
        """Draw the next token of a response where that may fail, or where more than the token is wanted."""
        try:
            token, logprob = response.sampler.draw(self._context, response.row)
            reason = response.take(token, logprob, self._vocabulary, now)
        except DeadEndError:
            self._end(response, EngineError("The schema or grammar allows none of the model's tokens here."))
        except LlamalabError as error:
            self._end(response, error)
        else:
            if reason is not None:
                self._end(response, reason)

    def _end(self, response: Response, how: FinishReason | LlamalabError) -> None:
        """Free the sequence of a response that is over and queue its last event."""
        self._active = [r for r in self._active if r is not response]  # a new list: the step walks over the old one
        self._changed = True
        if self._keep:
            self._kept[response.sequence] = [*response.prompt.tolist(), *response.ids][: response.at]
        bisect.insort(self._free, response.sequence)
        response.sequence = -1
        if isinstance(how, LlamalabError):
            response.fail(how)
        else:
            response.finish(how)

    def _recover(self, error: BaseException) -> None:
        """After a step that did not end: free all sequences and tell everybody whose response was in one."""
        failed, self._active = self._active, []
        self._free = list(range(len(self._kept)))
        self._kept = [[] for _ in self._kept]
        self._changed = True
        reason = str(error) if isinstance(error, LlamalabError) else f"{type(error).__name__} in another request"
        for response in failed:
            response.fail(EngineError(f"The batch that this response was in was interrupted: {reason}"))

    def _sweep(self, now: float) -> None:
        """End what was cancelled, dropped or is past its deadline; those who wait are looked at now and then."""
        self._watching = False
        for response in [r for r in self._active if r.watched]:
            reason = _ends(response, now)
            if reason is not None:
                self._end(response, reason)
        if now >= self._next_look:
            self._next_look = now + _LOOK
            still: deque[Response] = deque()
            for response in self._waiting:
                reason = _ends(response, now) if response.watched else None
                if reason is None:
                    still.append(response)
                else:
                    response.finish(reason)
            self._waiting = still
            self._waiting_watched = any(r.watched for r in still)
        if self._waiting_watched or any(r.watched for r in self._active):
            self._watching = True

    def _admit(self) -> None:
        """Give free sequences to those who wait longest."""
        if not (self._waiting and self._free):
            return
        while self._waiting and self._free:
            response = self._waiting.popleft()
            reason = _ends(response, time.monotonic()) if response.watched else None
            if reason is not None:
                response.finish(reason)
                continue
            response.sequence = self._choose(response.prompt)
            self._free.remove(response.sequence)
            response.at = response.cached = self._reuse(response.sequence, response.prompt)
            response.started = time.monotonic()
            response.sampler.remember(response.prompt)
            bisect.insort(self._active, response, key=lambda r: r.sequence)

    def _choose(self, prompt: Ids) -> int:
        """The free sequence that holds most of the prompt already; the lowest among equals."""
        if not self._keep:
            return self._free[0]
        return max(self._free, key=lambda s: (common_prefix(self._kept[s], prompt), not self._kept[s], -s))

    def _reuse(self, sequence: int, prompt: Ids) -> int:
        """Empty a sequence but for what it shares with the prompt; number of tokens that stay."""
        # The last token of the prompt is always computed: its logits are needed.
        shared = min(common_prefix(self._kept[sequence], prompt), len(prompt) - 1) if self._keep else 0
        self._kept[sequence] = []
        if shared and api.llama_memory_seq_rm(self._memory, sequence, shared, -1):
            return shared
        api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return 0

    def _close_gaps(self) -> None:
        """Move the last sequences into free ones below them."""
        active = self._active
        while self._movable and active and active[-1].sequence >= len(active):
            last, gap = active.pop(), self._free.pop(0)
            api.llama_memory_seq_cp(self._memory, last.sequence, gap, -1, -1)
            bisect.insort(self._free, last.sequence)
            last.sequence = gap
            bisect.insort(active, last, key=lambda r: r.sequence)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("This engine is closed.")


def common_prefix(held: Sequence[int], prompt: Ids) -> int:
    """Number of equal tokens at the beginning of both."""
    length = min(len(held), len(prompt))
    if not length:
        return 0
    differ = np.asarray(held[:length], dtype=np.int32) != prompt[:length]
    return int(differ.argmax()) if differ.any() else length


def _ends(response: Response, now: float) -> FinishReason | None:
    if response.dropped or (response.cancel is not None and response.cancel.is_set()):
        return "cancelled"
    if response.deadline is not None and now >= response.deadline:
        return "deadline"
    return None
