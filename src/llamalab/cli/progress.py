"""A progress bar on a terminal, and none in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llamalab.cli.output import console


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function to be told what is being done, how much of it is done, and of how much (0: not known).

    Large files that are read meanwhile, for their sums, are shown in the same bar.
    """
    if not sys.stderr.isatty():
        yield lambda _doing, _done, _total: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from llamalab.checkpoints.reading_bar import shown_by

    what = TextColumn("{task.description}", markup=False)  # a file may be called [red]
    columns = (what, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(doing: str, done: int, total: int) -> None:
            bar.update(task, description=doing, completed=done, total=total or None)

        with shown_by(show):
            yield show


@contextmanager
def rate_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left, on a terminal; gives a function to be told how much is done, and of how much.

    What was done before the first call does not count for the rate.
    """
    with progress_bar() as bar:
        first: list[tuple[float, int]] = []

        def show(done: int, total: int) -> None:
            now = time.monotonic()
            first[:] = first or [(now, done)]
            began, before = first[0]
            rate = f", {(done - before) / (now - began):,.1f} {what}/s" if now > began else ""
            bar(f"scoring{rate}", done, total)

        yield show
