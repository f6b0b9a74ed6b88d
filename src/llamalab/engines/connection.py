"""HTTP to a model that runs elsewhere: retries with growing pauses, one deadline for all of it, and a way to stop."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from llamalab.engines.endpoint import Key, check_address, check_numbers
from llamalab.engines.line import Line, severed_by
from llamalab.engines.refusal import Passing, refusal
from llamalab.errors import ConfigError, ProviderError, ProviderUnavailable

if TYPE_CHECKING:
    import ssl

    import httpx2

_LONGEST_PAUSE_S = 30.0
_LARGEST = 64 << 20  # bytes of an answer


class Cancelled(Exception):
    """The caller's flag was set before the answer was there."""


class Connection:
    """One model behind one address. Safe from several threads. A context manager: leaving it closes everything.

    Args:
        address: in front of every path.
        model: as the endpoint names it, for messages.
        key: sent as a bearer token.
        deadline: seconds for one request, retries included.
        retries: how often a request is sent again after a failure that may pass.
        backoff: seconds before the first retry; doubled for each further one, and drawn between half and all of that.
        limit_name: what the caller's user knows `deadline` as.

    Raises:
        ProviderError: a key with characters that no key has.
        ConfigError: a number that means nothing, or an address that is none.
    """

    def __init__(
        self,
        address: str,
        *,
        model: str,
        key: Key,
        deadline: float = 120.0,
        retries: int = 4,
        backoff: float = 1.0,
        limit_name: str = "deadline",
    ) -> None:
        check_numbers(retries, {limit_name: deadline, "backoff": backoff})
        if not (key.value.isascii() and key.value.isprintable()):
            raise ProviderError(f"The key in {key.variable} has characters that no key has.")
        self.address, self.model = check_address(address), model
        self._key, self._limit_name = key, limit_name
        self._deadline, self._retries, self._backoff = deadline, retries, backoff
        self._lines: deque[Line] = deque()
        self._closed = False
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Model and address, for messages."""
        return f"{self.model} at {self.address}"

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        end: float | None = None,
        cancel: threading.Event | None = None,
        retries: int | None = None,
    ) -> Any:
        """The JSON of the answer, after as many tries as retries and deadline allow.

        Args:
            path: behind the address.
            body: sent as JSON.
            end: a value of `time.monotonic()` by which the answer must be there, if that is before the deadline.
            cancel: ends the request.
            retries: how often it is sent again; None: as the connection has it.

        Raises:
            ProviderUnavailable: down, busy, slow, broken off, or no JSON.
            ProviderError: it refuses, with its status.
            Cancelled: the flag was set.
        """
        until = self._until(end)
        return self._tried(lambda: self._whole("POST", path, body, until, cancel), until, cancel, retries)

    def get(self, path: str, *, end: float | None = None, retries: int | None = None) -> Any:
        """As `post`, without a body."""
        until = self._until(end)
        return self._tried(lambda: self._whole("GET", path, None, until, None), until, None, retries)

    def lines(
        self, path: str, body: Mapping[str, Any], *, end: float | None = None, cancel: threading.Event | None = None
    ) -> Iterator[bytes]:
        """The lines of an answer as they come. What fails before the first is retried. Arguments and errors as `post`.

        Raises:
            ProviderUnavailable: also if it breaks off on the way.
        """
        until = self._until(end)
        with contextlib.ExitStack() as opened:
            response: httpx2.Response = self._tried(
                lambda: self._opened(opened, path, body, until, cancel), until, cancel
            )
            rest = b""
            try:
                with self._translated(cancel):
                    for piece in response.iter_bytes():
                        _check_time(until)
                        *whole, rest = (rest + piece).split(b"\n")
                        if len(rest) > _LARGEST:
                            raise ProviderUnavailable(f"{self.name} answers with a line that does not end.")
                        yield from whole
                    _check_flag(cancel)
            except Passing as error:
                raise self._gave_up(error, 1) from None
            if rest:
                yield rest

    def close(self) -> None:
        """Close the connections; one that is in use, when it is no more."""
        with self._lock:
            self._closed = True
            while self._lines:
                self._lines.pop().close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _until(self, end: float | None) -> float:
        own = time.monotonic() + self._deadline
        return own if end is None else min(own, end)

    def _tried(
        self, once: Callable[[], Any], until: float, cancel: threading.Event | None, retries: int | None = None
    ) -> Any:
        """What `once` gives, after as many tries as retries and deadline allow."""
        pause, most = self._backoff, 1 + (self._retries if retries is None else retries)
        for sent in range(1, most + 1):
            try:
                return once()
            except Passing as error:
                # Many clients that failed together shall not come back together.
                wait = min(pause, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
                if error.retry_after is not None:
                    wait = error.retry_after
                if error.final or sent >= most or time.monotonic() + wait >= until:
                    raise self._gave_up(error, sent) from None
                pause *= 2
                if cancel is None:
                    time.sleep(wait)
                elif cancel.wait(wait):
                    raise Cancelled from None
        raise AssertionError("every try returns or raises")

    def _whole(
        self, method: str, path: str, body: Mapping[str, Any] | None, until: float, cancel: threading.Event | None
    ) -> Any:
        """The JSON of one answer. Read in pieces: the library's timeout is between two of them, and ours is for all."""
        with contextlib.ExitStack() as opened:
            response = self._opened(opened, path, body, until, cancel, method=method)
            return self._content(self._read(response, until, cancel))

    def _opened(
        self,
        stack: contextlib.ExitStack,
        path: str,
        body: Mapping[str, Any] | None,
        until: float,
        cancel: threading.Event | None,
        *,
        method: str = "POST",
    ) -> httpx2.Response:
        """The beginning of an answer; `stack` ends it."""
        _check_flag(cancel)
        with contextlib.ExitStack() as opened, self._translated(cancel):
            line = opened.enter_context(self._line())
            opened.enter_context(severed_by(cancel, line))
            response = opened.enter_context(line.send(method, f"{self.address}{path}", body, until))
            if response.status_code != 200:
                content = self._read(response, until, cancel)
                raise refusal(response.status_code, response.headers, content, name=self.name, key=self._key)
            stack.push(opened.pop_all())
            return response
        raise AssertionError("nothing here swallows an error")

    def _read(self, response: httpx2.Response, until: float, cancel: threading.Event | None) -> bytes:
        pieces, size = [], 0
        with self._translated(cancel):
            for piece in response.iter_bytes():
                pieces.append(piece)
                size += len(piece)
                _check_time(until)
                if size > _LARGEST:
                    raise ProviderUnavailable(f"{self.name} answers with more than {_LARGEST >> 20} MiB.")
            _check_flag(cancel)
        return b"".join(pieces)

    @contextlib.contextmanager
    def _line(self) -> Iterator[Line]:
        """A connection that nobody else uses; one on which something failed is not used again."""
        with self._lock:
            line = self._lines.pop() if self._lines else None
            if line is None:
                line = Line({"Authorization": f"Bearer {self._key.value}"} if self._key.value else {}, _tls())
        try:
            yield line
        except BaseException:
            line.close()
            raise
        with self._lock:
            if not self._closed:
                self._lines.append(line)
                return
        line.close()

    @contextlib.contextmanager
    def _translated(self, cancel: threading.Event | None) -> Iterator[None]:
        """The library's errors as ours."""
        import httpx2

        try:
            yield
        except httpx2.InvalidURL as error:
            raise ConfigError(f"base_url {self.address!r} is no address ({error}).") from error
        except httpx2.TransportError as error:
            if cancel is not None and cancel.is_set():
                raise Cancelled from None
            if isinstance(error, httpx2.TimeoutException):
                # A connection that could not be made in time was never used.
                sent = not isinstance(error, httpx2.ConnectTimeout)
                raise Passing(f"no answer within {self._deadline:g} seconds", sent=sent, final=True) from None
            if isinstance(error, httpx2.ConnectError):
                raise Passing(f"it cannot be reached ({error})", sent=False) from None
            raise Passing(f"the connection broke ({error or type(error).__name__})") from None
        except httpx2.DecodingError as error:
            raise Passing(f"the connection broke ({error or type(error).__name__})") from None

    def _content(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ProviderUnavailable(
                f"{self.name} does not answer with JSON. Is base_url right? It often ends in /v1."
            ) from error

    def _gave_up(self, error: Passing, sent: int) -> ProviderUnavailable:
        tries = f", tried {sent} times" if sent > 1 else ""
        return ProviderUnavailable(
            f"{self.name}: {error}{tries}. See that it runs and base_url is right, or raise {self._limit_name} or "
            "retries.",
            status=error.status,
            retry_after=error.retry_after,
            sent=error.sent,
        )


@cache
def _tls() -> ssl.SSLContext:
    """How certificates are checked; reading those of the machine takes a quarter of a second."""
    import httpx2

    return httpx2.create_ssl_context()


def _check_time(until: float) -> None:
    import httpx2

    if time.monotonic() > until:
        raise httpx2.ReadTimeout("The answer did not end in time.")


def _check_flag(cancel: threading.Event | None) -> None:
    """An answer without a length that was cut off looks like one that has ended."""
    if cancel is not None and cancel.is_set():
        raise Cancelled
