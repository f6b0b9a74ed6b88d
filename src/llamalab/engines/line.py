"""A connection that can be stopped from outside.

Whoever waits for a model can be waiting for minutes before its first byte comes, so stopping must not depend on one: a
call that is cancelled has its socket shut under it, and the server sees that nobody listens any more.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

    import httpx2

_POLL_S = 0.05  # between two looks at a cancel flag


class Line:
    """A client with a single connection, whose socket is known.

    Args:
        headers: of every request.
        tls: how certificates are checked.
    """

    def __init__(self, headers: Mapping[str, str], tls: ssl.SSLContext) -> None:
        import httpx2

        limits = httpx2.Limits(max_connections=1)
        self._client = httpx2.Client(headers=headers, follow_redirects=False, verify=tls, limits=limits)
        self._socket: socket.socket | None = None

    def send(
        self, method: str, url: str, body: Mapping[str, Any] | None, until: float
    ) -> contextlib.AbstractContextManager[httpx2.Response]:
        """Send a request; the library's timeout is what is left until `until`."""
        left = max(until - time.monotonic(), 0.001)
        extensions = {"trace": self._seen}
        return self._client.stream(method, url, json=body, timeout=left, extensions=extensions)

    def sever(self) -> None:
        """Wake whoever waits for this connection."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # Not the method of the TLS socket, which would change its state under the thread that reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._client.close()

    def _seen(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")


@contextlib.contextmanager
def severed_by(cancel: threading.Event | None, line: Line) -> Iterator[None]:
    """Sever `line` when the flag is set while the body runs."""
    if cancel is None:
        yield
        return
    done, ending = threading.Event(), threading.Lock()

    def watch() -> None:
        while not done.is_set():
            if cancel.wait(_POLL_S):
                with ending:  # afterwards the line belongs to somebody else
                    if not done.is_set():
                        line.sever()
                done.wait(_POLL_S)  # the connection may just be being made

    threading.Thread(target=watch, name="llamalab-cancel", daemon=True).start()
    try:
        yield
    finally:
        with ending:
            done.set()
