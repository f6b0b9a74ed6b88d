"""A server that models run on, and what has been found out of it: fields that it refuses, and what a schema is worth.

Whoever asks builds a request, sends it, and where it is refused shows the refusal to `learn`: the next request is built
in the next best way.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llamalab.engine import SamplingParams
from llamalab.engines.connection import Connection
from llamalab.engines.remote_context import RemoteContext
from llamalab.engines.remote_length import least_tokens, too_long
from llamalab.engines.remote_schema import with_schema
from llamalab.engines.remote_shape import Asked, Means, Said, Shape
from llamalab.engines.strict_schema import strict_form
from llamalab.errors import ProviderError

_NOT_TAKEN = (400, 413, 422)  # HTTP status codes of a request that could be put in another way
_SCHEMA_REFUSED = re.compile(
    r"response_format|json_schema|json_object|schema|grammar|guided|structured|\bformat\b", re.I
)
# OpenAI says "context=('size',)" of a place in a schema.
_TOO_LONG = re.compile(
    r"context(?!=).{0,12}(length|size|window)|maximum context|too many tokens|prompt is too long", re.I
)


class RemoteServer:
    """One model on one server. Safe from several threads.

    Args:
        connection: to the server.
        shape: of its API.
        context: of the model.
        model: as the server names it.
        means: by which it is held to a schema, as somebody has said; None: the best, until something else is found out.
        extra: further fields for the body of each request.
    """

    def __init__(
        self,
        connection: Connection,
        shape: Shape,
        context: RemoteContext,
        *,
        model: str,
        means: Means | None,
        extra: Mapping[str, Any],
    ) -> None:
        self.shape, self.context, self.model = shape, context, model
        self._connection, self._extra = connection, dict(extra)
        self._means, self._known = means or shape.means[0], means is not None
        self._without: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Model and address, for messages."""
        return self._connection.name

    @property
    def means(self) -> Means:
        """The best means that are not known to be worth nothing here."""
        return self._means

    @property
    def known(self) -> bool:
        """Whether `means` has been found out, or said."""
        return self._known

    def settle(self, means: Means) -> None:
        """From now on schemas are held by `means`, until one is refused."""
        with self._lock:
            self._means, self._known = means, True

    def asked(
        self,
        turns: Sequence[dict[str, Any]],
        params: SamplingParams | None,
        schema: Mapping[str, Any] | None,
        *,
        stream: bool = False,
    ) -> Asked:
        """A request by the best means for this schema; in words where the server cannot be held to it."""
        means = self._means
        if schema is not None and means == "strict" and strict_form(schema) is None:
            means = self._next("strict")
        if schema is not None and means in ("json", "none"):
            turns = with_schema(turns, schema)
        return self.asked_by(means, turns, params, schema, stream=stream)

    def asked_by(
        self,
        means: Means,
        turns: Sequence[dict[str, Any]],
        params: SamplingParams | None,
        schema: Mapping[str, Any] | None,
        *,
        stream: bool = False,
    ) -> Asked:
        """A request by these means, its conversation as it stands."""
        return Asked(
            self.model,
            turns,
            params,
            self.context.tokens(),
            means,
            schema,
            strict_form(schema) if schema is not None and means == "strict" else None,
            stream,
            self._without,
            self._extra,
        )

    def said(self, asked: Asked, *, end: float | None, cancel: threading.Event | None) -> Said:
        """The answer in one piece. Raises as `Connection.post` and `Shape.said`."""
        answer = self._connection.post(self.shape.path, self.shape.body(asked), end=end, cancel=cancel)
        return self.shape.said(answer, self.name)

    def pieces(self, asked: Asked, *, end: float | None, cancel: threading.Event | None) -> Iterator[str | Said]:
        """The answer as it comes, the record of all of it last. Raises as `Connection.lines` and `Shape.pieces`."""
        lines = self._connection.lines(self.shape.path, self.shape.body(asked), end=end, cancel=cancel)
        return self.shape.pieces(lines, self.name)

    def learn(self, error: ProviderError, asked: Asked) -> None:
        """Get ready to ask once more in another way, where the refusal says what was wrong with this one.

        Raises:
            ContextOverflow: what was wrong is its length.
            ProviderError: as given, if there is no other way.
        """
        if error.status in _NOT_TAKEN and _TOO_LONG.search(str(error)):
            needed = max(least_tokens(asked.messages), asked.n_ctx + 1)
            raise too_long(self.model, needed, asked.n_ctx, str(error))
        if self.learns_a_field(error, asked):
            return
        if asked.schema is None or asked.means == "none" or not refuses_a_schema(error):
            raise error
        order = self.shape.means
        with self._lock:  # another thread may have been further
            self._means = order[max(order.index(self._means), order.index(self._next(asked.means)))]

    def learns_a_field(self, error: ProviderError, asked: Asked) -> bool:
        """Whether the refusal names fields that can be left out; they are from now on."""
        if error.status not in _NOT_TAKEN:
            return False
        body, text = self.shape.body(asked), str(error)
        refused = {name for name, value in self.shape.neutral().items() if name in text and body.get(name) == value}
        if "max_completion_tokens" in text and "max_tokens" in body:
            refused.add("max_tokens")
        if not refused - asked.without:
            return False
        with self._lock:
            self._without |= refused
        return True

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def _next(self, means: Means) -> Means:
        return self.shape.means[self.shape.means.index(means) + 1]


def refuses_a_schema(error: ProviderError) -> bool:
    """Whether a refusal is about the schema, or the way it was sent."""
    return error.status in _NOT_TAKEN and not _TOO_LONG.search(str(error)) and bool(_SCHEMA_REFUSED.search(str(error)))
