"""`llamalab synth`: a model of a given shape with random weights."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamalab.cli.options import JsonOption
from llamalab.cli.output import print_json, print_table
from llamalab.cli.progress import progress_bar
from llamalab.errors import ConfigError

if TYPE_CHECKING:
    from llamalab.lab.type_shares import TypeShare

LISTED = ("F16", "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_S")
"""Types whose sizes `--list` shows."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(synth)


def synth(
    shape: Annotated[
        str | None,
        typer.Argument(metavar="SHAPE", help="A published shape (see --list), or custom.", show_default=False),
    ] = None,
    target: Annotated[
        Path | None, typer.Argument(metavar="DST", help="The GGUF file to write.", show_default=False)
    ] = None,
    *,
    type: Annotated[
        str,
        typer.Option(
            "--type", metavar="TYPE", help="Q8_0, Q6_K, Q4_K_M, IQ4_XS, ...: any that llama.cpp quantises to."
        ),
    ] = "Q4_K_M",
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the weights.")] = 0,
    layers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Transformer blocks.")] = None,
    dim: Annotated[int | None, typer.Option(metavar="N", min=1, help="Width of the residual stream.")] = None,
    heads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Query heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Key and value heads.")] = None,
    head_dim: Annotated[int | None, typer.Option(metavar="N", min=1, help="Width of a head.")] = None,
    ffn: Annotated[int | None, typer.Option(metavar="N", min=1, help="Hidden width of the SwiGLU block.")] = None,
    vocab: Annotated[int | None, typer.Option(metavar="N", min=1, help="Tokens.")] = None,
    ctx: Annotated[int | None, typer.Option(metavar="N", min=1, help="Context length, tokens.")] = None,
    tied: Annotated[
        bool | None, typer.Option("--tied/--untied", help="Whether the output projection is the embedding.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")] = False,
    show_shapes: Annotated[bool, typer.Option("--list", help="List the published shapes and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model of a published shape with random weights.

    The file has the size, the tensor types and the speed of the real one, before that is downloaded; what it says is
    noise. Options change single sizes of the shape; custom takes all from them.
    """
    if show_shapes:
        _list(as_json=as_json)
        return
    if shape is None or target is None:
        raise ConfigError("Name a shape and the file to write: llamalab synth SHAPE DST. Shapes: llamalab synth --list")
    from llamalab.lab.shapes import changed_shape
    from llamalab.lab.synth import write_synthetic
    from llamalab.lab.type_shares import type_shares

    wanted = changed_shape(
        shape,
        n_layers=layers,
        dim=dim,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=ffn,
        vocab_size=vocab,
        max_seq_len=ctx,
        tied=tied,
    )
    with progress_bar() as progress:
        made = write_synthetic(
            wanted,
            target.expanduser(),
            type,
            seed=seed,
            force=force,
            progress=lambda done, total: progress("writing", done, total),
        )
    shares = type_shares((made.types[name], math.prod(size)) for name, size in made.tensors.items())
    if as_json:
        print_json(
            {
                "path": str(made.path),
                "shape": dataclasses.asdict(made.shape),
                "type": made.type,
                "seed": made.seed,
                "n_params": made.n_params,
                "size_bytes": made.size_bytes,
                "types": [dataclasses.asdict(share) for share in shares],
            }
        )
        return
    print_shares(shares)
    print(f"\nwrote {made.path}: {made.shape.name}, {made.n_params:,} parameters, {made.size_bytes:,} bytes")


def print_shares(shares: tuple[TypeShare, ...]) -> None:
    """A table of a model's tensors by type."""
    print_table(
        ["type", "tensors", "parameters", "bytes"],
        [[s.type, str(s.n_tensors), f"{s.n_params:,}", f"{s.size_bytes:,}"] for s in shares],
        right=["tensors", "parameters", "bytes"],
    )


def _list(*, as_json: bool) -> None:
    from llamalab.checkpoints.names import human_size
    from llamalab.lab.shapes import SHAPES
    from llamalab.lab.synth import data_bytes

    sizes = {name: {type: data_bytes(shape, type) for type in LISTED} for name, shape in SHAPES.items()}
    if as_json:
        print_json(
            [
                {**dataclasses.asdict(shape), "n_params": shape.n_params, "bytes": sizes[name]}
                for name, shape in SHAPES.items()
            ]
        )
        return
    rows: list[list[Any]] = [
        [
            name,
            f"{shape.n_params:,}",
            str(shape.n_layers),
            str(shape.dim),
            f"{shape.n_heads}/{shape.n_kv_heads}",
            f"{shape.vocab_size:,}",
            f"{shape.max_seq_len:,}",
            *(human_size(sizes[name][type]) for type in LISTED),
        ]
        for name, shape in SHAPES.items()
    ]
    headers = ["shape", "parameters", "layers", "width", "heads/KV", "vocabulary", "context", *LISTED]
    print_table(headers, rows, right=headers[1:])
