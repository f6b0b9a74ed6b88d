"""The picture of a comparison: how far the logits lie apart, by position."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llamalab.lab.comparison import Comparison
from llamalab.lab.picture import new_figure, save
from llamalab.lab.verify import Verdict

_FLOOR = 1e-9
"""Where a difference of exactly 0 is drawn: a logarithmic axis has no place for it."""


def plot(verdict: Verdict, path: Path) -> None:
    """Draw the largest |delta logit| of each position, and where the most probable tokens differ.

    Raises:
        ConfigError: matplotlib is missing, or it cannot write a file of that kind there.
    """
    figure = new_figure(9, 4.5)
    axes = figure.subplots()
    for number, comparison in enumerate(verdict.comparisons):
        _draw(axes, comparison, f"C{number}")
    axes.axhline(verdict.atol, color="grey", linestyle="--", linewidth=1, label=f"absolute tolerance {verdict.atol:g}")
    axes.set_yscale("log")
    axes.set_xlabel("position, tokens")
    axes.set_ylabel("largest |Δ logit| over the prompts")
    axes.set_title(f"{verdict.comparisons[0].a} against {verdict.comparisons[0].b}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, path)


def _draw(axes: object, comparison: Comparison, colour: str) -> None:
    largest = np.clip(np.array(comparison.by_position), _FLOOR, None)
    positions = np.arange(len(largest))
    drawn = np.isfinite(largest)
    label = f"{comparison.a} against {comparison.b}"
    axes.plot(positions[drawn], largest[drawn], color=colour, linewidth=1, label=label)  # type: ignore[attr-defined]
    parted = drawn & (np.array(comparison.disagreements) > 0)
    if parted.any():
        axes.plot(  # type: ignore[attr-defined]
            positions[parted],
            largest[parted],
            "o",
            color=colour,
            markersize=4,
            label=f"another most probable token ({sum(comparison.disagreements)} rows)",
        )
