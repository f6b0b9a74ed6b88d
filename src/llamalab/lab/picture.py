"""Pictures by matplotlib, which few installations need: opened and saved in one place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamalab.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"A picture needs matplotlib ({error}). Install it with: pip install 'llamalab[plot]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the suffix says its kind.

    Raises:
        ConfigError: matplotlib cannot write a file of that kind there.
    """
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The picture {path} cannot be written: {error}.") from error
