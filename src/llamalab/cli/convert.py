"""`llamalab convert`: a model from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamalab.cli.options import JsonOption
from llamalab.cli.output import print_json, print_table
from llamalab.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(convert)


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A model: file, folder, hub:ORG/REPO, or a name.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="File to write for gguf, folder for the others.")],
    *,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="gguf, safetensors or meta.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="F32, F16 or BF16; for gguf also Q8_0, Q5_1, Q5_0, Q4_1, Q4_0. The source's if that is a float type, "
            "F32 if it is quantised.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")] = False,
    rope_factor: Annotated[
        float | None, typer.Option(metavar="X", help="RoPE scaling factor instead of the source's; 1: no scaling.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model in another format, tokeniser and chat template included.

    SRC is a GGUF file, a Hugging Face folder or a Meta folder. In one TYPE, a round trip gives the same bits.
    """
    from llamalab.checkpoints.locate import locate
    from llamalab.checkpoints.names import human_size

    try:
        from llamalab.checkpoints.convert import convert as write
    except ImportError as error:
        raise ConfigError(f"convert needs one more package ({error}): pip install 'llamalab[jax]'") from None
    done = write(locate(source), target.expanduser(), to=to, dtype=dtype, force=force, rope_factor=rope_factor)
    if as_json:
        print_json(
            {
                "source": str(done.source),
                "target": str(done.target),
                "format": done.format,
                "dtype": done.dtype,
                "n_tensors": done.n_tensors,
                "n_params": done.n_params,
                "size_bytes": done.size_bytes,
                "rope": done.rope_source,
                "notes": list(done.notes),
            }
        )
        return
    size = human_size(done.size_bytes)
    print_table(
        ["wrote", "format", "dtype", "tensors", "size", "rope"],
        [[str(done.target), done.format, done.dtype, str(done.n_tensors), size, done.rope_source]],
        right=["tensors", "size"],
    )
    for note in done.notes:
        print(note)
