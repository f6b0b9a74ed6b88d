"""Answers that a JSON schema types: from a root's words to a value, checked by the grammar of the schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from llamalab.errors import InputError, SchemaError
from llamalab.rlm.commands import strict_json
from llamalab.rlm.protocol import NOT_FOUND

_COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


def check_schema(schema: Mapping[str, Any]) -> None:
    """See that answers can be held to a schema.

    Raises:
        SchemaError: it is none, or one that cannot be compiled.
    """
    try:
        text = json.dumps(dict(schema), allow_nan=False)
    except RecursionError:
        raise SchemaError("The schema of the answer is nested too deeply.") from None
    except ValueError:
        raise SchemaError(
            "The schema of the answer is not JSON: it holds itself, or a number in it is infinite, none, or has "
            "thousands of digits."
        ) from None
    except TypeError as error:
        raise SchemaError(f"The schema of the answer is not JSON: {error}.") from None
    _matcher(text)


def read_answer(schema: Mapping[str, Any], text: str) -> Any:
    """The value of an answer; None for one that says that nothing was found.

    An answer in plain words becomes text where the schema asks for text, and the only field of an object that has one.

    Raises:
        InputError: it is no value of the schema; says what to give instead.
    """
    if text.strip().strip('"') == NOT_FOUND:
        return None
    values: list[Any] = []
    with suppress(ValueError, RecursionError):
        values.append(strict_json(text))
    values.append(text)  # where the schema asks for text, text that looks like a number stays text
    fields = schema.get("properties")
    if isinstance(fields, Mapping) and len(fields) == 1:
        values += [{next(iter(fields)): value} for value in tuple(values)]
    for value in values:
        if _holds(schema, value):
            return value
    raise InputError(f"the answer is no value of the schema {json.dumps(dict(schema))[:300]}")


def _holds(schema: Mapping[str, Any], value: Any) -> bool:
    text = json.dumps(_in_order(schema, value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return False
    matcher = _matcher(json.dumps(dict(schema))).deep_copy()
    return bool(matcher.consume_tokens(list(data)) and matcher.is_accepting())


@lru_cache(maxsize=8)
def _matcher(schema: str) -> Any:
    from llguidance import LLMatcher, LLTokenizer

    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_COMPACT)  # type: ignore[arg-type]
        matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:400]
        raise SchemaError(f"The schema of the answer cannot be compiled: {why}") from None
    if matcher.is_error():
        why = " ".join(matcher.get_error().split())[:400]
        raise SchemaError(f"The schema of the answer cannot be compiled: {why}")
    return matcher


def _in_order(schema: Mapping[str, Any], value: Any) -> Any:
    """A value with the keys of its objects in the schema's order, in which the grammar expects them."""
    if isinstance(value, list):
        items = schema.get("items")
        return [_in_order(items, each) for each in value] if isinstance(items, Mapping) else value
    properties = schema.get("properties")
    if not isinstance(value, dict) or not isinstance(properties, Mapping):
        return value
    ordered = sorted(value, key=lambda key: list(properties).index(key) if key in properties else len(properties))
    return {
        key: _in_order(properties[key], value[key]) if isinstance(properties.get(key), Mapping) else value[key]
        for key in ordered
    }
