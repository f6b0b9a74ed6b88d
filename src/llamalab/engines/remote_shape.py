"""What differs between the servers that models run on: how a chat is asked for, and how it is answered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from llamalab.engine import FinishReason, Message, SamplingParams, SchemaSupport, Timings, Usage
from llamalab.engines.connection import Connection
from llamalab.engines.strict_schema import StrictForm
from llamalab.errors import ProviderUnavailable

Means: TypeAlias = Literal["schema", "strict", "json", "none"]
"""By what a server is held to a schema: given the schema itself; given its strict form; told to answer with JSON;
nothing but words."""

SUPPORT: Mapping[Means, SchemaSupport] = {"schema": "exact", "strict": "exact", "json": "json", "none": "none"}
"""What a schema is worth by each of the means."""

_MOST = 2**40  # of any count of tokens


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for a chat.

    Attributes:
        model: as the server names it.
        messages: checked, each with its content as text.
        params: how to draw; None: as the server does by itself.
        n_ctx: context that the server is to use, where it takes orders.
        means: how the answer is held to `schema`.
        schema: None: the answer is free.
        strict: the strict form of `schema`, where it is held by that.
        stream: the answer comes in pieces.
        without: fields that the server has refused before.
        extra: further fields of the body.
    """

    model: str
    messages: Sequence[Message]
    params: SamplingParams | None
    n_ctx: int
    means: Means = "none"
    schema: Mapping[str, Any] | None = None
    strict: StrictForm | None = None
    stream: bool = False
    without: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    """What a server answered.

    Attributes:
        text: of the reply.
        reason: why it ended.
        usage: None: the server does not say.
        model: who answered, by its own name.
        timings: None: the server does not say.
    """

    text: str
    reason: FinishReason
    usage: Usage | None
    model: str
    timings: Timings | None = None


class Shape(Protocol):
    """One kind of server."""

    @property
    def path(self) -> str:
        """Behind the address."""
        ...

    @property
    def means(self) -> tuple[Means, ...]:
        """The ways to hold a schema, best first; the last is always "none"."""
        ...

    def body(self, asked: Asked) -> dict[str, Any]:
        """The request as JSON."""
        ...

    def neutral(self) -> Mapping[str, Any]:
        """Fields of the body that a server need not know, with the value at which leaving them out changes nothing."""
        ...

    def said(self, answer: Any, where: str) -> Said:
        """An answer's JSON as a record.

        Raises:
            ProviderUnavailable: it has another shape, or says that the server gave up.
            ProviderError: the answer is withheld.
        """
        ...

    def pieces(self, lines: Iterable[bytes], where: str) -> Iterator[str | Said]:
        """An answer that comes line by line: its text in pieces, then the record of all of it. Raises as `said`."""
        ...

    def context_length(self, connection: Connection, model: str, *, end: float) -> int | None:
        """Tokens of the model's context; None where the server does not say. Raises as `Connection.get`."""
        ...


def without(body: Mapping[str, Any], refused: frozenset[str], neutral: Mapping[str, Any]) -> dict[str, Any]:
    """A body without the fields that the server refuses; one whose value matters stays, for the server to say so."""
    return {
        name: value
        for name, value in body.items()
        if name not in refused or (name in neutral and value != neutral[name])
    }


def count(value: Any) -> int | None:
    """A number of tokens; None for anything that is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST:
        return None
    return value


def text_of(value: Any, where: str) -> str:
    """The content of a message: text, nothing, or a list of parts.

    Raises:
        ProviderUnavailable: it is something else.
    """
    if value is None:
        return ""
    if isinstance(value, list):
        value = "".join(str(part.get("text", "")) for part in value if isinstance(part, Mapping))
    if not isinstance(value, str):
        raise wrong_shape(where, f"content that is no text, but {type(value).__name__}")
    # Half a surrogate pair may be escaped in JSON; no text that is passed on may hold one.
    return value.encode("utf-8", "replace").decode("utf-8")


def object_of(line: bytes, where: str) -> Mapping[str, Any]:
    """The JSON object in one line of a stream.

    Raises:
        ProviderUnavailable: there is none.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise wrong_shape(where, "a line that is no JSON") from error
    if not isinstance(found, Mapping):
        raise wrong_shape(where, "a line that is no JSON object")
    return found


def wrong_shape(where: str, what: str) -> ProviderUnavailable:
    """The error of an answer in a shape that is not known."""
    return ProviderUnavailable(f"{where} answers in another shape than that of a chat: {what}.")


def broken_off(where: str) -> ProviderUnavailable:
    """The error of an answer that stops before its end."""
    return ProviderUnavailable(f"{where}: the answer broke off before its end.")
