"""SHA-256 of model files, computed once: kept by path, size, time of change and inode in the user's cache folder.

Several processes may use the cache at once. It only saves time: where it cannot be read or written, or is damaged,
sums are computed as if it were empty.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from os import stat_result
from pathlib import Path

from llamalab.checkpoints.folders import cache_folder
from llamalab.checkpoints.reading_bar import Progress, reading_bar
from llamalab.errors import ModelFileError, ModelNotFound

_FILE = "checksums.sqlite"
_TABLE = """CREATE TABLE IF NOT EXISTS checksums (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, sha256 TEXT
) WITHOUT ROWID"""
_STEP = 1 << 20
_PATIENCE_S = 10.0

_SETTLED_NS = 2_000_000_000
"""A file changed less than this ago is not kept: it could change again without another time of change."""


def sha256(path: Path, *, progress: Progress | None = None) -> str:
    """The file's SHA-256, in hexadecimal; from the cache where the file is as it was.

    Args:
        path: of a file.
        progress: told about the bytes read so far, where any are; None: a bar on a terminal, for a large file.

    Raises:
        ModelNotFound: no such file.
        ModelFileError: it cannot be read, or changed meanwhile.
    """
    path = path.resolve()
    before = _stat(path)
    found = _cached(path, before)
    if found is not None:
        return found
    if progress is not None:
        found = _computed(path, progress)
    else:
        with reading_bar(path, before.st_size) as bar:
            found = _computed(path, bar)
    if _identity(_stat(path)) != _identity(before):
        raise ModelFileError(f"{path} changed while its SHA-256 was computed.")
    if time.time_ns() - before.st_mtime_ns > _SETTLED_NS:
        _ask("INSERT OR REPLACE INTO checksums VALUES (?, ?, ?, ?, ?)", str(path), *_identity(before), found)
    return found


def known_sha256(path: Path) -> str | None:
    """The SHA-256 if the cache has it; nothing of the file is read."""
    path = path.resolve()
    return _cached(path, _stat(path))


def _computed(path: Path, progress: Progress) -> str:
    digest, buffer = hashlib.sha256(), bytearray(_STEP)
    view, done = memoryview(buffer), 0
    try:
        with path.open("rb", buffering=0) as file:
            while n_read := file.readinto(buffer):
                digest.update(view[:n_read])
                done += n_read
                progress(done)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


def _cached(path: Path, stat: stat_result) -> str | None:
    query = "SELECT sha256 FROM checksums WHERE path = ? AND size = ? AND mtime_ns = ? AND inode = ?"
    found = _ask(query, str(path), *_identity(stat))
    return str(found[0][0]) if found else None


def _ask(statement: str, *values: str | int) -> list[tuple[object, ...]]:
    """What the cache answers to one statement: nothing if it cannot be used."""
    try:
        file = cache_folder() / _FILE
        connection = sqlite3.connect(file, timeout=_PATIENCE_S)
        try:
            with connection:
                connection.execute(_TABLE)
                return connection.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            if type(error) is sqlite3.DatabaseError:  # no database, or a damaged one: the next call begins a new one
                file.unlink(missing_ok=True)
            return []
        finally:
            connection.close()
    except (OSError, sqlite3.Error, RuntimeError):  # RuntimeError: a user without a home folder
        return []


def _identity(stat: stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _stat(path: Path) -> stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise ModelNotFound(f"There is no file {path}.") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
