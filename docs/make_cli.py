"""Write docs/cli.md from the help of every command: `python docs/make_cli.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from llamalab.cli.app import app

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100
HEAD = """# Command line

Made from `llamalab --help` by `docs/make_cli.py`.

`llamalab` + verb. `MODEL` is `pico` unless you name [another](models.md); `-` reads standard input; verbs that print a
table or a result for programs take `--json`; progress bars appear only on a terminal.
"""


def page() -> str:
    """The whole page: the general help, then that of each command."""
    root: Any = typer.main.get_command(app)
    sections = [HEAD, _section(root, "llamalab", None)]
    with root.make_context("llamalab", [], resilient_parsing=True) as context:
        sections += _sections_below(root, context)
    return "\n".join(sections)


def _sections_below(group: Any, context: Any) -> list[str]:
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found.append(_section(command, name, context))
        if hasattr(command, "list_commands"):
            with command.make_context(name, [], parent=context, resilient_parsing=True) as below:
                found += _sections_below(command, below)
    return found


def _section(command: Any, name: str, parent: Any) -> str:
    settings = {"resilient_parsing": True, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = command.make_context(name, [], parent=parent, **settings)
    return f"## {context.command_path}\n\n```text\n{command.get_help(context).strip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
