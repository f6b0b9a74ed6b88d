"""The file that results go into: one whole line after the other, continued where an earlier run stopped.

Beside `out.jsonl` stands `out.jsonl.run.json`: which input and settings it is of, and what the fingerprints in its rows
mean. A run goes on with a file only where these are the same.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from llamalab.errors import InputError
from llamalab.scoring.rows import RowId, as_line

try:
    import fcntl
except ImportError:  # Windows has none; there, two runs into one file are not told apart
    fcntl = None  # type: ignore[assignment]

STREAM = "-"
"""Standard input or output, where a path is asked for."""

FACTS = "fingerprints"
"""The part of the record that explains, and is not compared."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What an earlier run has left in the file.

    Attributes:
        ids: of its rows, in order.
        values: how many log probabilities they have.
        errors: how many of its values are errors, by type.
        out_of_support: how many are minus infinity.
    """

    ids: tuple[RowId | None, ...] = ()
    values: int = 0
    errors: Mapping[str, int] | None = None
    out_of_support: int = 0


class OutputFile:
    """Results in a file; a context manager, and alone in it while it is open.

    Args:
        path: of the file.
        record: what the results are of, as JSON can say it; the part under `FACTS` only explains.
        force: begin the file anew, whatever is in it.

    Raises:
        InputError: the file holds something else, is being written by another process, or cannot be written.
    """

    def __init__(self, path: Path, record: Mapping[str, Any], *, force: bool = False) -> None:
        self.path = path.expanduser().absolute()
        self._record_path = self.path.with_name(f"{self.path.name}.run.json")
        try:
            self._file: BinaryIO = self.path.open("ab+")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
        try:
            self._lock()
            self.kept = Kept() if force else self._continued(record)
            if not self.kept.ids:
                self._file.truncate(0)
                self._write_record(record)
        except BaseException:
            self._file.close()
            raise

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a row. It is the system's when this returns: it survives the end of this process."""
        try:
            self._file.write(as_line(record))
            self._file.flush()
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}.") from error

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another process is writing {self.path}. Wait for it, or name another file.") from None
        except OSError:  # a file system without locks
            return

    def _continued(self, record: Mapping[str, Any]) -> Kept:
        """What is there of these results; what is cut off at the end of the file is removed.

        Raises:
            InputError: it is of something else.
        """
        if not self._file.seek(0, os.SEEK_END):
            return Kept()
        before = self._read_record()
        if before is None:
            raise InputError(
                f"{self.path} exists, and nothing says what it is of ({self._record_path.name} is not beside it). "
                "Name another file, or write it anew with --force."
            )
        other = list(differences(before, json.loads(json.dumps(record))))
        if other:
            raise InputError(
                f"{self.path} was written from other input or settings ({'; '.join(other[:3])}). Name another file, or "
                "write it anew with --force: what the store has is not computed again."
            )
        return self._whole_lines()

    def _whole_lines(self) -> Kept:
        """The rows up to the first that is not whole; the file ends there afterwards."""
        self._file.seek(0)
        ids: list[RowId | None] = []
        errors: Counter[str] = Counter()
        found = outside = end = 0
        for line in self._file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                break
            if not isinstance(row, dict):
                break
            ids.append(row.get("id"))
            for value in values(row):
                if "error" in value:
                    errors[str(value["error"])] += 1
                else:
                    found += 1
                    outside += bool(value.get("out_of_support"))
            end += len(line)
        self._file.truncate(end)
        return Kept(tuple(ids), found, dict(errors), outside)

    def _read_record(self) -> Any:
        try:
            return json.loads(self._record_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _write_record(self, record: Mapping[str, Any]) -> None:
        part = self._record_path.with_name(f"{self._record_path.name}.part")
        try:
            part.write_text(json.dumps(record, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")
            part.replace(self._record_path)
        except OSError as error:
            raise InputError(f"{self._record_path} cannot be written: {error.strerror or error}.") from error


class Stream:
    """Rows into standard output, a pipe or a device: nothing was there before, and nothing is continued."""

    kept = Kept()

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a row, at once."""
        self._file.write(as_line(record))
        self._file.flush()


def open_output(
    stack: ExitStack, source: str, target: str, record: Callable[[], Mapping[str, Any]], *, force: bool
) -> OutputFile | Stream:
    """Where rows go, closed with `stack`.

    Raises:
        InputError: as `OutputFile`; the target is the source.
    """
    if target == STREAM:
        return Stream(sys.stdout.buffer)
    path = Path(target).expanduser()
    if not path.exists() or path.is_file():
        if source != STREAM and path.exists() and path.samefile(Path(source).expanduser()):
            raise InputError(f"The rows would be written over themselves: {target} is both. Name another output.")
        return stack.enter_context(OutputFile(path, record(), force=force))
    try:
        return Stream(stack.enter_context(path.open("wb")))
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.") from error


def values(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The values of a row that was written: one, or one for each policy."""
    policies = row.get("policies")
    return list(policies.values()) if isinstance(policies, dict) and policies else [row]


def differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """In what two records differ, one sentence part each; what only explains is not looked at."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now} - {FACTS}):
            yield from differences(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    elif before != now:
        yield f"{place} was {json.dumps(before)[:60]} and is {json.dumps(now)[:60]}"
