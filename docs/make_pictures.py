"""Draw the tour as a terminal shows it: `python docs/make_pictures.py` writes docs/demo.svg."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from llamalab.cli.demo import tour

PICTURE = Path(__file__).with_name("demo.svg")


def main() -> None:
    """Run the tour on a recording console; the picture uses fonts that are there, and fetches none."""
    console = Console(file=io.StringIO(), record=True, width=100, force_terminal=True, highlight=False)
    tour(console)
    picture = console.export_svg(title="llamalab demo")
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
