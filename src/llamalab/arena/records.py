"""Frozen dataclasses as JSON and back: the layout of a file is that of the classes."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from llamalab.errors import InputError

T = TypeVar("T")

_NAMES = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


class _Fault(Exception):
    """What does not fit, and where."""


def write(record: Any, path: Path) -> None:
    """Write a record as JSON, whole or not at all.

    Raises:
        InputError: the file cannot be written.
        ValueError: a number is not finite; None stands for what is not known.
    """
    text = json.dumps(asdict(record), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(text.encode("utf-8", "replace"))
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def read(kind: type[T], path: Path) -> T:
    """Read a record of a class.

    Raises:
        InputError: no such file, no JSON, or a field that is missing, unknown or of another type; it names the field.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    try:
        record: T = from_json(kind, data)
    except _Fault as fault:
        raise InputError(f"{path}: {fault} Write it anew with the version of llamalab that reads it.") from None
    return record


def from_json(kind: Any, data: Any, place: str = "") -> Any:
    """A value of a type, from what JSON makes of it."""
    if is_dataclass(kind):
        return _record(kind, data, place)
    if kind is Any:
        return data
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _expect(data in arguments, data, place, f"one of {', '.join(map(str, arguments))}")
    if origin in (Union, types.UnionType):
        return None if data is None else from_json(next(a for a in arguments if a is not type(None)), data, place)
    if origin is tuple:
        return _tuple(arguments, data, place)
    if origin is Mapping:
        _expect(isinstance(data, dict), data, place, "an object")
        return {key: from_json(arguments[1], value, f"{place}.{key}") for key, value in data.items()}
    if kind is float:
        return float(_expect(isinstance(data, int | float) and not isinstance(data, bool), data, place, "a number"))
    wanted = "true or false" if kind is bool else "text" if kind is str else "a whole number"
    return _expect(isinstance(data, kind) and (kind is bool or not isinstance(data, bool)), data, place, wanted)


def _record(kind: Any, data: Any, place: str) -> Any:
    _expect(isinstance(data, dict), data, place, "an object")
    known = {each.name: each for each in fields(kind)}
    for name in data:
        if name not in known:
            raise _Fault(f"The field '{_at(place, name)}' is not known.")
    for name, each in known.items():
        if name not in data and each.default is MISSING and each.default_factory is MISSING:
            raise _Fault(f"The field '{_at(place, name)}' is missing.")
    hints = _hints(kind)
    return kind(**{name: from_json(hints[name], value, _at(place, name)) for name, value in data.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _tuple(arguments: Sequence[Any], data: Any, place: str) -> tuple[Any, ...]:
    _expect(isinstance(data, list), data, place, "a list")
    if len(arguments) == 2 and arguments[1] is ...:
        return tuple(from_json(arguments[0], value, f"{place}[{i}]") for i, value in enumerate(data))
    _expect(len(data) == len(arguments), data, place, f"a list of {len(arguments)}")
    return tuple(
        from_json(kind, value, f"{place}[{i}]") for i, (kind, value) in enumerate(zip(arguments, data, strict=True))
    )


def _expect(holds: bool, data: Any, place: str, wanted: str) -> Any:
    if not holds:
        raise _Fault(f"The field '{place}' must be {wanted}, not {_NAMES.get(type(data), 'a number')}.")
    return data


def _at(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
