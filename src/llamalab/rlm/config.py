"""The configuration of a run, `config.toml`: limits, when to answer directly, and the providers of root and sub.

Every mistake is a `ConfigError` with file, line and name of the setting, and what to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llamalab.errors import ConfigError
from llamalab.rlm.budget import Role

Roles: TypeAlias = Literal["root", "sub", "both"]
Protocol: TypeAlias = Literal["auto", "compact", "full"]
"""What the root speaks: compact (the one pico knows), full, or auto: compact for pico, full for all others."""


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One `[[providers]]` block.

    Attributes:
        provider_type: "llama_cpp", "jax", "ollama", "deepseek", "openai", ...
        model: as the provider names it.
        role: what it is asked for.
        weight: its share of the calls beside others of the same role.
        name: in journals and messages; the model spec unless given.
        concurrency: calls that it takes at the same time.
        price_in: of a million fresh tokens of prompts.
        price_cached: of a million that the provider had cached; None: as `price_in`.
        price_out: of a million tokens of replies.
        options: of the engine or of `llamalab.engines.remote.RemoteChat` (base_url, api_key_env, n_ctx, ...).
    """

    provider_type: str
    model: str
    role: Roles = "both"
    weight: int = 1
    name: str = ""
    concurrency: int = 8
    price_in: float = 0.0
    price_cached: float | None = None
    price_out: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> str:
        """The model spec, provider:model."""
        return f"{self.provider_type}:{self.model}"


@dataclass(frozen=True, slots=True)
class RlmConfig:
    """A whole configuration. The limits are those of `llamalab.rlm.budget.Limits`; None: none.

    Attributes:
        providers: at least one for the root; where none is for sub, the root's answer sub-questions as well. A file
            that names none means pico.
        max_iterations, max_sub_calls, max_depth, max_tokens, max_seconds, max_cost: of the budget.
        output_limit: characters of one result that the root is shown.
        bypass_enabled: answer directly where that is better.
        bypass_threshold: characters of context below which a direct answer is asked for, or "auto": compare tokens.
        protocol: what the root speaks.
        turn_tokens: longest reply of a root's turn, tokens; None: the longest command.
        sub_tokens: longest reply of a sub call, tokens.
        path: of the file; None without one.
        unnamed: nobody named a root, so it is pico.
        said: what was left open or has no effect here, in sentences.
    """

    providers: tuple[ProviderSettings, ...]
    max_iterations: int = 20
    max_sub_calls: int = 50
    max_depth: int = 3
    max_tokens: int | None = None
    max_seconds: float | None = None
    max_cost: float | None = None
    output_limit: int = 10_000
    bypass_enabled: bool = True
    bypass_threshold: int | Literal["auto"] = "auto"
    protocol: Protocol = "auto"
    turn_tokens: int | None = None
    sub_tokens: int = 512
    path: Path | None = None
    unnamed: bool = False
    said: tuple[str, ...] = ()


def load_config(path: Path) -> RlmConfig:
    """The configuration in a TOML file. Models and endpoints need not be there before they are used.

    Raises:
        ConfigError: the file cannot be read, or a setting has a wrong name or value.
    """
    from llamalab.rlm.config_file import read_config

    return read_config(path.expanduser())


def default_config() -> RlmConfig:
    """Pico as root and sub."""
    return RlmConfig((provider_of_spec("pico"),), unnamed=True)


def provider_of_spec(spec: str, role: Roles = "both") -> ProviderSettings:
    """A model spec ("pico", "ollama:llama3.2:3b", a path) as a provider.

    Raises:
        ModelNotFound, ModelFileError, ProviderError: there is no such model, or no such provider.
    """
    from llamalab.engines import provider_of, split_spec

    return ProviderSettings(provider_of(spec), split_spec(spec)[1], role, name=spec)


def with_models(config: RlmConfig, *, root: str | None = None, sub: str | None = None) -> RlmConfig:
    """The configuration with other models: model specs for the root, for sub-questions, or both.

    A provider with both roles keeps the one that is not replaced; where no file names one, the root's answers
    sub-questions.

    Raises:
        ModelNotFound, ModelFileError, ProviderError: as `provider_of_spec`.
        ConfigError: a model that costs, without prices, under a limit of the cost.
    """
    for spec in (root, sub):
        if spec is not None and config.max_cost is not None and unpriced(provider_of_spec(spec)):
            raise ConfigError(
                f"max_cost cannot be held without prices: give {spec} a [[providers]] block in "
                f"{config.path or 'a file'}, with price_in and price_out, for a million tokens each."
            )
    if root is not None and (root == sub or (sub is None and (config.path is None or config.unnamed))):
        return replace(config, providers=(provider_of_spec(root),), unnamed=False)
    providers = list(config.providers)
    if root is not None:
        providers = [*_without(providers, "root"), provider_of_spec(root, "root")]
    if sub is not None:
        providers = [*_without(providers, "sub"), provider_of_spec(sub, "sub")]
    return replace(config, providers=apart(providers), unnamed=config.unnamed and root is None)


def unpriced(provider: ProviderSettings) -> bool:
    """Whether calls cost money, and nobody has said how much."""
    from llamalab.engines import REMOTE

    paid = provider.provider_type in REMOTE and provider.provider_type not in ("ollama", "litellm")
    address = str(provider.options.get("base_url"))
    local = "://localhost" in address or "://127." in address
    return paid and not local and not (provider.price_in or provider.price_out)


def _without(providers: Sequence[ProviderSettings], role: Role) -> list[ProviderSettings]:
    """The providers with nobody in a role."""
    other: Role = "sub" if role == "root" else "root"
    return [replace(each, role=other) for each in providers if each.role != role]


def apart(providers: Sequence[ProviderSettings]) -> tuple[ProviderSettings, ...]:
    """Each with a name of its own: the model spec, with a number behind it where that is taken."""
    named: dict[str, ProviderSettings] = {}
    for each in providers:
        name, number = each.name or each.spec, 1
        while name in named:
            number += 1
            name = f"{each.name or each.spec} #{number}"
        named[name] = replace(each, name=name)
    return tuple(named.values())
