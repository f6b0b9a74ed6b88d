"""`llamalab memory`: will it fit?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamalab.cli.options import JsonOption, ModelArgument
from llamalab.cli.output import print_json, print_table
from llamalab.errors import ConfigError

if TYPE_CHECKING:
    from llamalab.lab.memory_budget import Budget
    from llamalab.lab.memory_estimate import Estimate

_MIB, _GIB = 2**20, 2**30
_FLASH = {"on": True, "off": False, "auto": "auto"}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(memory)


def memory(
    model: ModelArgument = None,
    *,
    n_ctx: Annotated[
        int | None, typer.Option(metavar="N", help="Context of one sequence, tokens; the engine's default without it.")
    ] = None,
    n_seq: Annotated[int, typer.Option(metavar="N", help="Sequences at once, each with a KV cache of its own.")] = 1,
    kv_type: Annotated[str, typer.Option(metavar="TYPE", help="Type of the KV cache: f16, q8_0, q4_0, ...")] = "f16",
    flash_attn: Annotated[str, typer.Option(metavar="on|off|auto", help="Flash attention.")] = "auto",
    n_batch: Annotated[int, typer.Option(metavar="N", help="Most tokens in one call of the runtime.")] = 512,
    n_ubatch: Annotated[int, typer.Option(metavar="N", help="Most tokens computed at once.")] = 512,
    gpu_layers: Annotated[
        int,
        typer.Option(
            "--gpu-layers", "-g", metavar="N", min=-1, help="Last layers on a GPU, the output first; -1: all."
        ),
    ] = 0,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the model too, fill its context, and say what that took.")
    ] = False,
    shape: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a published shape instead, as llama-3.1-70b: no file needed.")
    ] = None,
    type: Annotated[str, typer.Option(metavar="TYPE", help="Quantisation of that shape.")] = "Q4_K_M",
    budget: Annotated[str | None, typer.Option(metavar="SIZE", help="What fits into so much: 24GB, 16GiB, ...")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw memory against context length (.svg, .png, .pdf).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What MODEL, a GGUF file, needs in memory, before it is loaded.

    The formula's figures come from the file's header, llama.cpp's from its own layout of the context; RAM (and VRAM)
    is the estimate. The model is not loaded, however large it is, unless --measure asks for it.
    """
    if flash_attn not in _FLASH:
        raise ConfigError(f"--flash-attn is on, off or auto, not '{flash_attn}'.")
    if measure and gpu_layers:
        raise ConfigError("--measure measures RAM, so it goes without --gpu-layers.")
    if shape is not None and (model is not None or measure):
        what = "another model" if model is not None else "--measure"
        raise ConfigError(f"--shape is for a model that is not there: it goes without {what}.")

    from llamalab.lab.memory import ModelMemory
    from llamalab.lab.memory_budget import budget as fit
    from llamalab.lab.memory_budget import parse_size

    size = None if budget is None else parse_size(budget)
    options: dict[str, Any] = {"n_seq": n_seq, "kv_type": kv_type, "flash_attn": _FLASH[flash_attn]}
    options |= {"n_batch": n_batch, "n_ubatch": n_ubatch}
    with _file(model, shape, type) as path, ModelMemory(path) as opened:
        found = opened.estimate(n_ctx=n_ctx, gpu_layers=gpu_layers, measure=measure, **options)
        fitting = None if size is None else fit(opened, size, found, **options)
        if plot is not None:
            from llamalab.lab.memory_plot import plot as draw
            from llamalab.lab.memory_plot import sweep

            longest = opened.header.context_length or found.setting.n_ctx
            curve = sweep(opened, longest, gpu_layers=gpu_layers, **options)
            draw(curve, plot.expanduser(), budget=size, asked=found)
    if as_json:
        print_json(_document(found, fitting))
    else:
        _print(found, fitting, budget)


@contextmanager
def _file(model: str | None, shape: str | None, type: str) -> Iterator[Path]:
    """The model's file, or one that stands for a shape."""
    if shape is None:
        from llamalab.checkpoints.locate import locate
        from llamalab.engines import split_spec

        yield locate(split_spec(model or "pico")[1])
        return
    from llamalab.lab.memory_shape import shape_file
    from llamalab.lab.shapes import shape_named

    with shape_file(shape_named(shape), type) as path:
        yield path


def _document(found: Estimate, fitting: Budget | None) -> dict[str, Any]:
    document = dataclasses.asdict(found) | {"path": str(found.path), "error": found.error}
    return document | ({} if fitting is None else {"budget": dataclasses.asdict(fitting)})


def _print(found: Estimate, fitting: Budget | None, budget: str | None) -> None:
    on_gpu = found.gpu_layers > 0
    columns = ["formula", "llama.cpp", "RAM", *["VRAM"] * on_gpu, *["measured"] * (found.measured is not None)]
    rows = [
        [part.name, _mib(part.formula), _mib(part.dry_run), _mib(part.ram), *[_mib(part.vram)] * on_gpu]
        for part in found.parts
    ]
    total = ["total", "", "", _mib(found.total), *[_mib(found.vram)] * on_gpu]
    if found.measured is not None:
        rows = [[*row, ""] for row in rows]
        total.append(_mib(found.measured.peak))
    print_table(["MiB", *columns], [*rows, total], right=columns)
    for line in _sentences(found):
        print(line)
    if fitting is not None:
        print()
        _print_budget(found, fitting, f"{budget} ({_size(fitting.size)})")


def _sentences(found: Estimate) -> Iterator[str]:
    setting = found.setting
    attention = "with" if setting.flash_attn else "without"
    yield (
        f"{found.path.name} ({found.architecture}) needs {_size(found.total)} of memory at a context of "
        f"{setting.n_ctx} tokens, KV cache {setting.type_k}, {attention} flash attention"
        + (
            f"; and {_size(found.vram)} of a GPU's, for {found.gpu_layers} of {found.n_layers + 1} layers."
            if found.gpu_layers
            else "."
        )
    )
    dropped = f"Of that, {_size(found.reclaimable)} are pages of files, which the system can drop and read again."
    if found.total - found.without_mmap < _MIB:
        yield dropped
    else:
        yield (
            f"{dropped} To run at full speed, {_size(found.without_mmap)} have to stay: pages of weights that "
            "llama.cpp has copied are not looked at again. With load_mode='read', which maps no file, that is all it "
            "takes."
        )
    if found.measured is not None and found.error is not None:
        yield (
            f"A process that filled the context took {_size(found.measured.peak)} at its peak: the estimate is "
            f"{abs(found.error):.1%} {'above' if found.error >= 0 else 'below'}."
        )
    yield from found.notes


def _print_budget(found: Estimate, fitting: Budget, size: str) -> None:
    if fitting.largest_context:
        print(f"In {size} of RAM, a context of up to {fitting.largest_context} tokens fits.")
    else:
        print(f"In {size} of RAM it does not fit, not even with the shortest context.")
    print(
        f"In {size} of a GPU's memory, {fitting.gpu_layers} of {found.n_layers + 1} layers fit at a context of "
        f"{found.setting.n_ctx} tokens (--gpu-layers {fitting.gpu_layers})."
    )
    if not fitting.types:
        return
    print()
    print_table(
        ["type", "file", f"needs at {found.setting.n_ctx}", "fits", "largest context"],
        [
            [
                row.type,
                _size(row.file_bytes),
                _size(row.needed),
                "yes" if row.needed <= fitting.size else "no",
                str(row.largest_context) if row.largest_context else "none",
            ]
            for row in fitting.types
        ],
        right=["file", f"needs at {found.setting.n_ctx}", "largest context"],
    )


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / _MIB:,.1f}"


def _size(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB else f"{size / _MIB:.0f} MiB"
