"""The configuration of a run, `config.toml`: limits, when to answer directly, and the providers of root and sub.

Every mistake is a `ConfigError` with file, line and name of the setting, and what to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

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
        providers: at least one for the root; where none is for sub, the root's answer sub-questions as well.
        max_iterations, max_sub_calls, max_depth, max_tokens, max_seconds, max_cost: of the budget.
        output_limit: characters of one result that the root is shown.
        bypass_enabled: answer directly where that is better.
        bypass_threshold: characters of context below which a direct answer is asked for, or "auto": compare tokens.
        protocol: what the root speaks.
        turn_tokens: longest reply of a root's turn, tokens; None: the longest command.
        sub_tokens: longest reply of a sub call, tokens.
        path: of the file; None without one.
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
    said: tuple[str, ...] = ()


def load_config(path: Path) -> RlmConfig:
    """The configuration in a TOML file. Models and endpoints need not be there before they are used.

    Raises:
        ConfigError: the file cannot be read, or a setting has a wrong name or value.
    """
    raise NotImplementedError


def default_config() -> RlmConfig:
    """Pico as root and sub."""
    return RlmConfig((ProviderSettings("llama_cpp", "pico", name="pico"),))


def with_models(config: RlmConfig, *, root: str | None = None, sub: str | None = None) -> RlmConfig:
    """The configuration with other models: model specs for the root, for sub-questions, or both.

    Raises:
        ProviderError: a spec that names no provider.
    """
    raise NotImplementedError
