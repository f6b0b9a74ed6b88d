"""How far the reading of a large file is: a bar on a terminal, and nothing elsewhere.

A terminal can show one bar. So whoever shows one of his own shows in it what is read meanwhile: see `shown_by`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

Progress: TypeAlias = Callable[[int], None]
"""Told how many bytes of a file have been read."""

Show: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how many bytes of it are, and of how many."""

LARGE_BYTES = 1 << 28
"""What is smaller is read before anybody would wait for it."""

_shown_by: list[Show] = []


@contextmanager
def shown_by(show: Show) -> Iterator[None]:
    """While the block runs, `show` is told about large files that are read; there is no other bar."""
    _shown_by.append(show)
    try:
        yield
    finally:
        _shown_by.remove(show)


@contextmanager
def reading_bar(path: Path, size: int) -> Iterator[Progress]:
    """Gives a function to be told how many of the `size` bytes of a file have been read."""
    doing = "reading " + "".join(each if each.isprintable() else "?" for each in path.name)
    if size < LARGE_BYTES:
        yield lambda _done: None
    elif _shown_by:
        show = _shown_by[-1]
        yield lambda done: show(doing, done, size)
    elif sys.stderr is None or not sys.stderr.isatty():
        yield lambda _done: None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        name = TextColumn("{task.description}", markup=False)  # a file may be called [red]
        columns = (name, BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(doing, total=size)
            yield lambda done: bar.update(task, completed=done)
