"""Schemas of turns that fit into the room that is left: a reply that is held to one is never cut off half way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamalab.rlm.grammar import longest_sentence

_STEPS = ((400, True), (200, True), (100, True), (400, False), (200, False), (100, False), (50, False), (25, False))
"""Characters of the longest text, and whether there is a thought. Few steps: compiled grammars are used again."""


def fitting(schema: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """A schema whose longest sentence has at most `tokens` bytes, so that it takes no more tokens than that.

    Texts become shorter, and the thought is left out where that is not enough. Where nothing is (a typed answer may
    have any length), the schema stays as it is.

    Args:
        schema: of a turn: `anyOf` objects.
        tokens: longest reply.
    """
    if longest_sentence(schema) <= tokens:
        return dict(schema)
    for most, thought in _STEPS:
        shorter = {**schema, "anyOf": [_shortened(branch, most, thought=thought) for branch in schema["anyOf"]]}
        if longest_sentence(shorter) <= tokens:
            return shorter
    return dict(schema)


def fills(schema: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer is exactly as long as a schema lets it be: a model that is held to it had to stop there.

    Args:
        schema: of the turn, as `fitting` gives it.
        answer: of its `final`.
    """
    bounds = (branch.get("properties", {}).get("answer", {}).get("maxLength") for branch in schema["anyOf"])
    return any(len(answer) == most for most in bounds)


def _shortened(branch: Mapping[str, Any], most: int, *, thought: bool) -> dict[str, Any]:
    properties = {
        name: {**field, "maxLength": min(field["maxLength"], most)} if "maxLength" in field else field
        for name, field in branch["properties"].items()
        if thought or name != "thought"
    }
    return {**branch, "properties": properties, "required": [name for name in branch["required"] if name in properties]}
