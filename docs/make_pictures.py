"""Draw the pictures of the documentation: `python docs/make_pictures.py` writes them all.

The tour as a terminal shows it (demo.svg), what the entropix sampler decided in a story (pictures/entropix.svg), and
pico's speed by depth (pictures/bench.svg).
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from llamalab.cli.app import run
from llamalab.cli.demo import tour

DOCS = Path(__file__).parent


def draw_tour() -> None:
    """Run the tour on a recording console; the picture uses fonts that are there, and fetches none."""
    console = Console(file=io.StringIO(), record=True, width=100, force_terminal=True, highlight=False)
    tour(console)
    picture = console.export_svg(title="llamalab demo")
    (DOCS / "demo.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")


def draw_entropix() -> None:
    """The command that the page on entropix shows."""
    options = ["--sampler", "entropix", "-n", "120", "--seed", "1", "--plot", str(DOCS / "pictures" / "entropix.svg")]
    code = run(["generate", "jax:pico", "Write a short story about a fox.", *options])
    assert code == 0


def draw_bench() -> None:
    """The command that the page on speed shows, with more repetitions."""
    code = run(["bench", "pico", "--depth", "0,256,512,1024", "--plot", str(DOCS / "pictures" / "bench.svg")])
    assert code == 0


def draw_memory() -> None:
    """The command that the page on memory shows."""
    options = ["--n-ctx", "8192", "--budget", "8GB", "--plot", str(DOCS / "pictures" / "memory.svg")]
    code = run(["memory", "--shape", "llama-3.1-8b", *options])
    assert code == 0


if __name__ == "__main__":
    draw_tour()
    draw_entropix()
    draw_bench()
    draw_memory()
