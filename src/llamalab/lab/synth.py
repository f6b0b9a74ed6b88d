"""A model of any shape with seeded random weights: how fast and how large it will be, before it is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llamalab.lab.shapes import Shape


@dataclass(frozen=True, slots=True)
class Synthetic:
    """What was written.

    Attributes:
        path: of the file.
        shape: of the model.
        type: that was asked for, such as "Q4_K_M".
        n_params: exact number of parameters.
        size_bytes: of the file.
        types: type of every tensor by its name, in ggml's words: {"token_embd.weight": "Q6_K", ...}.
    """

    path: Path
    shape: Shape
    type: str
    n_params: int
    size_bytes: int
    types: Mapping[str, str]


def write_synthetic(
    shape: Shape,
    path: Path,
    type: str,
    *,
    seed: int = 0,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Synthetic:
    """Write `path`: whole, or not at all."""
    raise NotImplementedError


def planned_types(shape: Shape, type: str) -> dict[str, str]:
    """The type of each tensor by its name in the file, as llama.cpp's quantiser mixes them for `type`."""
    raise NotImplementedError


def write_header(shape: Shape, path: Path, types: Mapping[str, str]) -> None:
    """Write a file whose tensor data is a hole."""
    raise NotImplementedError
