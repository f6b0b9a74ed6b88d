"""`llamalab quantize`: a model in a smaller type."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from llamalab.cli.options import JsonOption
from llamalab.cli.output import print_json
from llamalab.cli.progress import progress_bar
from llamalab.cli.synth import print_shares


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(quantize)


def quantize(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A model: file, folder, hub:ORG/REPO, or a name.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The GGUF file to write.")],
    *,
    type: Annotated[
        str,
        typer.Option(
            "--type", metavar="TYPE", help="Q8_0, Q6_K, Q4_K_M, IQ4_XS, ...: any that llama.cpp quantises to."
        ),
    ],
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix, a GGUF file made by llama-imatrix.")
    ] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="One per core by default.")] = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Accept a source that is quantised already; the result is worse.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model in a smaller type, as llama.cpp quantises it.

    SRC is a GGUF file, a Hugging Face folder or a Meta folder; best in the type that it was trained in.
    """
    from llamalab.checkpoints.locate import locate
    from llamalab.lab.quantize import quantize as write

    with progress_bar() as progress:
        done = write(
            locate(source),
            target.expanduser(),
            type,
            imatrix=None if imatrix is None else imatrix.expanduser(),
            threads=threads,
            force=force,
            requantize=requantize,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        print_json(
            {
                "source": str(done.source),
                "target": str(done.target),
                "type": done.type,
                "written": done.written,
                "n_params": done.n_params,
                "bytes_before": done.bytes_before,
                "bytes_after": done.bytes_after,
                "bits_per_weight_before": done.bits_before,
                "bits_per_weight": done.bits_after,
                "size_bytes": done.size_bytes,
                "types": [dataclasses.asdict(share) for share in done.types],
                "notes": list(done.notes),
            }
        )
        return
    print_shares(done.types)
    print(
        f"\n{'wrote' if done.written else 'would write'} {done.target}: {done.type}, {done.n_params:,} parameters; "
        f"tensors {done.bytes_before:,} -> {done.bytes_after:,} bytes, {done.bits_before:.2f} -> {done.bits_after:.2f} "
        "bits per weight"
    )
    for note in done.notes:
        print(f"note: {note}")
