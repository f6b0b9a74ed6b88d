"""The file of a store: opened, made, and what is said when it cannot be used."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamalab.errors import StoreError

SCHEMA_VERSION = 1
APPLICATION_ID = 0x6C6C7363
"""Of our files, in SQLite's header: "llsc"."""

_TABLES = """
CREATE TABLE fingerprints (key TEXT PRIMARY KEY, facts TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE scores (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    fingerprint TEXT NOT NULL,
    decoding TEXT NOT NULL,
    prefix BLOB NOT NULL,
    response BLOB NOT NULL,
    logprobs BLOB NOT NULL,
    raw BLOB NOT NULL,
    ranks BLOB NOT NULL,
    entropies BLOB NOT NULL,
    seconds REAL NOT NULL,
    created REAL NOT NULL,
    checksum BLOB NOT NULL
);
"""
_PATIENCE_S = 60.0

_CORRUPT, _NO_DATABASE, _BUSY, _LOCKED = 11, 26, 5, 6  # SQLite's result codes


def open_store(path: Path) -> sqlite3.Connection:
    """A connection to the store in `path`, made if there is none.

    Raises:
        StoreError: as `Store`.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        connection: sqlite3.Connection | None = None
        try:
            with explained(path):
                # One connection serves all threads, one at a time; transactions are begun by hand.
                connection = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
                _prepare(connection, path)
                return connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            # Two processes that make the file at once: SQLite does not always wait for the change of the journal.
            if not (isinstance(error, StoreError) and is_busy(error.__cause__)) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written in the block, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """SQLite's errors in the block as `StoreError`."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (_CORRUPT, _NO_DATABASE):
            raise damaged(path, str(error)) from error
        if is_busy(error):
            raise StoreError(
                f"The store {path} has been in use by another process for over {_PATIENCE_S:.0f} seconds ({error})."
            ) from error
        raise StoreError(
            f"The store {path} cannot be used: {error}. Name another with --store, or go on without one: --no-store."
        ) from error


def damaged(path: Path, reason: str) -> StoreError:
    """What is raised for a store that cannot be trusted."""
    return StoreError(
        f"The store {path} is damaged: {reason}. Nothing is read from it any more. `llamalab score store repair "
        f"--store {path}` keeps every row that is whole and drops the others; what is dropped is computed again."
    )


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or see that they are ours."""
    if not _is_ours(connection, path):
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        with transaction(connection):
            if not _is_ours(connection, path):  # by now, if another process was first
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    # In write-ahead mode: nothing is lost when the process dies; a power cut may take the last transactions, whole.
    connection.execute("PRAGMA synchronous = NORMAL")


def _is_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is a store; False if it is empty."""
    connection.execute("SAVEPOINT one_moment")  # another process may be making the tables just now
    try:
        (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    finally:
        connection.execute("RELEASE one_moment")
    if owner == 0 and version == 0 and tables == 0:
        return False
    if owner != APPLICATION_ID:
        raise StoreError(f"{path} is a database of another program, no store of scores. Name another with --store.")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"The store {path} has version {version} and this llamalab knows {SCHEMA_VERSION}. Use a newer llamalab, "
            "or name another store with --store."
        )
    return True


def store_files(path: Path) -> list[Path]:
    """The files of the store in `path`: the main one, and SQLite's beside it."""
    return [path.with_name(f"{path.name}{suffix}") for suffix in ("", "-wal", "-shm")]


def is_busy(error: BaseException | None) -> bool:
    """Whether an error says that another process or connection holds the file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (_BUSY, _LOCKED)
