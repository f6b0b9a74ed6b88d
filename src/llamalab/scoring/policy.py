"""Policies: a model, a system prompt and sampling parameters are a distribution over responses; and files of them."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llamalab.engines import PROVIDERS, REMOTE, provider_of, split_spec
from llamalab.engines.options import Options, nearest, parse_options
from llamalab.engines.request import check_decoding
from llamalab.errors import ConfigError, ModelFileError, ProviderError
from llamalab.scored import Decoding
from llamalab.scoring.settings_file import read_settings

DATE = "2024-07-26"
"""The day of policies that name none: the one that Llama 3.2's template falls back on."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A distribution over responses.

    Attributes:
        name: what results and messages call it.
        provider: how to reach the model: "llama_cpp", "jax", ..., or a remote one.
        model: a path, "pico", "hub:...", or the provider's own name of it.
        decoding: how it draws from the model's distribution.
        system_prompt: put in front of each conversation; None: none.
        template: name or file of a chat template; None: the model's own.
        seed: of its sampler, for the record. No log probability depends on it.
        date: the day that its template is told when it asks for today's, YYYY-MM-DD. Llama 3's writes it into the
            system message: without a day of its own, a policy would be another one every morning.
        options: of the engine (n_ctx, n_gpu_layers, adapters, ...) or of the endpoint.
    """

    name: str
    provider: str
    model: str
    decoding: Decoding = field(default_factory=Decoding)
    system_prompt: str | None = None
    template: str | None = None
    seed: int | None = None
    date: str = DATE
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def spec(self) -> str:
        """The model spec, provider:model."""
        return f"{self.provider}:{self.model}"

    @property
    def remote(self) -> bool:
        """Whether the model runs elsewhere."""
        return self.provider in REMOTE

    @property
    def template_variables(self) -> dict[str, Any]:
        """What its chat template sees besides the conversation: a clock that stands still."""
        day = datetime.datetime.fromisoformat(self.date)
        return {"strftime_now": day.strftime}

    @property
    def engine_key(self) -> tuple[Any, ...]:
        """Policies with equal keys share one loaded engine."""
        model = os.path.expanduser(self.model)  # noqa: PTH111  (a Path would change what is no path)
        return self.provider, model, _frozen(self.options)


class _Fields(BaseModel):
    """What a policy's settings are called, and their kinds; all others are options of the engine."""

    model_config = ConfigDict(extra="allow", strict=True)

    provider: str | None = None
    model: str
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    order: Literal["truncate_first", "temperature_first"] | None = None
    seed: int | None = None
    system_prompt: str | None = None
    template: str | None = None
    date: str = DATE


def make_policy(name: str, settings: Mapping[str, Any]) -> Policy:
    """A policy from its settings by name; those that are not a policy's are the engine's.

    Without `provider`, the model says it, as in `llamalab.load`. Without `order`, the local engines truncate before
    temperature, as they draw, and remote ones after it.

    Raises:
        ConfigError: a setting with a wrong name, kind or range; temperature 0, which is no distribution.
        ProviderError: no such provider.
        ModelNotFound: no provider was given, and there is no such model to find it from.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    for key in ("model", "template"):
        if isinstance(given.get(key), os.PathLike):
            given[key] = os.fspath(given[key])
    if isinstance(given.get("date"), datetime.date):  # YAML reads a date as one
        given["date"] = given["date"].isoformat()
    try:
        own = _Fields.model_validate(given)
    except ValidationError as error:
        raise ConfigError(_first_fault(error)) from None
    provider, model = _provider(own)
    remote = provider in REMOTE
    order = own.order or ("temperature_first" if remote else "truncate_first")
    decoding = Decoding(own.temperature, own.top_k, own.top_p, own.min_p, order)
    check_decoding(decoding)
    _check_date(own.date)
    options = _options(provider, own.model_extra or {})
    return Policy(name, provider, model, decoding, own.system_prompt, own.template, own.seed, own.date, options)


def load_policies(path: Path) -> dict[str, Policy]:
    """The policies of a YAML file, by name: what stands under its key `policies`.

    Models need not exist before they are used.

    Raises:
        ConfigError: a file that cannot be read, or a setting with a wrong name or value; names file, policy, setting.
        ProviderError: no such provider.
    """
    path = path.expanduser()
    content = read_settings(path)
    policies = content.get("policies") if isinstance(content, dict) else None
    if not isinstance(policies, dict) or not policies:
        raise ConfigError(f"{path} has no policies: they stand under the key 'policies', each with a name of its own.")
    return {str(name): _from_file(path, str(name), settings) for name, settings in policies.items()}


def _from_file(path: Path, name: str, settings: object) -> Policy:
    where = f"{path}, policy '{name}'"
    if not isinstance(settings, dict):
        raise ConfigError(f"{where}: its settings are a mapping (model: ..., temperature: ...), not {settings!r}.")
    try:
        return make_policy(name, {str(key): value for key, value in settings.items()})
    except ProviderError as error:
        raise ProviderError(f"{where}: {error}") from None
    except (ConfigError, ModelFileError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _provider(own: _Fields) -> tuple[str, str]:
    """Provider and model."""
    known = [*PROVIDERS, *REMOTE]
    if own.provider is not None:
        if own.provider not in known:
            raise ProviderError(f"There is no provider {own.provider!r}.{nearest(own.provider, known)}")
        return own.provider, own.model.removeprefix(f"{own.provider}:")
    prefix, _, rest = own.model.partition(":")
    if prefix in REMOTE and rest:
        return prefix, rest
    return provider_of(own.model), split_spec(own.model)[1]


def _check_date(text: str) -> None:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"The setting 'date' must be a day such as {DATE}, not {text!r}.") from None


def _options(provider: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the engine; those of llama.cpp are checked here, others when the engine is loaded.

    Raises:
        ConfigError: one that does not exist.
    """
    options = dict(given)
    if isinstance(adapters := options.get("adapters"), list):  # YAML has no tuples: [path, scale]
        options["adapters"] = [tuple(item) if isinstance(item, list) else item for item in adapters]
    own = list(_Fields.model_fields)
    if provider == "llama_cpp":
        engine = [option.name for option in fields(Options)]
        for name in options:
            if name not in engine:
                raise ConfigError(f"A llama_cpp policy has no setting {name!r}.{nearest(name, [*own, *engine])}")
        parse_options(options)
    return options


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"The setting '{place}' is missing."
    return f"The setting '{place}' cannot be {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}."


def _frozen(value: Any) -> Any:
    """A value that can be a key, equal for equal values."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _frozen(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return os.path.expanduser(os.fspath(value)) if isinstance(value, str | os.PathLike) else value  # noqa: PTH111
