"""Models with random weights for the benchmarks, kept in the user's cache folder."""

from __future__ import annotations

from pathlib import Path

from llamalab.checkpoints.folders import cache_folder
from llamalab.lab.shapes import SHAPES, Shape
from llamalab.lab.synth import write_synthetic

LLAMA_1B = SHAPES["llama-3.2-1b"]


def quantised_model(shape: Shape, kind: str = "Q4_K_M") -> Path:
    """The file of `shape` in `kind`; made at the first call."""
    path = cache_folder() / f"{shape.name}-random-{kind}.gguf"
    if not path.exists():
        write_synthetic(shape, path, kind)
    return path
