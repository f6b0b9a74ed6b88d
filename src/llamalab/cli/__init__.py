"""The command line: `llamalab VERB`. Parsing and printing; everything else is done by the floors below."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    from llamalab.cli.app import run

    sys.exit(run(sys.argv[1:]))
