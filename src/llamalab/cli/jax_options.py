"""Options of the JAX engine, and whether the model that is named runs in it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from llamalab.cli.options import SamplingOptions
from llamalab.errors import ConfigError

ENTROPIX = "entropix"
DtypeOption = Annotated[
    str | None, typer.Option(metavar="TYPE", help="JAX: float32, bfloat16 or float16; by default as the device.")
]
Int8Option = Annotated[bool, typer.Option("--int8", help="JAX: keep the matrices in eight bits.")]
MeshOption = Annotated[
    str | None, typer.Option(metavar="AXIS=N,...", help="JAX: devices to spread over, such as tensor=4.")
]

_SET_BY_ENTROPIX = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True, slots=True)
class JaxOptions:
    """How the JAX engine loads the model and draws; the names are those of `llamalab.load`."""

    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help="JAX: plain, or entropix, by entropy and attention.")
    ] = None
    thresholds: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of entropix: original or fractional, as published.")
    ] = None
    dtype: DtypeOption = None
    int8: Int8Option = False
    widen: Annotated[
        bool, typer.Option("--widen", help="JAX: make float32 of bfloat16 weights when they are loaded.")
    ] = False
    mesh: MeshOption = None
    rope_factor: Annotated[
        float | None, typer.Option(metavar="X", min=1, help="JAX: RoPE scaling other than the files say; 1: none.")
    ] = None

    def given(self, spec: str, sampling: SamplingOptions) -> dict[str, Any]:
        """Keyword arguments for `llamalab.load`: what the user set.

        Args:
            spec: the model that is to be loaded.
            sampling: what was asked of the draws.

        Raises:
            ConfigError: the model runs in llama.cpp; something that has no effect with entropix.
            ModelNotFound, ModelFileError, ProviderError: as `llamalab.load`, where anything was set.
        """
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values = {name: value for name, value in named.items() if value not in (None, False)}
        if not values:
            return {}
        from llamalab.engines import provider_of

        if provider_of(spec) == "llama_cpp":
            raise ConfigError(
                f"{_listed(values)} {'is' if len(values) == 1 else 'are'} for the JAX engine, and {spec} runs in "
                f"llama.cpp. To run it in JAX, name the model as jax:{spec.removeprefix('llama_cpp:')}."
            )
        if self.thresholds is not None and self.sampler != ENTROPIX:
            raise ConfigError("--thresholds is of the entropix sampler: add --sampler entropix.")
        idle = [name for name in _SET_BY_ENTROPIX if getattr(sampling, name) is not None]
        if idle and self.sampler == ENTROPIX:
            raise ConfigError(f"{_listed(idle)} would have no effect: entropix sets these itself, token by token.")
        return values


def _listed(names: Any) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
