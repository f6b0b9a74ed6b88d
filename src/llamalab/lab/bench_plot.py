"""The picture of a benchmark: tokens per second against what was varied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llamalab.lab.bench_setup import Result
from llamalab.lab.picture import new_figure, save

_AXES: Sequence[tuple[str, Callable[[Result], int | None]]] = (
    ("tokens before", lambda result: result.depth),
    ("requests at once", lambda result: result.n_seq),
    ("threads", lambda result: result.n_threads),
    ("tokens", lambda result: result.tokens),
)
_TITLES = {"prompt": "reading a prompt", "generate": "writing"}


def plot(results: Sequence[Result], path: Path) -> None:
    """One panel for reading, one for writing; lines against the number that takes most values, else bars.

    Raises:
        ConfigError: matplotlib is missing, or it cannot write a file of that kind there.
    """
    kinds = [kind for kind in _TITLES if any(result.kind == kind for result in results)]
    figure = new_figure(4.8 * len(kinds), 4)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        _draw(axes, [result for result in results if result.kind == kind])
        axes.set_title(_TITLES[kind], fontsize=10)
        axes.set_ylabel("tokens/s")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3, axis="y")
    save(figure, path)


def _draw(axes: Any, results: Sequence[Result]) -> None:
    name, value = max(_AXES, key=lambda axis: len({axis[1](result) for result in results}))
    lines: dict[str, list[Result]] = {}
    for result in results:
        lines.setdefault(_label(result, results, name), []).append(result)
    if all(len(line) == 1 for line in lines.values()):
        bars = [line[0] for line in lines.values()]
        axes.bar(range(len(bars)), [b.mean for b in bars], yerr=[b.deviation for b in bars], capsize=4)
        axes.set_xticks(range(len(bars)), [label or str(bar.test) for label, bar in zip(lines, bars, strict=True)])
        axes.tick_params(axis="x", labelsize=7, rotation=20 if len(bars) > 2 else 0)
        return
    for label, line in lines.items():
        line = sorted(line, key=lambda result: value(result) or 0)
        means, deviations = [result.mean for result in line], [result.deviation for result in line]
        axes.errorbar([value(result) for result in line], means, yerr=deviations, marker="o", capsize=3, label=label)
    axes.set_xlabel(name)
    if any(lines):
        axes.legend(fontsize=7)


def _label(result: Result, results: Sequence[Result], drawn: str) -> str:
    """What tells this result from the others, apart from what the axis shows."""
    parts = [result.model] if len({r.model for r in results}) > 1 else []
    parts += [result.provider] if len({r.provider for r in results}) > 1 else []
    for name, value in _AXES:
        if name != drawn and len({value(r) for r in results}) > 1:
            parts.append(f"{value(result)} {name}")
    return ", ".join(parts)
