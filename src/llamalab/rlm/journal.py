"""The journal of a run: JSON lines, from which it can be replayed without any model, and resumed after a crash.

A run is a program whose outcome is fixed by its question, its documents, and what came from outside: replies of models,
and what was decided by clocks and budgets. These are its *effects*, each under a key that says where in the run it
belongs ("3.reply", "3.sub.0.7"). A run asks its journal for each effect: where the journal knows it, the run takes it
from there; where not, it happens and is written down. What follows from effects alone (results, messages, the answer)
are *facts*: written down as well, and compared whenever the run passes there again.

    {"type": "run", ...}                        the first line: question, documents, settings, versions
    {"type": "begun", "key": ..., "at": 1.2}    a call of a model is about to be made
    {"type": "effect", "key": ..., "at": 1.9, "data": {...}}
    {"type": "fact", "key": ..., "data": {...}}
    {"type": "lost", "key": ..., "data": {...}} a call that had begun when an earlier process ended, and its charge
    {"type": "end", "at": 2.0}                  the run has its answer

`at` is in seconds since the run began. A line is written whole; one that was cut off by a crash is none.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from llamalab.errors import InputError, LlamalabError

try:
    import fcntl
except ImportError:  # Windows has none; there, two processes that resume one run are not told apart
    fcntl = None  # type: ignore[assignment]

VERSION = 1
"""Of the format."""

Data: TypeAlias = dict[str, Any]
"""What JSON can say."""


class Differs(LlamalabError):
    """A run that was done again came to something else than its journal tells.

    Attributes:
        key: where.
    """

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


def not_ours(path: Path | None, error: Exception) -> InputError:
    """What is said of a journal whose lines are JSON, but lack a field, or have one of another kind."""
    return InputError(f"{path}: a line of it is not what this program writes ({error!r}).")


class JournalEnds(LlamalabError):
    """A replay needs an effect that the journal does not have: the run was broken off there."""


class Tape:
    """The effects and facts of a run, remembered or happening. Safe from several threads.

    Args:
        header: of a new run.
        file: to write to; None: nothing is written.
        known: lines of an earlier process, or of the run that is replayed, the first one left out.
        replaying: effects that are not known do not happen.
        path: of the file; None where there is none.

    Attributes:
        header: of the run.
        known: as given, in order.
        path: as given.
        compared: facts that were known, and came out the same.
        ended: the known run came to its answer.
        happened: an effect has come that the known run does not have.
    """

    def __init__(
        self,
        header: Data,
        *,
        file: BinaryIO | None = None,
        known: list[Data] | None = None,
        replaying: bool = False,
        path: Path | None = None,
    ) -> None:
        self.header, self.known, self.path = header, known or [], path
        self.compared = 0
        self.happened = False
        self.ended = any(line["type"] == "end" for line in self.known)
        self._file, self._replaying = file, replaying
        self._effects = _by_key(self.known, "effect")
        self._facts = _by_key(self.known, "fact")
        self._open = Counter(line["key"] for line in self.known if line["type"] == "begun")
        self._open.subtract(line["key"] for line in self.known if line["type"] in ("effect", "lost"))
        self._lock = threading.Lock()
        self._began = time.monotonic() - self.seconds

    @property
    def facts(self) -> int:
        """How many the known part of the run has."""
        return len(self._facts)

    @property
    def seconds(self) -> float:
        """How long the known part of the run took."""
        return max((line.get("at", 0.0) for line in self.known), default=0.0)

    def effect(self, key: str, happen: Callable[[], Data]) -> Data:
        """What came, or comes now, from outside.

        Raises:
            JournalEnds: a replay does not know it.
        """
        if (found := self._effects.get(key)) is not None:
            return found
        if self._replaying:
            raise JournalEnds(f"The journal ends before {key}.")
        self.happened = True
        data = happen()
        self._write({"type": "effect", "key": key, "at": self._now(), "data": data})
        return data

    def call(self, key: str, make: Callable[[], Data], charge: Callable[[], Data]) -> Data:
        """As `effect`, for a call that costs: it is noted before it is made.

        Args:
            key: of the call.
            make: it.
            charge: books what a call that was lost may have cost, and tells it; asked for each one that had begun when
                an earlier process ended.
        """

        def happen() -> Data:
            for _ in range(self._open.pop(key, 0)):
                self._write({"type": "lost", "key": key, "data": charge()})
            self._write({"type": "begun", "key": key, "at": self._now()})
            return make()

        return self.effect(key, happen)

    def known_fact(self, key: str) -> Data | None:
        """A fact as it was written down; None where it was not."""
        return self._facts.get(key)

    def fact(self, key: str, data: Data) -> None:
        """What follows from the effects so far.

        Raises:
            Differs: the journal tells something else.
        """
        found = self._facts.get(key)
        if found is None:
            if not self._replaying:
                self._write({"type": "fact", "key": key, "data": data})
            elif self.ended:
                raise Differs(f"{key}: the journal tells nothing of it.", key=key)
            return
        if _dump(data) != _dump(found):
            raise Differs(_difference(key, data, found), key=key)
        with self._lock:
            self.compared += 1

    def same(self, key: str, what: str, then: str, now: str) -> None:
        """An effect has to answer to what is asked for now.

        Raises:
            Differs: it answers to something else.
        """
        if then != now:
            raise Differs(f"{key}: the journal's reply was given to other {what}.", key=key)

    def end(self) -> None:
        """The run has its answer."""
        if not self._replaying and not self.ended:
            self._write({"type": "end", "at": self._now()})

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _now(self) -> float:
        return round(time.monotonic() - self._began, 4)

    def _write(self, line: Data) -> None:
        if self._file is None:
            return
        with self._lock:
            if self._file.closed:
                return  # a sub call that ended after its run was given up
            try:
                self._file.write(_dump(line).encode() + b"\n")
                self._file.flush()
            except OSError as error:
                raise InputError(f"The journal cannot be written: {error.strerror or error}.") from error


def start_tape(path: Path | None, header: Data) -> Tape:
    """The tape of a new run.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    header = {"type": "run", "version": VERSION, **header}
    if path is None:
        return Tape(header)
    try:
        descriptor = os.open(path.expanduser(), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)  # holds private text
    except FileExistsError:
        raise InputError(f"{path} exists. Name another file, or go on with the run in it (resume).") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
    file = os.fdopen(descriptor, "r+b")
    _lock(file, path)
    tape = Tape(header, file=file, path=path)
    tape._write(header)
    return tape


def resume_tape(path: Path) -> Tape:
    """The tape of a run that goes on; a line that was cut off is removed.

    Raises:
        InputError: no journal, or one that another process writes.
    """
    try:
        file = path.expanduser().open("r+b")
    except OSError as error:
        raise InputError(f"{path} cannot be resumed: {error.strerror or error}.") from error
    try:
        _lock(file, path)
        header, known, end = _read(file, path)
        file.seek(end)
        file.truncate()
    except BaseException:
        file.close()
        raise
    return Tape(header, file=file, known=known, path=path)


def read_tape(path: Path) -> Tape:
    """The tape of a run that is replayed.

    Raises:
        InputError: no journal.
    """
    try:
        with path.expanduser().open("rb") as file:
            header, known, _ = _read(file, path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    return Tape(header, known=known, replaying=True, path=path)


def default_journal() -> Path:
    """A new file for the journal of a run, in the user's state folder; the folder is made, the file is not.

    Raises:
        InputError: the folder cannot be made.
    """
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    folder = state / "llamalab" / "rlm"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror or error}. Name a journal file.") from error
    now = datetime.now(UTC)
    return folder / f"{now:%Y%m%d-%H%M%S}-{now.microsecond:06d}-{os.getpid()}.jsonl"


def _read(file: BinaryIO, path: Path) -> tuple[Data, list[Data], int]:
    """The first line, the others, and where the last whole one ends.

    Raises:
        InputError: a whole line is none of a journal.
    """
    lines: list[Data] = []
    end = 0
    for number, content in enumerate(file, 1):
        if not content.endswith(b"\n"):
            break
        try:
            line = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error}).") from None
        if not isinstance(line, dict) or not _is_line(line, first=number == 1):
            raise InputError(f"{path}, line {number}: no line of a journal.")
        lines.append(line)
        end += len(content)
    if not lines:
        raise InputError(f"{path} is no journal of a run: it is empty.")
    if lines[0]["version"] != VERSION:
        raise InputError(f"{path} is a journal of version {lines[0]['version']!r}; this program reads {VERSION}.")
    return lines[0], lines[1:], end


def _is_line(line: Mapping[str, Any], *, first: bool) -> bool:
    kind, at = line.get("type"), line.get("at", 0.0)
    if first:
        return kind == "run" and "version" in line
    if kind in ("effect", "fact", "lost") and not isinstance(line.get("data"), dict):
        return False
    keyed = kind == "end" or (kind in ("begun", "effect", "fact", "lost") and isinstance(line.get("key"), str))
    return keyed and isinstance(at, int | float)


def _by_key(lines: list[Data], kind: str) -> dict[str, Data]:
    return {line["key"]: line["data"] for line in lines if line["type"] == kind}


def _lock(file: BinaryIO, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"Another process is writing {path}.") from None
    except OSError:  # a file system without locks
        return


def _dump(data: Data) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _difference(key: str, now: Data, then: Data) -> str:
    """The first field that differs, in a sentence."""
    for name in dict.fromkeys([*then, *now]):
        was, is_ = json.dumps(then.get(name)), json.dumps(now.get(name))
        if was != is_:
            at = next((i for i, (a, b) in enumerate(zip(was, is_, strict=False)) if a != b), min(len(was), len(is_)))
            begin = max(at - 30, 0)
            return f"{key}, {name}: the journal has {was[begin : at + 60]}, now it is {is_[begin : at + 60]}."
    return f"{key}: the same fields come in another order."
