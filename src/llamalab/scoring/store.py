"""Scores that were computed once: one SQLite file, addressed by what decides their bits.

A row is one response under one sampler: its key is a hash of the fingerprint (model, runtime, machine, mode), of the
prefix's and the response's token ids and of the sampler, so a changed model or library finds nothing, and nothing is
ever overwritten. Rows carry a checksum, which is looked at whenever they are read.

Several processes and threads may use a store at once. A process that is killed leaves whole rows or none: a batch is
written in one transaction, in SQLite's write-ahead log.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llamalab.checkpoints.folders import cache_folder
from llamalab.errors import StoreError
from llamalab.scored import Decoding
from llamalab.scoring.fingerprint import Fingerprint
from llamalab.scoring.store_file import damaged, explained, open_store, transaction

COLUMNS = (
    "digest", "fingerprint", "decoding", "prefix", "response", "logprobs", "raw", "ranks", "entropies", "seconds",
    "created", "checksum",
)  # fmt: skip

_AT_ONCE = 500  # keys of one query

_INHERITED: list[sqlite3.Connection] = []
"""Connections of the parent process: closing them here would drop the parent's locks."""


class Wanted(NamedTuple):
    """What is looked up.

    Attributes:
        key: of a `Fingerprint`.
        prefix_ids: tokens that it is conditioned on.
        response_ids: tokens that are scored.
        decoding: the sampler; None for the model's own distribution.
    """

    key: str
    prefix_ids: Sequence[int]
    response_ids: Sequence[int]
    decoding: Decoding | None = None


@dataclass(frozen=True, slots=True)
class StoredScore:
    """What is kept of one response under one sampler; each is as long as the response.

    Attributes:
        logprobs: under the sampler, nats; -inf outside its support; None for a first token without a prefix.
        raw: log softmax of the model's logits, nats; None as there.
        ranks: how many tokens were more probable, plus 1; None as there.
        entropies: of the model's distribution, nats; None as there.
        seconds: it took to compute.
    """

    logprobs: tuple[float | None, ...]
    raw: tuple[float | None, ...]
    ranks: tuple[int | None, ...]
    entropies: tuple[float | None, ...]
    seconds: float = 0.0


class Store:
    """A store in a file; a context manager. Safe to use from several threads, and after a fork.

    Args:
        path: of the file, made if there is none; None: `default_path()`.

    Raises:
        StoreError: the file is damaged, is no store, is of a newer version, or cannot be opened.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = (default_path() if path is None else path).expanduser().absolute()
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._connection: sqlite3.Connection | None = open_store(self.path)

    def get_many(self, wanted: Sequence[Wanted]) -> list[StoredScore | None]:
        """What the store has, in the order of `wanted`; None for what it has not.

        Raises:
            StoreError: a row that is asked for is damaged, or the file cannot be read.
        """
        digests = [digest_of(*each) for each in wanted]
        found: dict[bytes, StoredScore] = {}
        unique = list(dict.fromkeys(digests))
        with self.connection() as connection:
            for begin in range(0, len(unique), _AT_ONCE):
                part = unique[begin : begin + _AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT {', '.join(COLUMNS)} FROM scores WHERE digest IN ({marks})"
                for row in connection.execute(query, part):
                    if not is_whole(row):
                        raise damaged(self.path, "a row does not have the checksum that it was written with")
                    found[row[0]] = _score(row)
        return [found.get(digest) for digest in digests]

    def put_many(self, fingerprint: Fingerprint, scores: Sequence[tuple[Wanted, StoredScore]]) -> None:
        """Keep scores, all or none; what is there already stays as it is.

        Args:
            fingerprint: of what computed them; its files must be as they were when it was taken.
            scores: each with its place; all of that fingerprint.

        Raises:
            ModelFileError: a file of the model has changed since the fingerprint was taken.
            StoreError: the file is damaged or cannot be written.
        """
        fingerprint.check_files()
        now = time.time()
        rows = [_row(Wanted(*wanted), score, now) for wanted, score in scores]
        if any(row[1] != fingerprint.key for row in rows):
            raise ValueError("Scores are kept under the fingerprint of what computed them.")
        marks = ",".join("?" * len(COLUMNS))
        with self.connection() as connection, transaction(connection):
            connection.execute(
                "INSERT OR IGNORE INTO fingerprints VALUES (?, ?)",
                (fingerprint.key, json.dumps(dict(fingerprint.facts), sort_keys=True)),
            )
            connection.executemany(f"INSERT OR IGNORE INTO scores ({', '.join(COLUMNS)}) VALUES ({marks})", rows)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """The connection, for this thread alone while the block lasts; SQLite's errors become `StoreError`."""
        with self._lock:
            if self._connection is None:
                raise StoreError(f"The store {self.path} is closed.")
            if self._process != os.getpid():
                _INHERITED.append(self._connection)
                self._connection, self._process = open_store(self.path), os.getpid()
            with explained(self.path):
                yield self._connection

    def close(self) -> None:
        """Close the file. Later calls raise `StoreError`."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def default_path() -> Path:
    """The store that is used unless another is named."""
    try:
        return cache_folder() / "scores.sqlite"
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home folder
        raise StoreError(f"There is no folder for the store ({error}). Name one with --store, or use none.") from error


def digest_of(
    key: str, prefix_ids: Sequence[int], response_ids: Sequence[int], decoding: Decoding | None = None
) -> bytes:
    """The address of a score: 32 bytes.

    The lengths stand before the parts, so two different lists of parts never give the same bytes.
    """
    prefix, response = _ids(prefix_ids), _ids(response_ids)
    digest = hashlib.blake2b(digest_size=32, person=b"llamalab.score.1")
    for part in (key.encode(), prefix, response, sampler_text(decoding).encode()):
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.digest()


def sampler_text(decoding: Decoding | None) -> str:
    """A sampler as text, the same for equal distributions: without truncation the order does not matter."""
    if decoding is None:
        return ""
    fields: dict[str, Any] = {"temperature": float(decoding.temperature)}
    if decoding.truncates:
        fields |= {"top_k": int(decoding.top_k), "top_p": float(decoding.top_p), "min_p": float(decoding.min_p)}
        fields["order"] = decoding.order
    return json.dumps(fields)


def checksum(values: Sequence[Any]) -> bytes:
    """Of the columns of a row but the last: 16 bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        part = struct.pack("<d", value) if isinstance(value, float) else value
        part = part.encode() if isinstance(part, str) else part
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.digest()


def is_whole(values: Sequence[Any]) -> bool:
    """Whether a row, by its columns, has the checksum that it was written with."""
    try:
        return bool(checksum(values[:-1]) == values[-1])
    except (TypeError, AttributeError):  # a column of another kind
        return False


def _ids(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()


def _row(wanted: Wanted, score: StoredScore, now: float) -> tuple[Any, ...]:
    length = len(wanted.response_ids)
    if {len(score.logprobs), len(score.raw), len(score.ranks), len(score.entropies)} != {length}:
        raise ValueError(f"A score of {length} tokens needs {length} values of each kind.")
    values = (
        digest_of(*wanted),
        wanted.key,
        sampler_text(wanted.decoding),
        _ids(wanted.prefix_ids),
        _ids(wanted.response_ids),
        _packed(score.logprobs, "<f8"),
        _packed(score.raw, "<f8"),
        _packed(score.ranks, "<i4"),
        _packed(score.entropies, "<f8"),
        float(score.seconds),
        now,
    )
    return (*values, checksum(values))


def _packed(values: Sequence[float | int | None], kind: str) -> bytes:
    """The values that are there; only a first one can be missing."""
    if None in values[1:]:
        raise ValueError("Only the first token of a response can be without a score.")
    found = np.array([value for value in values if value is not None], dtype=kind)
    if np.isnan(found).any():
        raise ValueError("A score that is no number is not kept.")
    return found.tobytes()


def _score(row: Sequence[Any]) -> StoredScore:
    _, _, _, _, response, logprobs, raw, ranks, entropies, seconds, *_ = row
    length = len(response) // 4

    def values(blob: bytes, kind: str) -> tuple[Any, ...]:
        found = np.frombuffer(blob, dtype=kind).tolist()
        return (None,) * (length - len(found)) + tuple(found)

    return StoredScore(
        values(logprobs, "<f8"), values(raw, "<f8"), values(ranks, "<i4"), values(entropies, "<f8"), seconds
    )
