"""A schema for a model that runs elsewhere: as it is asked for in words, and the JSON in an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llamalab.engine import Schema, SchemaSupport
from llamalab.engines.remote_shape import SUPPORT, Asked
from llamalab.errors import SchemaError

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of any JSON object: for conversations that describe in their own words what it holds."""


def schema_object(schema: Schema | None) -> dict[str, Any] | None:
    """A schema as an object.

    Raises:
        SchemaError: it is none.
    """
    if schema is None:
        return None
    try:
        value = json.loads(schema) if isinstance(schema, str) else json.loads(json.dumps(dict(schema)))
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(f"The JSON schema is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise SchemaError(f"A JSON schema is an object, not {type(value).__name__}.")
    return value


def with_schema(turns: Sequence[dict[str, Any]], schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conversation with the schema behind its last message: what comes before stays as a cache knows it.

    Any JSON object will do where that is all the schema says; who asks so has described the rest.
    """
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if schema == ANY_OBJECT:
        wish = "Answer with one JSON object and nothing else."
    else:
        wish = f"Answer with one JSON document that follows this JSON schema, and nothing else:\n{text}"
    last = turns[-1]
    if last["role"] == "assistant":
        return [*turns, {"role": "user", "content": wish}]
    return [*turns[:-1], {**last, "content": f"{last['content']}\n\n{wish}"}]


def in_form(text: str, asked: Asked, *, ended: bool) -> tuple[str, SchemaSupport]:
    """An answer in the form of the schema that was asked for, and what the schema was worth.

    Args:
        text: as the server wrote it.
        asked: with a schema.
        ended: by itself; what was cut off has no form to judge.
    """
    mode = SUPPORT[asked.means]
    if asked.strict is not None:
        own = asked.strict.restored(text)
        if own is not None:
            return own, "exact" if asked.strict.exact else "json"
        if ended:
            mode = "json"
    if mode != "exact":
        text = bare(text)
    if ended and not is_json(text):
        mode = "none"
    return text, mode


def bare(text: str) -> str:
    """An answer without what models like to put around JSON: their thoughts, and a fence."""
    text = re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.DOTALL)
    fenced = re.fullmatch(r"\s*```\w*[ \t]*\n(.*?)\n?```\s*", text, flags=re.DOTALL)
    return fenced[1] if fenced else text


def json_of(text: str) -> Any:
    """The value in a text of JSON; None where it is no JSON (or null)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_json(text: str) -> bool:
    """Whether a text is JSON."""
    return json_of(text) is not None or text.strip() == "null"
