"""Options that several commands share, each declared once, as fields of frozen dataclasses.

A command that takes a parameter of such a type gets all its fields as options:

    @app.command()
    @expand_options
    def generate(prompt: str, sampling: SamplingOptions) -> None: ...

An option that was not given is None (or empty), so that the model's or the engine's own default counts.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from llamalab.engine import SamplingParams
from llamalab.errors import ConfigError

MODEL_HELP = (
    "pico, the built-in model, unless you name another: a GGUF file, a folder in Meta's or Hugging Face's format, "
    "hub:ORG/REPO[:QUANTISATION], or a name that `llamalab models` lists. jax: before it runs it in JAX."
)

ModelArgument = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help="The same, as an option.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How tokens are drawn; see `SamplingParams`."""

    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", metavar="N", min=1, help="Most tokens to generate.")
    ] = None
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", metavar="T", min=0, help="0 takes the most probable token.")
    ] = None
    top_k: Annotated[
        int | None, typer.Option(metavar="K", min=0, help="Keep the k most probable tokens; 0 keeps all.")
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(metavar="P", min=0, max=1, help="Keep the smallest set whose mass reaches p; 1 keeps all."),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(metavar="P", min=0, max=1, help="Keep tokens at least p times as probable as the best."),
    ] = None
    repeat_penalty: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="Above 1 makes repetition less likely.")
    ] = None
    frequency_penalty: Annotated[float | None, typer.Option(metavar="X", help="Per earlier occurrence, in logits.")] = (
        None
    )
    presence_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Once a token has occurred, in logits.")
    ] = None
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Of the sampler; without one, each run draws afresh.")
    ] = None
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the response before this text. Repeatable.")
    ] = None

    def params(self, default: SamplingParams, recommended: Mapping[str, Any]) -> SamplingParams:
        """What was given, over what the model's file recommends, over `default`."""
        known = {field.name for field in dataclasses.fields(SamplingParams)}
        values = {name: value for name, value in recommended.items() if name in known} | _set_fields(self)
        if "stop" in values:
            values["stop"] = tuple(values["stop"])
        return dataclasses.replace(default, **values)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the model is loaded; the names are those of `llamalab.load`."""

    n_ctx: Annotated[int | None, typer.Option(metavar="N", min=1, help="Context of one request, tokens.")] = None
    n_batch: Annotated[int | None, typer.Option(metavar="N", min=1, help="Most tokens in one call of the runtime.")] = (
        None
    )
    n_ubatch: Annotated[int | None, typer.Option(metavar="N", min=1, help="Most tokens computed at once.")] = None
    n_threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads; one for each physical core by default.")
    ] = None
    n_gpu_layers: Annotated[
        int | None, typer.Option("--n-gpu-layers", "-g", metavar="N", min=-1, help="Layers on the GPU; -1: all.")
    ] = None
    main_gpu: Annotated[int | None, typer.Option(metavar="N", min=0, help="The GPU for what is not split.")] = None
    tensor_split: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Share of the model that each GPU takes, e.g. 3,1.")
    ] = None
    flash_attn: Annotated[
        bool | None, typer.Option("--flash-attn/--no-flash-attn", help="Flash attention; automatic by default.")
    ] = None
    type_k: Annotated[str | None, typer.Option(metavar="TYPE", help="Type of the K cache: f16, f32, q8_0, ...")] = None
    type_v: Annotated[str | None, typer.Option(metavar="TYPE", help="Type of the V cache: f16, f32, q8_0, ...")] = None
    load_mode: Annotated[str | None, typer.Option(metavar="MODE", help="auto, mmap, mlock or read.")] = None
    adapters: Annotated[
        list[Path] | None, typer.Option("--adapter", metavar="FILE", help="LoRA adapter to apply. Repeatable.")
    ] = None

    def given(self) -> dict[str, Any]:
        """Keyword arguments for `llamalab.load`: what the user set, and one sequence, as a command runs one request.

        Raises:
            ConfigError: `--tensor-split` is no list of numbers.
        """
        values = {"n_seq": 1} | _set_fields(self)
        if "tensor_split" in values:
            try:
                values["tensor_split"] = [float(part) for part in values["tensor_split"].split(",")]
            except ValueError:
                raise ConfigError(
                    f"--tensor-split takes numbers with commas between them, as in 3,1; not '{values['tensor_split']}'."
                ) from None
        return values


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` an option for each field of each dataclass among its parameters."""
    hints = get_type_hints(command, include_extras=True)
    hints.pop("return", None)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        field_hints = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field_hints[field.name]
            )
            for field in dataclasses.fields(groups[name])
        ]

    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    expanded.__name__ = command.__name__
    expanded.__doc__ = command.__doc__
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _set_fields(options: SamplingOptions | EngineOptions) -> dict[str, Any]:
    fields = ((field.name, getattr(options, field.name)) for field in dataclasses.fields(options))
    return {name: value for name, value in fields if value is not None and value != []}
