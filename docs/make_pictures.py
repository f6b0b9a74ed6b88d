"""Draw the tour as a terminal shows it: `python docs/make_pictures.py` writes docs/demo.svg."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from llamalab.cli.demo import tour

PICTURE = Path(__file__).with_name("demo.svg")


def main() -> None:
    """Run the tour on a recording console."""
    console = Console(file=io.StringIO(), record=True, width=100, force_terminal=True, highlight=False)
    tour(console)
    console.save_svg(str(PICTURE), title="llamalab demo")


if __name__ == "__main__":
    main()
