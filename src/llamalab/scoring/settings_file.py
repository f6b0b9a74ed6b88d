"""Files of settings, in YAML: what they say, and on which line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llamalab.errors import ConfigError

_MOST = 100_000  # settings
_TOO_DEEP = "its settings stand in each other too deeply, or hold themselves. Write them out, a few levels deep."


def read_settings(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: it cannot be read, or is no YAML in which each name is given once; names file and line.
    """
    text = _text(path)
    try:
        return yaml.load(text, _UniqueKeys)
    except RecursionError:
        raise ConfigError(f"{path}: {_TOO_DEEP}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_at_line(error)}.") from error


def lines_of(path: Path) -> dict[str, int]:
    """The line of each setting of a YAML file, from 1, by its dotted name: `policies.p0.model`, `targets.0`.

    Raises:
        ConfigError: as `read_settings`.
    """
    lines: dict[str, int] = {}
    try:
        _mark(yaml.compose(_text(path), yaml.SafeLoader), "", lines)
    except RecursionError:
        raise ConfigError(f"{path}: {_TOO_DEEP}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_at_line(error)}.") from error
    if len(lines) > _MOST:
        raise ConfigError(f"{path} has more than {_MOST:,} settings, most by references. Write out what is meant.")
    return lines


def _mark(node: Any, place: str, lines: dict[str, int]) -> None:
    if len(lines) > _MOST:  # references to references: a few lines can stand for billions
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{place}.{key.value}" if place else str(key.value)
            lines[name] = key.start_mark.line + 1
            _mark(value, name, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[f"{place}.{number}"] = value.start_mark.line + 1
            _mark(value, f"{place}.{number}", lines)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML in which a name given twice is an error: the second would silently take the first one's place."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the loader has it, after a look for names that occur twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if key.tag != "tag:yaml.org,2002:merge" and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", key.start_mark)
            seen.add(name)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def _at_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return problem if mark is None else f"line {mark.line + 1}: {problem}"
