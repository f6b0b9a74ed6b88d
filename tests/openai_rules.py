"""What OpenAI refuses of a schema in strict mode, in its own words, as users have reported them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KNOWN = {
    *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref", "$defs"),
    *("description", "title", "pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum"),
    *("exclusiveMaximum", "minItems", "maxItems"),
}


def refusal(schema: Mapping[str, Any]) -> str | None:
    """Why it refuses a schema; None where it does not."""
    said = _root(schema) or _part(schema, schema, ())
    return None if said is None else f"Invalid schema for response_format 'answer': {said}"


def _root(schema: Mapping[str, Any]) -> str | None:
    if schema.get("type") != "object":
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{schema.get('type')}\"'."
    return None


def _part(part: Any, root: Mapping[str, Any], where: tuple[str, ...]) -> str | None:
    at = f"In context={where}"
    if not isinstance(part, dict):
        return f"{at}, {part!r} is not of type 'object'."
    if unknown := sorted(set(part) - KNOWN):
        return f"{at}, '{unknown[0]}' is not permitted."
    if "$ref" in part:
        name = part["$ref"].removeprefix("#/$defs/")
        return None if name in root.get("$defs", {}) else f"{at}, reference can only point to definitions."
    inner: list[tuple[str, Any]] = [(f"$defs.{name}", each) for name, each in part.get("$defs", {}).items()]
    inner += [(f"anyOf.{n}", each) for n, each in enumerate(part.get("anyOf", []))]
    if "anyOf" not in part:
        if "type" not in part:
            return f"{at}, schema must have a 'type' key."
        if part["type"] == "object":
            if part.get("additionalProperties") is not False:
                return f"{at}, 'additionalProperties' is required to be supplied and to be false."
            missing = sorted(set(part.get("properties", {})) - set(part.get("required", [])))
            if missing:
                return (
                    f"{at}, 'required' is required to be supplied and to be an array including every key in "
                    f"properties. Missing '{missing[0]}'."
                )
            inner += list(part.get("properties", {}).items())
        if part["type"] == "array":
            if "items" not in part:
                return f"{at}, array schema missing items."
            inner.append(("items", part["items"]))
    return next((said for name, each in inner if (said := _part(each, root, (*where, name)))), None)
