"""The picture of an estimate: what a model takes against the length of its context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamalab.lab.memory import ModelMemory
from llamalab.lab.memory_budget import last_without_flash
from llamalab.lab.memory_estimate import Estimate
from llamalab.lab.picture import new_figure, save

_SHORTEST = 512
_GIB = 2**30
_COLOURS = {
    "process": "#8d99ae",
    "weights": "#4c78a8",
    "copies": "#9ecae9",
    "KV cache": "#f58518",
    "compute": "#54a24b",
    "work area": "#88d27a",
    "output": "#b279a2",
    "weights that were copied": "#dfe6ee",
}


def contexts(longest: int) -> list[int]:
    """Where the curves are computed: powers of two and their middles up to `longest`, tokens."""
    found = {longest}
    step = min(_SHORTEST, longest)
    while step <= longest:
        found |= {step, min(longest, step * 3 // 2)}
        step *= 2
    return sorted(found)


def sweep(memory: ModelMemory, longest: int, *, gpu_layers: int = 0, **options: Any) -> list[Estimate]:
    """Estimates of one model at several contexts up to `longest`; see `ModelMemory.setting` for `options`."""
    turn = last_without_flash(memory, longest, options)
    chosen = {*contexts(longest), *(n for n in (turn, turn + 1) if 0 < turn < longest)}
    return [memory.estimate(n_ctx=n_ctx, gpu_layers=gpu_layers, **options) for n_ctx in sorted(chosen)]


def plot(estimates: Sequence[Estimate], path: Path, *, budget: int | None = None, asked: Estimate) -> None:
    """Draw what each part takes in RAM, one on top of the other.

    Args:
        estimates: of one model, contexts rising.
        path: of the picture; its suffix says its kind.
        budget: bytes, drawn as a line.
        asked: the estimate that was printed, drawn as a dot; beside it the measurement, if there is one.

    Raises:
        ConfigError: matplotlib is missing, or it cannot write a file of that kind there.
    """
    figure = new_figure(9, 4.5)
    axes = figure.subplots()
    lengths = [estimate.setting.n_ctx for estimate in estimates]
    stacks = [_stack(estimate) for estimate in estimates]
    names = [name for name in _COLOURS if any(stack[name] for stack in stacks)]
    heights = [[stack[name] / _GIB for stack in stacks] for name in names]
    axes.stackplot(lengths, heights, labels=names, colors=[_COLOURS[name] for name in names])
    axes.plot([asked.setting.n_ctx], [asked.total / _GIB], "o", color="black", markersize=5, label="estimate")
    if asked.measured is not None:
        peak = asked.measured.peak / _GIB
        axes.plot([asked.setting.n_ctx], [peak], "x", color="black", markersize=8, label="measured")
    if budget is not None:
        axes.axhline(
            budget / _GIB, color="#d62728", linestyle="--", linewidth=1, label=f"budget {budget / _GIB:.3g} GiB"
        )
    axes.set_xscale("log", base=2)
    ticks = [n for n in lengths if n == lengths[-1] or n & (n - 1) == 0]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.set_xlim(lengths[0], lengths[-1]) if len(lengths) > 1 else None
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("RAM, GiB")
    axes.set_title(f"{asked.path.name}, KV cache {asked.setting.type_k}, {asked.setting.n_seq} at once", fontsize=10)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=8, loc="upper left")
    save(figure, path)


def _stack(estimate: Estimate) -> dict[str, int]:
    """Bytes of each layer of the picture, the lowest first; on top what the system may drop without harm."""
    idle = estimate.total - estimate.without_mmap
    heights = {part.name: part.ram for part in estimate.parts}
    return heights | {"weights": heights["weights"] - idle, "weights that were copied": idle}
