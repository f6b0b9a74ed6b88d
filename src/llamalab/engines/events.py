"""What `generate` gives back: an iterator that can be closed, and that may be forgotten."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from llamalab.engine import Event, Generation, Token
from llamalab.engines.response import Queue, Response
from llamalab.engines.turns import Turns


class EventStream(Iterator[Event]):
    """The events of one `generate` call."""

    def __init__(self, scheduler: Turns, responses: Sequence[Response], queue: Queue) -> None:
        self._scheduler = scheduler
        self._left = {response.number: response for response in responses}
        self._queue = queue

    def __next__(self) -> Event:
        queue = self._queue
        if queue and type(queue[0]) is Token:
            return queue.popleft()  # type: ignore[return-value]
        if not self._left:
            raise StopIteration
        try:
            event = self._scheduler.next_event(queue)
        except BaseException:
            self.close()
            raise
        if type(event) is Generation:
            del self._left[event.request]
        return event

    def close(self) -> None:
        """End what is still in progress and free its sequences."""
        self._queue = deque()  # what a step in progress still adds to the old one is not for anybody
        if self._left:
            left = list(self._left.values())
            self._left.clear()
            self._scheduler.drop(left)

    def __del__(self) -> None:
        # The collector may run this anywhere, even inside the scheduler: only leave a mark.
        if self._left:
            self._scheduler.mark(list(self._left.values()))
