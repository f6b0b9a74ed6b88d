"""What a schema is worth on a server, found out by a question that nobody answers as its schema demands.

Some servers take a schema and ignore it, and some take only schemas of a certain form. So the first question has a
schema with a property that may be left out, which a strict server refuses, and a value that nobody would say who is not
made to.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llamalab.engine import SamplingParams, SchemaSupport, Usage
from llamalab.engines.remote_schema import ANY_OBJECT, json_of
from llamalab.engines.remote_server import RemoteServer, refuses_a_schema
from llamalab.engines.remote_shape import SUPPORT, Means
from llamalab.errors import ProviderError

_CANARY = "k7q"
_ONLY_THIS = {"type": "string", "enum": [_CANARY]}
_SCHEMAS: Mapping[Means, Mapping[str, Any]] = {
    "schema": {
        "type": "object",
        "properties": {"canary": _ONLY_THIS, "again": _ONLY_THIS},
        "required": ["canary"],
        "additionalProperties": False,
    },
    "strict": {
        "type": "object",
        "properties": {"canary": _ONLY_THIS},
        "required": ["canary"],
        "additionalProperties": False,
    },
    "json": ANY_OBJECT,
}
_PARAMS = SamplingParams(max_tokens=512)  # a model that thinks first needs some; and some have no other temperature
_SAID: Mapping[Means, str] = {
    "schema": "the server holds every answer to the schema",
    "strict": "the server holds every answer to the schema, put in the form that it takes",
    "json": "the server gives JSON, and is only asked to follow the schema",
    "none": "the server is only asked for JSON that follows the schema",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """What a server made of a schema.

    Attributes:
        support: what a schema is worth there.
        said: in a sentence.
        usage: tokens that finding out took.
    """

    support: SchemaSupport
    said: str
    usage: Usage = field(default_factory=Usage)


def probe(server: RemoteServer, *, deadline: float | None = None, cancel: threading.Event | None = None) -> Probe:
    """Find out by a few questions what a schema is worth on a server, which uses that from now on.

    Where it is known, nothing is asked.

    Raises:
        ProviderUnavailable, ProviderError: the server cannot be asked.
        Cancelled: the flag was set.
    """
    spent, last = Usage(), ""
    order = server.shape.means
    for means in () if server.known else order[order.index(server.means) :]:
        # Who takes a schema and ignores it ignores it in another form as well.
        if means == "none":
            last = "held"
        elif means != "strict" or last != "ignored":
            last, usage = _outcome(server, means, deadline, cancel)
            spent = together(spent, usage)
        if last == "held":
            server.settle(means)
            break
    return Probe(SUPPORT[server.means], f"{_SAID[server.means]}.", spent)


def together(one: Usage, other: Usage) -> Usage:
    """The tokens of two replies."""
    return Usage(
        one.fresh + other.fresh,
        one.cached + other.cached,
        one.output + other.output,
        one.reasoning + other.reasoning,
    )


def _outcome(
    server: RemoteServer, means: Means, deadline: float | None, cancel: threading.Event | None
) -> tuple[Literal["held", "ignored", "refused"], Usage]:
    """What the server makes of a schema by `means`, and what finding out took."""
    question = 'Say hello as JSON: an object with the key "greeting".' if means == "json" else "Say hello."
    turns = [{"role": "user", "content": question}]
    while True:
        asked = server.asked_by(means, turns, _PARAMS, _SCHEMAS[means])
        try:
            said = server.said(asked, end=deadline, cancel=cancel)
        except ProviderError as error:
            if server.learns_a_field(error, asked):
                continue
            if refuses_a_schema(error):
                return "refused", Usage()
            raise
        answer = json_of(said.text)
        held = isinstance(answer, dict) and (means == "json" or answer.get("canary") == _CANARY)
        return "held" if held else "ignored", said.usage or Usage()
