"""Settings in JSON files: read once, their values checked as they are asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from llamalab.errors import ModelFileError

_MOST = 2**31
"""Above any size of a model, and what positions and ids in 32 bits can count."""

_DEEPEST = 100
"""Levels of lists and objects: what is made from them is printed and walked through, a call for each level."""

_SHOWN = 60


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; every text in it is valid Unicode.

    Raises:
        ModelFileError: unreadable, not JSON, or no object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # halves of pairs may be escaped, but not alone
            json.dumps(content, ensure_ascii=False).encode()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is damaged: it is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} is damaged: it is no JSON object.")
    if _is_deep(content):
        raise ModelFileError(f"{path} is damaged: there are lists in lists in it, {_DEEPEST} deep and more.")
    return content


def read_json_if_there(path: Path) -> dict[str, Any]:
    """As `read_json`; empty where there is no such file."""
    return read_json(path) if path.is_file() else {}


class Settings:
    """A JSON object of a file. A key whose value is null counts as one that is not there.

    Attributes:
        values: as they stand in the file.
        path: of the file, for messages.
        within: of a part of the file, its place there: "model".
    """

    def __init__(self, values: Mapping[str, Any], path: Path, within: str = "") -> None:
        self.values = values
        self.path = path
        self.within = within

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str) -> Any:
        """The value as it stands there; None where it is missing."""
        return self.values.get(key)

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """An integer from `least` up to what 31 bits hold; a key without a default is needed."""
        value = self._needed(key, default)
        if type(value) is not int or not least <= value < _MOST:
            self.refuse(key, "a positive integer below 2^31" if least else "an integer from 0 to below 2^31")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._needed(key, default)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            self.refuse(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._needed(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def text(self, key: str) -> str:
        """A text."""
        value = self._needed(key, None)
        if not isinstance(value, str):
            self.refuse(key, "a text")
        return value

    def entries(self, key: str, default: list[Any] | None = None) -> list[Any]:
        """A list of anything."""
        value = self._needed(key, default)
        if not isinstance(value, list):
            self.refuse(key, "a list")
        return value

    def part(self, key: str) -> Settings:
        """An object within this one."""
        value = self._needed(key, None)
        if not isinstance(value, dict):
            self.refuse(key, "an object")
        return Settings(value, self.path, self._place(key))

    def refuse(self, key: str, wanted: str) -> NoReturn:
        """Raise a ModelFileError that names the file, the key, what stands there and what should."""
        raise ModelFileError(f"{self.path}: {self._place(key)} is {shown(self.values.get(key))}, not {wanted}.")

    def _needed(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelFileError(f"{self.path} lacks the key {self._place(key)!r}.")
        return value

    def _place(self, key: str) -> str:
        return f"{self.within}.{key}" if self.within else key


def shown(value: object) -> str:
    """A value for a message: as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _is_deep(content: object) -> bool:
    level: list[Any] = [content]
    for _ in range(_DEEPEST):
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return False
    return True
