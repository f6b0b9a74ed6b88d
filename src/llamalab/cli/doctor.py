"""`llamalab doctor`: what is installed, what the machine offers, what is wrong."""

from __future__ import annotations

from typing import Any

import typer

from llamalab.cli.options import JsonOption
from llamalab.cli.output import console, print_json

FAILED = 1


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(doctor)


def doctor(as_json: JsonOption = False) -> None:
    """Check the installation and the machine.

    Looks at versions, llama.cpp, processor and GPU, memory, folders and the built-in model. Ends with "all good", or
    with what is wrong and what to do; the exit code is 1 then.
    """
    from rich.text import Text

    from llamalab.cli.diagnosis import diagnose

    diagnosis = diagnose()
    if as_json:
        print_json({**diagnosis.facts, "problems": list(diagnosis.problems)})
    else:
        out = console()
        for section, facts in diagnosis.facts.items():
            out.print(f"[bold]{section}[/bold]")
            for name, value in facts.items():
                label = name.removesuffix("_bytes").replace("_", " ")
                out.print(f"  {label:<18} {_readable(name, value)}", markup=False)
        for problem in diagnosis.problems:
            out.print(Text.assemble(("problem: ", "bold red"), problem))
        if not diagnosis.problems:
            out.print("[bold green]all good[/bold green]")
    if diagnosis.problems:
        raise typer.Exit(FAILED)


def _readable(name: str, value: Any) -> str:
    from llamalab.checkpoints.names import human_size

    if name.endswith("_bytes"):
        return human_size(value)
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return {None: "not installed", True: "yes", False: "no"}.get(value) or str(value)
