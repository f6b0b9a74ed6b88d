"""Messages as templates get them: checked, and every string in them reachable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llamalab.engine import Message
from llamalab.errors import InputError

ROLES = ("system", "user", "assistant", "tool")
"""Who can speak in a conversation."""


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """`messages` checked, each with its content as one string: text parts are joined by newlines.

    A message may hold more than `role` and `content` (`name`, `tool_calls`, ...): templates see it.

    Raises:
        InputError: no message, no such role, or content that is no text; says which message.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InputError("A conversation is a list of messages, each with a 'role' and a 'content'.")
    if not messages:
        raise InputError("The conversation is empty: give at least one message.")
    return [_checked(message, number) for number, message in enumerate(messages, 1)]


def strings(value: Any) -> Iterator[str]:
    """Every string in a nested value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from strings([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A nested value with `change` done to every string in it, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {map_strings(key, change): map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change) for item in value]
    return value


def _checked(message: object, number: int) -> dict[str, Any]:
    where = f"Message {number}"
    if not isinstance(message, Mapping):
        raise InputError(f"{where} is {type(message).__name__}, not a mapping with 'role' and 'content'.")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InputError(f"{where} has the role {role!r}; a role is one of {', '.join(ROLES)}.")
    if isinstance(content, list | tuple):
        content = "\n".join(_part_text(part, where) for part in content)
    elif content is None and message.get("tool_calls"):
        content = ""
    elif not isinstance(content, str):
        raise InputError(f"{where} ({role}) has {type(content).__name__} as content; content is text.")
    checked = {**message, "role": role, "content": content}
    for text in strings(checked):
        if (position := _lone_surrogate(text)) is not None:
            raise InputError(f"{where} ({role}) is not valid Unicode at character {position}: a lone surrogate.")
    return checked


def _part_text(part: object, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(text := part.get("text"), str):
        return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InputError(f"{where} has a content part of type {kind!r}; only parts of type 'text' with a 'text' are known.")


def _lone_surrogate(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
