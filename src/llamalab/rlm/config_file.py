"""A `config.toml` on its way to a configuration: what may stand in it, on which line, and what is said about it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llamalab.engines import PROVIDERS, REMOTE
from llamalab.engines.options import nearest
from llamalab.errors import ConfigError
from llamalab.rlm.config import ProviderSettings, RlmConfig, apart, default_config, unpriced

ELSEWHERE = (
    "phased_threshold",
    "target_analysis_size",
    "max_reduction_passes",
    "level_priority",
    "dsl",
    "wasm",
    "cli",
    "llm_delegation",
)
"""Settings of the program that the format comes from which have no meaning here: said, and passed over."""

_KEY = re.compile(r"""\s*(?:"(?P<quoted>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[A-Za-z0-9_-]+))\s*[=.]""")
_HEADER = re.compile(r"\s*(?P<open>\[\[?)\s*(?P<name>[A-Za-z0-9_.\"' -]+?)\s*\]")
_AT = re.compile(r"\s*\(at (?:line (?P<line>\d+), column \d+|end of document)\)$")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INDEX = re.compile(r"^providers\.(\d+)")
_DIGITS = re.compile(r"[0-9][0-9_]{4000,}")
_SHOWN = 60  # characters of a value that is wrong

Count = Annotated[int, Field(ge=1, le=10**12)]
Price = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Provider(BaseModel):
    """See `ProviderSettings`; what is not named here is an option of the engine or the endpoint."""

    model_config = ConfigDict(extra="allow", strict=True)

    provider_type: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]
    role: Literal["root", "sub", "both"] = "both"
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 8
    price_in: Price = 0.0
    price_cached: Price | None = None
    price_out: Price = 0.0


class _File(_Section):
    """See `RlmConfig`."""

    max_iterations: Count = 20
    max_sub_calls: Annotated[int, Field(ge=0, le=10**12)] = 50
    max_depth: Annotated[int, Field(ge=0, le=100)] = 3
    max_tokens: Count | None = None
    max_seconds: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    max_cost: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    output_limit: Annotated[int, Field(ge=100, le=10**7)] = 10_000
    bypass_enabled: bool = True
    bypass_threshold: Annotated[int, Field(ge=0, le=10**12)] | Literal["auto"] = "auto"
    protocol: Literal["auto", "compact", "full"] = "auto"
    turn_tokens: Count | None = None
    sub_tokens: Count = 512
    providers: list[dict[str, Any]] = Field(default_factory=list)


@dataclass(slots=True)
class _Reading:
    path: Path
    lines: Mapping[str, int]
    said: list[str] = field(default_factory=list)

    def at(self, place: str) -> str:
        """File, line and name of a setting; of one that is missing, the line of what it should stand in."""
        above = place
        while above and above not in self.lines:
            above = above.rpartition(".")[0]
        line = f", line {self.lines[above]}" if above else ""
        return f"{self.path}{line}, {_INDEX.sub(_ordinal, place)}"

    def refuse(self, place: str, what: str) -> NoReturn:
        raise ConfigError(f"{self.at(place)}: {what}")


def read_config(path: Path) -> RlmConfig:
    """See `llamalab.rlm.config.load_config`."""
    text = _text(path)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_not_toml(path, str(error), text)) from None
    except ValueError:  # Python reads integers of so many digits only
        at = _DIGITS.search(text)
        line = text.count("\n", 0, at.start()) + 1 if at is not None else 1
        raise ConfigError(f"{path}, line {line}: this integer has more digits than any setting takes.") from None
    except RecursionError:
        raise ConfigError(f"{path} is no configuration: brackets stand in brackets, hundreds deep.") from None
    reading = _Reading(path, setting_lines(text))
    for name in ELSEWHERE:
        if content.pop(name, None) is not None:
            reading.said.append(f"{reading.at(name)}: this has no meaning here and is passed over.")
    blocks = content.get("providers", [])
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        reading.refuse("providers", "each model stands in a block of its own, headed [[providers]], with two brackets.")
    file = _parsed(reading, _File, content, "")
    given = {name: getattr(file, name) for name in _File.model_fields if name != "providers"}
    if not file.providers:
        return replace(default_config(), path=path, said=tuple(reading.said), **given)
    providers = apart([_provider(reading, block, f"providers.{n}") for n, block in enumerate(file.providers)])
    _check_roles(reading, providers)
    if file.max_cost is not None:
        _check_prices(reading, providers)
    return RlmConfig(providers, path=path, said=tuple(reading.said), **given)


def setting_lines(text: str) -> dict[str, int]:
    """The line of each setting of a TOML file, from 1, by its place: "max_depth", "providers.0.model".

    Settings inside an inline table or a list stand on the line of the name in front of it.
    """
    lines: dict[str, int] = {}
    tables: dict[str, int] = {}
    inside = ""
    for number, line in _outside_strings(text):
        if header := _HEADER.match(line):
            inside = ".".join(part.strip(" \"'") for part in header["name"].split("."))
            if header["open"] == "[[":
                tables[inside] = tables.get(inside, -1) + 1
                lines.setdefault(inside, number)
                inside = f"{inside}.{tables[inside]}"
            first, _, rest = inside.partition(".")
            if rest and not rest[0].isdigit() and first in tables:  # [providers.extra] belongs to the block above it
                inside = f"{first}.{tables[first]}.{rest}"
            lines.setdefault(inside, number)
        elif key := _KEY.match(line):
            name = next(found for found in key.groups() if found is not None)
            lines.setdefault(f"{inside}.{name}" if inside else name, number)
    return lines


def _outside_strings(text: str) -> Iterator[tuple[int, str]]:
    """The lines that do not begin inside a text of several lines, with their numbers."""
    open_quote = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not open_quote:
            yield number, line
        rest = line
        while rest:
            quote = open_quote or next(iter(sorted((q for q in ('"""', "'''") if q in rest), key=rest.index)), "")
            if not quote or quote not in rest:
                break
            rest = rest[rest.index(quote) + 3 :]
            open_quote = "" if open_quote else quote


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error


def _not_toml(path: Path, said: str, text: str) -> str:
    found = _AT.search(said)
    line = f"line {found['line']}" if found and found["line"] else f"line {max(len(text.splitlines()), 1)}"
    what = _AT.sub("", said)
    return f"{path}, {line}: this is not valid TOML: {what[0].lower()}{what[1:]}."


def _provider(reading: _Reading, block: Mapping[str, Any], place: str) -> ProviderSettings:
    if "api_key" in block:  # before anything else, so that no message repeats it
        reading.refuse(
            f"{place}.api_key",
            "a key does not belong into a file: put it into the environment, and name the variable in api_key_env.",
        )
    variable = block.get("api_key_env")
    if variable is not None and not (isinstance(variable, str) and _VARIABLE.fullmatch(variable)):
        reading.refuse(f"{place}.api_key_env", "this is the name of an environment variable, and not the key itself.")
    own = _parsed(reading, _Provider, block, place)
    known = [*PROVIDERS, *REMOTE]
    if own.provider_type not in known:
        reading.refuse(
            f"{place}.provider_type",
            f"there is no provider {own.provider_type!r}.{nearest(own.provider_type, known)}",
        )
    options = own.model_extra or {}
    _check_options(reading, own.provider_type, options, place)
    fields = own.model_dump(include=set(_Provider.model_fields)) | {"name": own.name or ""}
    return ProviderSettings(**fields, options=options)


def _check_options(reading: _Reading, provider: str, options: Mapping[str, Any], place: str) -> None:
    """Refuse options that the provider does not have; those of engines other than llama.cpp are checked on loading."""
    if provider in REMOTE:
        from llamalab.engines.remote_options import OPTIONS, check_options

        names: Sequence[str] = OPTIONS
    elif provider == "llama_cpp":
        from dataclasses import fields

        from llamalab.engines.options import Options, parse_options

        names = [each.name for each in fields(Options)]
    else:
        return
    for name in options:
        if name not in names:
            known = [*_Provider.model_fields, *names]
            reading.refuse(f"{place}.{name}", f"there is no such setting of {provider}.{nearest(name, known)}")
    try:
        if provider in REMOTE:
            check_options(options)
        else:
            parse_options(options)
    except ConfigError as error:
        named = next((name for name in options if re.search(rf"\b{re.escape(name)}\b", str(error))), "")
        reading.refuse(f"{place}.{named}" if named else place, str(error))


def _check_roles(reading: _Reading, providers: Sequence[ProviderSettings]) -> None:
    roles = {each.role for each in providers}
    if not roles & {"root", "both"}:
        reading.refuse("providers.0.role", 'no provider steers: one needs role = "root" or "both".')
    if not roles & {"sub", "both"}:
        reading.said.append(f'{reading.path}: no provider has the role "sub", so the root\'s answer sub-questions too.')


def _check_prices(reading: _Reading, providers: Sequence[ProviderSettings]) -> None:
    for number, each in enumerate(providers):
        if unpriced(each):
            reading.refuse(
                f"providers.{number}",
                f"max_cost cannot be held without prices: give price_in and price_out of {each.spec}, for a million "
                "tokens each.",
            )


def _parsed(reading: _Reading, kind: type[Any], content: Mapping[str, Any], place: str) -> Any:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        names = [str(part) for part in fault["loc"] if str(part) in content or isinstance(part, int)] or [
            str(fault["loc"][0])
        ]
        where = ".".join([place, *names] if place else names)
        if fault["type"] == "extra_forbidden":
            reading.refuse(where, f"there is no such setting.{nearest(names[-1], list(kind.model_fields))}")
        if fault["type"] == "missing":
            reading.refuse(where, "it is missing.")
        value = repr(fault["input"])
        shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
        message = fault["msg"].removeprefix("Value error, ")
        reading.refuse(where, f"it cannot be {shown}: {message[0].lower()}{message[1:]}.")


def _ordinal(match: re.Match[str]) -> str:
    """ "providers.0" as people count: provider 1."""
    return f"provider {int(match[1]) + 1}"
