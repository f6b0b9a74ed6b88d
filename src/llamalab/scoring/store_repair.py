"""A damaged store: every row that is whole is saved."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamalab.errors import StoreError
from llamalab.scoring.store import COLUMNS, is_whole
from llamalab.scoring.store_file import explained, is_busy, open_store, store_files, transaction


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of a damaged store.

    Attributes:
        kept: rows that were whole.
        dropped: rows that were not, as far as they could be counted.
        aside: where the damaged file is now; None: it could be mended in place.
    """

    kept: int
    dropped: int
    aside: Path | None


def repair(path: Path) -> Repaired:
    """Keep every row that is whole, drop the others.

    A file whose structure is sound is mended in place. From any other, what can be read is copied into a new file,
    which takes its place; the damaged one is kept beside it.

    Raises:
        StoreError: there is no such file, it is of another program, or another process has it open.
    """
    path = path.expanduser().absolute()
    if not path.is_file():
        raise StoreError(f"There is no store {path}.")
    if _is_sound(path):
        with closing(open_store(path)) as connection, explained(path), transaction(connection):
            bad = [id for id, values in _readable(connection) if not is_whole(values)]
            connection.executemany("DELETE FROM scores WHERE id = ?", [(id,) for id in bad])
            (kept,) = connection.execute("SELECT COUNT(*) FROM scores").fetchone()
        return Repaired(kept, len(bad), None)
    return _rebuilt(path)


def _is_sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with the structure of the file.

    Raises:
        StoreError: it is sound and of another program.
    """
    try:
        with closing(open_store(path)) as connection:
            found = connection.execute("PRAGMA integrity_check").fetchall()
            connection.execute("SELECT 1 FROM scores, fingerprints LIMIT 1").fetchall()
    except sqlite3.Error:
        return False
    except StoreError as error:
        if isinstance(error.__cause__, sqlite3.Error) and not is_busy(error.__cause__):
            return False
        raise
    return found == [("ok",)]


def _rebuilt(path: Path) -> Repaired:
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    fresh = path.with_name(f"{path.name}.part")
    for file in store_files(fresh):
        file.unlink(missing_ok=True)
    with (
        closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as source,
        closing(open_store(fresh)) as target,
    ):
        _check_alone(source, path)
        with explained(fresh):
            kept, dropped = _copy(source, target)
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # into one file, so that one is renamed
    for file, moved in zip(store_files(path), store_files(aside), strict=True):
        if file.exists():
            file.rename(moved)
    fresh.replace(path)
    return Repaired(kept, dropped, aside)


def _copy(source: sqlite3.Connection, target: sqlite3.Connection) -> tuple[int, int]:
    """Copy what is whole; how many rows were, and how many were not."""
    kept = dropped = 0
    marks = ",".join("?" * len(COLUMNS))
    with transaction(target):
        for key, facts in _asked(source, "SELECT key, facts FROM fingerprints"):
            target.execute("INSERT OR IGNORE INTO fingerprints VALUES (?, ?)", (key, facts))
        for _, values in _readable(source):
            if is_whole(values):
                query = f"INSERT OR IGNORE INTO scores ({', '.join(COLUMNS)}) VALUES ({marks})"
                kept += target.execute(query, values).rowcount
            else:
                dropped += 1
    return kept, dropped


def _check_alone(source: sqlite3.Connection, path: Path) -> None:
    """See that no other process has the file open: what it writes after the file was moved would be lost.

    Raises:
        StoreError: one has.
    """
    try:
        source.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        source.execute("BEGIN EXCLUSIVE")
        source.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        if is_busy(error):
            raise StoreError(f"The store {path} is in use. End what uses it, then repair it.") from error


def _readable(connection: sqlite3.Connection) -> Iterator[tuple[int, list[Any]]]:
    """(id, values) of every row that can be read; what lies on pages that cannot is passed over."""
    # Each of these comes as far as the first damage on its way.
    ways = ("ORDER BY id", "ORDER BY id DESC", "ORDER BY digest", "ORDER BY digest DESC")
    ids = {id for way in ways for (id,) in _asked(connection, f"SELECT id FROM scores {way}")}
    for id in sorted(ids):
        for row in _asked(connection, f"SELECT {', '.join(COLUMNS)} FROM scores WHERE id = ?", id):
            yield id, list(row)


def _asked(connection: sqlite3.Connection, query: str, *values: int) -> list[tuple[Any, ...]]:
    """Rows of the answer, up to the first that cannot be read."""
    found: list[tuple[Any, ...]] = []
    with suppress(sqlite3.DatabaseError):
        found.extend(connection.execute(query, values))
    return found
