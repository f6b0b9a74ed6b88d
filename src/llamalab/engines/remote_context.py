"""How many tokens a model that runs elsewhere can use."""

from __future__ import annotations

import threading
import time

from llamalab.engines.connection import Connection
from llamalab.engines.remote_shape import Shape
from llamalab.errors import ProviderError, ProviderUnavailable

N_CTX = 16_384
"""Context that ollama is told to use where nobody says: its own default is a quarter of that."""

UNKNOWN_CONTEXT = 32_768
"""Context that is assumed of a server that does not tell."""

_LOOKING = 5.0  # seconds to ask for it
_AGAIN = 30.0  # seconds after which a server that was down is asked again


class RemoteContext:
    """The context of one model: as somebody chose, as is known, or as the server says. Safe from several threads.

    Args:
        connection: to the server.
        shape: of its API.
        model: as it names it.
        chosen: by the user; counts before all else.
        known: of the provider's models, without asking.
        most: that is used of what a model has, unless somebody chose; None: all of it.
    """

    def __init__(
        self,
        connection: Connection,
        shape: Shape,
        model: str,
        *,
        chosen: int | None,
        known: int | None,
        most: int | None,
    ) -> None:
        self._connection, self._shape, self._model = connection, shape, model
        self._chosen, self._known, self._most = chosen, known, most
        self._asked_at: float | None = None
        self._lock = threading.Lock()

    def tokens(self) -> int:
        """Tokens that prompt and reply may have together."""
        if self._chosen is not None:
            return self._chosen
        unsaid = self._most or UNKNOWN_CONTEXT
        with self._lock:
            now = time.monotonic()
            if self._known is None and (self._asked_at is None or now - self._asked_at > _AGAIN):
                self._known, self._asked_at = self._look_up(now + _LOOKING, unsaid), now
            known = self._known
        return unsaid if known is None else min(known, self._most or known)

    def _look_up(self, end: float, unsaid: int) -> int | None:
        """What the server says; None while it is down. One that does not say it is not asked again."""
        try:
            return self._shape.context_length(self._connection, self._model, end=end) or unsaid
        except ProviderUnavailable:
            return None
        except ProviderError:
            return unsaid
