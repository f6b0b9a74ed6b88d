"""JSON lines as they are read: every fault names its file, line and field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llamalab.errors import InputError

LEAST_LOGPROB = -1e9
"""Nats. No response is long enough for less, and squares of it are finite."""

_FARTHEST = 1e12  # from 0
_MARK = b"\xef\xbb\xbf"  # byte order mark


@dataclass(frozen=True, slots=True)
class Line:
    """One object of a file.

    Attributes:
        path: of the file.
        number: of the line, from 1.
        fields: of the object.
        inside: the names of the fields that the object stands in, for messages; each with a dot behind it.
    """

    path: Path
    number: int
    fields: Mapping[str, Any]
    inside: str = ""

    def refuse(self, what: str) -> NoReturn:
        """Raise the `InputError` of this line."""
        raise InputError(f"{self.path}, line {self.number}: {what}")

    def text(self, name: str) -> str:
        """A field that must be text."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            self.refuse(f"the field '{self.inside}{name}' must be text, and {_found(self.fields, name)}.")
        return value

    def number_or_none(self, name: str, least: float = -math.inf, most: float = math.inf) -> float | None:
        """A field that must be a number in a range, or null, or absent."""
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
            self.refuse(f"the field '{self.inside}{name}' must be a number, and {_found(self.fields, name)}.")
        if abs(value) > _FARTHEST and (least, most) == (-math.inf, math.inf):
            self.refuse(
                f"the field '{self.inside}{name}' is beyond {_FARTHEST:g}: squares of it would be no numbers any more."
            )
        if not least <= value <= most:
            self.refuse(f"the field '{self.inside}{name}' is {value:g}; it must be {_bounds(least, most)}.")
        return float(value)

    def real(self, name: str, least: float = -math.inf, most: float = math.inf) -> float:
        """A field that must be a number in a range."""
        value = self.number_or_none(name, least, most)
        if value is None:
            self.refuse(f"the field '{self.inside}{name}' must be a number, and {_found(self.fields, name)}.")
        return value

    def logprob_or_none(self, name: str) -> float | None:
        """A field that must be a log probability, or null, or absent."""
        value = self.number_or_none(name, most=0.0)
        if value is not None and value < LEAST_LOGPROB:
            self.refuse(
                f"the field '{self.inside}{name}' is {value:g}; no response has a log probability below "
                f"{LEAST_LOGPROB:g}."
            )
        return value

    def object(self, name: str) -> Mapping[str, Any]:
        """A field that must be an object."""
        value = self.fields.get(name)
        if not isinstance(value, dict):
            self.refuse(f"the field '{self.inside}{name}' must be an object, and {_found(self.fields, name)}.")
        return value

    def part(self, name: str) -> Line:
        """The object in a field, as a line of its own that reports the same place."""
        return Line(self.path, self.number, self.object(name), f"{self.inside}{name}.")


def read_lines(path: Path, *, growing: bool = True) -> Iterator[Line]:
    """The objects of a file, in order; blank lines are none.

    Args:
        path: of the file.
        growing: it is one that a run writes, so a last line that was cut off is none; else it is an error.

    Raises:
        InputError: the file cannot be read, or a line is no JSON object.
    """
    try:
        with path.open("rb") as file:
            for number, content in enumerate(file, 1):
                line = content.removeprefix(_MARK) if number == 1 else content
                if line.strip():
                    try:
                        fields = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        if growing and not content.endswith(b"\n"):
                            return
                        raise InputError(f"{path}, line {number}: not valid JSON ({error}).") from None
                    if not isinstance(fields, dict):
                        raise InputError(f"{path}, line {number}: no JSON object.")
                    yield Line(path, number, fields)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object.")
    return found


def _found(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
        return "is missing"
    return f"is {json.dumps(fields[name])[:60]}"


def _bounds(least: float, most: float) -> str:
    if least == -math.inf:
        return f"at most {most:g}"
    return f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
