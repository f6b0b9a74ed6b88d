"""A configuration file on its way to records: where its settings stand, and what is said about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from llamalab.arena.settings import at
from llamalab.engines.options import nearest
from llamalab.errors import ConfigError, LlamalabError
from llamalab.scoring.policy import Policy, make_policy

_PENALTIES = {"repeat_penalty": 1.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}

_Section = TypeVar("_Section", bound=BaseModel)


@dataclass(slots=True)
class Reading:
    """A file on its way to a configuration.

    Attributes:
        path: of the file.
        lines: of its settings.
        said: what was left open, and how it was filled.
    """

    path: Path
    lines: dict[str, int]
    said: list[str] = field(default_factory=list)

    def refuse(self, place: str, what: str) -> NoReturn:
        """Raise the error of one setting."""
        raise ConfigError(f"{at(self.path, self.lines, place)}: {what}")

    def parsed(self, kind: type[_Section], content: Any, place: str) -> _Section:
        """A section of the file."""
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            fault = error.errors()[0]
            names = [str(part) for part in fault["loc"] if "[" not in str(part) and part != "str"]  # of unions
            where = ".".join([place, *names] if place else names)
            if fault["type"] == "extra_forbidden":
                self.refuse(where, f"there is no setting {names[-1]!r} here.{nearest(names[-1], _known(kind, names))}")
            if fault["type"] == "missing":
                self.refuse(where, f"the setting {names[-1]!r} is missing.")
            message = fault["msg"].removeprefix("Value error, ")
            self.refuse(where, f"it cannot be {fault['input']!r}: {message[0].lower()}{message[1:]}.")

    def beside(self, name: str) -> Path:
        """A path of the file; a relative one starts at the file's own folder."""
        path = Path(name).expanduser()
        return path if path.is_absolute() else self.path.parent / path

    def policy(self, name: str, settings: Mapping[str, Any], place: str) -> Policy:
        """A policy from its settings."""
        try:
            return make_policy(name, settings)
        except LlamalabError as error:
            found = {key: re.search(rf"\b{re.escape(key)}\b", str(error)) for key in settings}
            named = {key: match.start() for key, match in found.items() if match}  # the first is the one it is about
            self.refuse(f"{place}.{min(named, key=lambda key: named[key])}" if named else place, str(error))


def check_penalties(reading: Reading, settings: dict[str, Any], place: str) -> None:
    """Take penalties that are off out of a policy's settings.

    Raises:
        ConfigError: one that is on.
    """
    for name, off in _PENALTIES.items():
        if settings.pop(name, off) not in (None, off):
            reading.refuse(
                f"{place}.{name}",
                "a policy with a repetition penalty cannot be scored: what it does to a token depends on which tokens "
                f"came before, and no scorer repeats that. Leave {name} out, or set it to {off:g}.",
            )


def _known(kind: type[BaseModel], names: Sequence[str]) -> list[str]:
    """Names of the section that an unknown name stands in."""
    for name in names[:-1]:
        inner = kind.model_fields[name].annotation if name in kind.model_fields else None
        found = [each for each in (inner, *get_args(inner)) if isinstance(each, type) and issubclass(each, BaseModel)]
        if found:
            kind = found[0]
    return list(kind.model_fields)
