"""What is done with a store besides scoring: what is in it, removing the old, handing it on."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llamalab.errors import InputError
from llamalab.scoring.store import COLUMNS, Store, is_whole
from llamalab.scoring.store_file import damaged, store_files, transaction

_PART = 1000  # rows that are read or removed at once


@dataclass(frozen=True, slots=True)
class Holding:
    """What a store has of one fingerprint.

    Attributes:
        key: of the fingerprint.
        provider: whose engine computed them.
        model: its name, as it was given.
        mode: of scoring.
        rows: scores.
        n_bytes: that they take.
        oldest: seconds since 1970.
        newest: seconds since 1970.
    """

    key: str
    provider: str
    model: str
    mode: str
    rows: int
    n_bytes: int
    oldest: float
    newest: float


@dataclass(frozen=True, slots=True)
class Info:
    """What is in a store.

    Attributes:
        path: of the file.
        size: of the file and SQLite's log beside it, bytes.
        rows: scores.
        holdings: by fingerprint, the largest first.
    """

    path: Path
    size: int
    rows: int
    holdings: tuple[Holding, ...]


_BYTES = " + ".join(f"length({column})" for column in COLUMNS[3:9])


def info(store: Store) -> Info:
    """What is in `store`.

    Raises:
        StoreError: it cannot be read.
    """
    query = (
        f"SELECT s.fingerprint, f.facts, COUNT(*), SUM({_BYTES}), MIN(created), MAX(created) FROM scores s "
        "LEFT JOIN fingerprints f ON f.key = s.fingerprint GROUP BY s.fingerprint ORDER BY 4 DESC"
    )
    with store.connection() as connection:
        found = []
        for key, text, rows, n_bytes, oldest, newest in connection.execute(query):
            provider, model, mode = (str(_facts(text).get(name, "")) for name in ("provider", "model", "mode"))
            found.append(Holding(key, provider, model, mode, rows, n_bytes, oldest, newest))
    size = sum(file.stat().st_size for file in store_files(store.path) if file.exists())
    return Info(store.path, size, sum(each.rows for each in found), tuple(found))


def prune(
    store: Store,
    *,
    older_than: float | None = None,
    max_bytes: int | None = None,
    model: str | None = None,
    now: float | None = None,
) -> int:
    """Remove rows for good, and give their room back.

    Args:
        store: to remove from.
        older_than: seconds since they were computed.
        max_bytes: keep at most so many bytes of rows, the newest.
        model: of this model alone: its name, path, SHA-256 or fingerprint, or the beginning of one of the latter two.
        now: seconds since 1970; None: the clock's.

    Returns:
        How many.

    Raises:
        InputError: nothing says what to remove, or no such model.
        StoreError: the store cannot be written.
    """
    if older_than is None and max_bytes is None and model is None:
        raise InputError("Say what to remove: by age, size or model.")
    with store.connection() as connection:
        keys = _keys_of(connection, store.path, model)
        among = f"fingerprint IN ({','.join('?' * len(keys))})"
        removed = 0
        with transaction(connection):
            if older_than is not None or max_bytes is None:
                before = math.inf if older_than is None else (time.time() if now is None else now) - older_than
                query = f"DELETE FROM scores WHERE {among} AND created <= ?"
                removed += connection.execute(query, (*keys, min(before, 1e300))).rowcount
            if max_bytes is not None:
                sums = (
                    f"SELECT id, SUM({_BYTES}) OVER (ORDER BY created DESC, id DESC) AS total FROM scores WHERE {among}"
                )
                query = f"DELETE FROM scores WHERE id IN (SELECT id FROM ({sums}) WHERE total > ?)"
                removed += connection.execute(query, (*keys, max_bytes)).rowcount
            connection.execute("DELETE FROM fingerprints WHERE key NOT IN (SELECT fingerprint FROM scores)")
        # As a script: `execute` would stop after the first page that was given back.
        connection.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")
    return removed


def export(store: Store) -> Iterator[dict[str, Any]]:
    """Every row, in the order in which they were written, as JSON can say it.

    Raises:
        StoreError: a row is damaged, or the store cannot be read.
    """
    last = 0
    with store.connection() as connection:
        facts = {key: _facts(text) for key, text in connection.execute("SELECT key, facts FROM fingerprints")}
    while True:
        with store.connection() as connection:
            query = f"SELECT id, {', '.join(COLUMNS)} FROM scores WHERE id > ? ORDER BY id LIMIT {_PART}"
            rows = connection.execute(query, (last,)).fetchall()
        for id, *values in rows:
            if not is_whole(values):
                raise damaged(store.path, f"row {id} does not have the checksum that it was written with")
            yield _document(values, facts.get(values[1], {}))
        if not rows:
            return
        last = rows[-1][0]


def _keys_of(connection: sqlite3.Connection, path: Path, model: str | None) -> list[str]:
    """Keys of the fingerprints of a model; of all without one.

    Raises:
        InputError: the store has no such model.
    """
    query = "SELECT DISTINCT fingerprint FROM scores"
    known: dict[str, dict[str, Any]] = {key: {} for (key,) in connection.execute(query)}
    known |= {key: _facts(text) for key, text in connection.execute("SELECT key, facts FROM fingerprints")}
    if model is None:
        return list(known)

    def is_it(key: str, facts: dict[str, Any]) -> bool:
        names = {facts.get("model"), facts.get("path"), Path(str(facts.get("path", ""))).name}
        return model in names or any(
            len(model) >= 6 and text.startswith(model) for text in (key, str(facts.get("model_sha256", "")))
        )

    found = [key for key, facts in known.items() if is_it(key, facts)]
    if not found:
        there = sorted({str(facts.get("model", key)) for key, facts in known.items()})
        raise InputError(f"The store {path} has nothing of {model!r}. It has: {', '.join(there) or 'nothing'}.")
    return found


def _document(values: Sequence[Any], facts: dict[str, Any]) -> dict[str, Any]:
    _, key, decoding, prefix, response, logprobs, raw, ranks, entropies, seconds, created, _ = values

    def numbers(blob: bytes, kind: str) -> list[float | int | None]:
        found = np.frombuffer(blob, dtype=kind).tolist()
        return [None if math.isinf(number) else number for number in found]

    def scores(blob: bytes, kind: str) -> list[float | int | None]:
        found = numbers(blob, kind)
        return [None] * (len(response) // 4 - len(found)) + found  # a first token that stands after nothing

    return {
        "fingerprint": key,
        "model": facts.get("model"),
        "model_sha256": facts.get("model_sha256"),
        "mode": facts.get("mode"),
        "sampler": json.loads(decoding) if decoding else None,
        "prefix_ids": numbers(prefix, "<i4"),
        "response_ids": numbers(response, "<i4"),
        "logprobs": scores(logprobs, "<f8"),
        "raw": scores(raw, "<f8"),
        "ranks": scores(ranks, "<i4"),
        "entropies": scores(entropies, "<f8"),
        "seconds": seconds,
        "created": created,
    }


def _facts(text: str | None) -> dict[str, Any]:
    try:
        facts = json.loads(text or "{}")
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
