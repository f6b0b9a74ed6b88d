"""What was measured on this machine before: one row for each result, in a file that other tools can query."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from llamalab.checkpoints.folders import data_folder
from llamalab.errors import ModelFileError
from llamalab.lab.bench_setup import Result

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    id INTEGER PRIMARY KEY,
    time TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    test TEXT NOT NULL,
    tokens_per_second REAL NOT NULL,
    deviation REAL NOT NULL,
    record TEXT NOT NULL
)
"""


def history_path() -> Path:
    """Where it is kept."""
    return data_folder() / "bench.sqlite"


def append(results: Sequence[Result], path: Path | None = None) -> None:
    """Keep results; several processes may do so at once.

    Raises:
        ModelFileError: the file cannot be written, or is no history.
    """
    rows = [
        (r.time, r.model, r.provider, r.test, r.mean, r.deviation, json.dumps(dataclasses.asdict(r))) for r in results
    ]
    path = path or history_path()
    try:
        with closing(_open(path)) as store, store:
            store.executemany(
                "INSERT INTO results (time, model, provider, test, tokens_per_second, deviation, record) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
    except sqlite3.Error as error:
        raise ModelFileError(f"The history {path} cannot be written: {error}.") from error


def read(limit: int | None = None, path: Path | None = None) -> list[Result]:
    """The results kept so far, the latest last; at most `limit` of the latest.

    Raises:
        ModelFileError: the file cannot be read, or is no history.
    """
    path = path or history_path()
    if not path.exists():
        return []
    try:
        with closing(_open(path)) as store:
            query = "SELECT record FROM results ORDER BY id DESC LIMIT ?"
            records = [json.loads(text) for (text,) in store.execute(query, (-1 if limit is None else limit,))]
        known = {field.name for field in dataclasses.fields(Result)}
        for record in records:
            record["rates"], record["first_token"] = tuple(record["rates"]), tuple(record["first_token"])
        return [Result(**{key: value for key, value in record.items() if key in known}) for record in records[::-1]]
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise ModelFileError(
            f"The history {path} cannot be read: {error}. Move it away, and a new one is begun."
        ) from error


def _open(path: Path) -> sqlite3.Connection:
    store = sqlite3.connect(path, timeout=30)
    store.execute("PRAGMA journal_mode = WAL")
    store.execute(_SCHEMA)
    return store
