"""Where llamalab keeps what it can make again, and what a user would miss."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder for what can be made again: under XDG_CACHE_HOME, or ~/.cache. It is made."""
    return _folder("XDG_CACHE_HOME", ".cache", *parts)


def data_folder(*parts: str) -> Path:
    """A folder for what a user would miss: under XDG_DATA_HOME, or ~/.local/share. It is made."""
    return _folder("XDG_DATA_HOME", ".local/share", *parts)


def _folder(variable: str, default: str, *parts: str) -> Path:
    base = os.environ.get(variable)
    folder = (Path(base) if base else Path.home() / default).joinpath("llamalab", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
