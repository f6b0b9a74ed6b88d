"""Draw the pictures of the documentation: `python docs/make_pictures.py` writes them all.

The tour as a terminal shows it (demo.svg), what the entropix sampler decided in a story (pictures/entropix.svg), pico's
speed by depth (pictures/bench.svg), the memory of a context (pictures/memory.svg), what little overlap does to an
estimate (pictures/overlap.svg), and the top of an arena's report (pictures/report.png; that one alone: `python
docs/make_pictures.py report`, which takes chromium, Pillow and three minutes).
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter
from rich.console import Console

from llamalab.cli.app import run
from llamalab.cli.demo import tour
from llamalab.lab.picture import new_figure, save
from llamalab.ope import gates
from llamalab.ope.estimators import estimate
from llamalab.ope.study import Study

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


def draw_overlap() -> None:
    """How fast the effective sample size falls, and what intervals that nobody refuses are worth then."""
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    spread = np.linspace(0, 2.5, 200)
    left.plot(spread, np.exp(-(spread**2)), color="#1f5f99", linewidth=2)
    left.set_xlabel("spread of the log ratio of a response, nats")
    left.set_ylabel("ESS, share of rows")
    for low, high, colour, word in (
        (gates.ESS_SHOWN, 1.0, "#1f5f99", "SHOWN"),
        (gates.ESS_CAUTION, gates.ESS_SHOWN, "#d9a400", "CAUTION"),
        (0.0, gates.ESS_CAUTION, "#c04d06", "REFUSED"),
    ):
        left.axhspan(low, high, color=colour, alpha=0.08, linewidth=0)
        left.text(2.47, (low + high) / 2, word, ha="right", va="center", fontsize=8, color="#444444")
    shares = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.007, 0.003)
    for rows, line in ((300, "o-"), (1000, "s--")):
        held = [_coverage(share, rows, runs=400) for share in shares]
        right.plot(shares, held, line, color="#1f5f99", markersize=4, linewidth=1.2, label=f"{rows:,} rows")
    right.axhline(0.95, color="#888888", linewidth=1, linestyle=":")
    right.axvline(gates.ESS_SHOWN, color="#888888", linewidth=1, linestyle=":")
    right.set_xscale("log")
    right.invert_xaxis()
    right.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    right.set_xlabel("true ESS, share of rows")
    right.set_ylabel("95% intervals of SNIPS that hold the truth")
    right.set_ylim(0.5, 1.0)
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(0, 1)
    left.set_xlim(0, 2.5)
    save(figure, DOCS / "pictures" / "overlap.svg")


def draw_report() -> None:
    """The answer and the forest plot of the known-truth example, as a browser shows its report."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code = run(["arena", "run", str(DOCS.parent / "examples/known_truth/arena_config.yaml"), "--out", name])
        assert code == 0
        shot = folder / "report.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={_WIDE},{_HIGH}"]
        page = (folder / "report.html").as_uri()
        subprocess.run(["chromium", *options, f"--screenshot={shot}", page], check=True, capture_output=True)
        with Image.open(shot) as image:
            few = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)  # letters and lines: no eye sees it
            few.save(DOCS / "pictures" / "report.png", optimize=True)


_WIDE, _HIGH = 1280, 1500  # to the end of the forest plot


def _coverage(share: float, rows: int, runs: int) -> float:
    """Share of runs whose interval holds the truth, without gates.

    Something hidden in a response, normal in the base's, decides both its log ratio and its outcome; in the target's it
    is shifted by the spread of the log ratio.
    """
    generator = np.random.default_rng(0)
    spread = float(np.sqrt(-np.log(share)))
    at, weight = np.polynomial.hermite_e.hermegauss(80)
    truth = float((weight * _outcome(at + spread)).sum() / weight.sum())
    names = tuple(str(row) for row in range(rows))
    held = 0
    for _ in range(runs):
        hidden = generator.standard_normal(rows)
        log_ratio = {"target": spread * hidden - spread**2 / 2}
        none, certain = np.full(rows, np.nan), np.ones(rows)
        study = Study(np.arange(rows), names, _outcome(hidden), none, certain, log_ratio)
        (found,) = estimate(study, ["target"], ["snips"], scale="judge")
        held += found.low <= truth <= found.high
    return held / runs


def _outcome(hidden: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-1 - hidden))


_ALL = {
    "tour": draw_tour,
    "entropix": draw_entropix,
    "bench": draw_bench,
    "memory": draw_memory,
    "overlap": draw_overlap,
    "report": draw_report,
}

if __name__ == "__main__":
    for which in sys.argv[1:] or _ALL:
        _ALL[which]()
