"""`llamalab models`: the models on this machine."""

from __future__ import annotations

import typer

from llamalab.cli.options import JsonOption
from llamalab.cli.output import print_json, print_table, shown


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(models)


def models(as_json: JsonOption = False) -> None:
    """List the models on this machine.

    These are the built-in one and those in the Hugging Face cache, in ollama's store, and among what Meta's commands
    have downloaded. Any name in the list can be used as MODEL; `hub:ORG/REPO:QUANTISATION` downloads another one on
    first use.
    """
    from llamalab.checkpoints.locate import local_models
    from llamalab.checkpoints.names import human_size

    found = local_models()
    if as_json:
        print_json(
            [
                {
                    "name": model.name,
                    "source": model.source,
                    "quantisation": model.quantisation,
                    "size_bytes": model.size_bytes,
                    "path": str(model.path),
                }
                for model in found
            ]
        )
        return
    print_table(
        ["name", "source", "quantisation", "size", "path"],
        [[m.name, m.source, shown(m.quantisation), human_size(m.size_bytes), str(m.path)] for m in found],
        right=["size"],
    )
