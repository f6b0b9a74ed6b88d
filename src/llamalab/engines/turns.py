"""Many responses at once over a few sequences: who waits, who runs, who takes the next step.

There is no worker thread. Whoever asks for an event and finds none drives: one step for everything in progress, the
events left in the queue of whoever asked for it; where steps take microseconds, a few of them. Others wait for the turn
to end and take their events. So threads that generate at the same time share batches, and one that stops reading holds
nobody up.
"""

from __future__ import annotations

import bisect
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from llamalab.engine import Event, FinishReason
from llamalab.engines.response import Queue, Response
from llamalab.errors import EngineError, LlamalabError

_TURN = 0.002  # seconds after which a turn of several steps ends: too short to be seen in a stream
_LOOK = 0.1  # seconds between looks at those who wait: there may be thousands


class Turns(ABC):
    """Sequences and who uses them; what a step computes is a subclass's. Safe from several threads."""

    def __init__(self, n_seq: int) -> None:
        self._n_seq = n_seq
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

    @abstractmethod
    def _step(self) -> float:
        """One step for everything in progress; the time after it, infinite where nothing is."""

    def _ended(self, response: Response) -> None:  # noqa: B027  (nothing to do is a fine default)
        """A response is over; its sequence is still its own."""

    def _interrupted(self) -> None:  # noqa: B027
        """A step did not end: what the sequences hold is not known."""

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

    def _end(self, response: Response, how: FinishReason | LlamalabError) -> None:
        """Free the sequence of a response that is over and queue its last event."""
        self._active = [r for r in self._active if r is not response]  # a new list: the step walks over the old one
        self._changed = True
        self._ended(response)
        bisect.insort(self._free, response.sequence)
        response.sequence = -1
        if isinstance(how, LlamalabError):
            response.fail(how)
        else:
            response.finish(how)

    def _recover(self, error: BaseException) -> None:
        """After a step that did not end: free all sequences and tell everybody whose response was in one."""
        failed, self._active = self._active, []
        self._free = list(range(self._n_seq))
        self._interrupted()
        self._changed = True
        reason = str(error) if isinstance(error, LlamalabError) else f"{type(error).__name__} in another request"
        for response in failed:
            response.fail(EngineError(f"The batch that this response was in was interrupted: {reason}"))

    def _sweep(self, now: float) -> None:
        """End what was cancelled, dropped or is past its deadline; those who wait are looked at now and then."""
        self._watching = False
        for response in [r for r in self._active if r.watched]:
            reason = ends(response, now)
            if reason is not None:
                self._end(response, reason)
        if now >= self._next_look:
            self._next_look = now + _LOOK
            still: deque[Response] = deque()
            for response in self._waiting:
                reason = ends(response, now) if response.watched else None
                if reason is None:
                    still.append(response)
                else:
                    response.finish(reason)
            self._waiting = still
            self._waiting_watched = any(r.watched for r in still)
        if self._waiting_watched or any(r.watched for r in self._active):
            self._watching = True

    def _next_waiting(self) -> Response | None:
        """Whoever has waited longest and is still wanted, given a sequence by the caller; None if nobody waits."""
        while self._waiting:
            response = self._waiting.popleft()
            reason = ends(response, time.monotonic()) if response.watched else None
            if reason is None:
                return response
            response.finish(reason)
        return None

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("This engine is closed.")


def ends(response: Response, now: float) -> FinishReason | None:
    """Why a response is ended from outside; None if it is not."""
    if response.dropped or (response.cancel is not None and response.cancel.is_set()):
        return "cancelled"
    if response.deadline is not None and now >= response.deadline:
        return "deadline"
    return None
