"""The picture of a benchmark: how many answers are right, and what they cost, against the length of the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamalab.lab.picture import new_figure, save
from llamalab.rlm.bench.cells import Cell, cells
from llamalab.rlm.bench.outcome import Outcome

_STYLES = {"rlm": "-", "direct": "--", "grep": ":"}


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Two panels over the characters of the text: right answers with their intervals, and tokens of a question.

    Raises:
        ConfigError: matplotlib is missing, or it cannot write a file of that kind there.
    """
    figure = new_figure(9.6, 4)
    accuracy, tokens = figure.subplots(1, 2)
    lines: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells(outcomes, by_task=False):
        lines.setdefault((cell.model, cell.mode), []).append(cell)
    several = len({model for model, _ in lines}) > 1
    for (model, mode), line in lines.items():
        _draw(accuracy, tokens, line, f"{model}, {mode}" if several else mode, _STYLES[mode])
    accuracy.set_title("right answers", fontsize=10)
    accuracy.set_ylim(-0.02, 1.02)
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    tokens.set_title("tokens of a question", fontsize=10)
    tokens.set_yscale("log")
    for axes in (accuracy, tokens):
        axes.set_xscale("log")
        axes.set_xlabel("characters of the text")
        axes.grid(alpha=0.3)
    accuracy.legend(fontsize=8)
    save(figure, path)


def _draw(accuracy: Any, tokens: Any, line: Sequence[Cell], label: str, style: str) -> None:
    line = sorted(line, key=lambda cell: cell.size)
    sizes = [cell.size for cell in line]
    below = [cell.accuracy - cell.low for cell in line]
    above = [cell.high - cell.accuracy for cell in line]
    accuracy.errorbar(
        sizes,
        [cell.accuracy for cell in line],
        yerr=[below, above],
        marker="o",
        capsize=3,
        linestyle=style,
        label=label,
    )
    spent = [max(cell.root_tokens + cell.sub_tokens, 1.0) for cell in line]
    tokens.plot(sizes, spent, marker="o", linestyle=style, label=label)
