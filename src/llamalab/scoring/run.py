"""Many rows under several policies: read, scored, written in their order, continued where an earlier run stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from llamalab.errors import ConfigError, InputError, LlamalabError, ModelFileError, OutOfMemory, StoreError
from llamalab.scored import ScoreMode
from llamalab.scoring.fingerprint import Fingerprint, fingerprint
from llamalab.scoring.output import FACTS, STREAM, Kept, open_output, values
from llamalab.scoring.policy import Policy
from llamalab.scoring.result import LogProbResult
from llamalab.scoring.rows import BAD_ROW, BadRow, Row, RowId, error_record, is_blank, read_rows, result_record
from llamalab.scoring.session import Item, Session
from llamalab.scoring.store import Store

Progress = Callable[[int, int], None]
"""Told how many rows are done, and of how many."""

FATAL = (ModelFileError, ConfigError, OutOfMemory, StoreError)
"""Errors of a response that every other one would meet as well: they end the run."""

_FORMAT = 1  # of the rows that are written
_AT_ONCE = 64  # rows, at most, that the session gets at once
_AT_RISK_S = 2.0  # of work that is not in the output yet
_IRRELEVANT = frozenset({"n_threads", "n_seq"})  # engine options that change no row


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with each row.

    Attributes:
        policies: by name.
        nested: write the values of a row under its policies' names; else the only policy's in the row itself.
        mode: of scoring.
        tokens: write each token as well.
    """

    policies: Mapping[str, Policy]
    nested: bool = False
    mode: ScoreMode = "strict"
    tokens: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of a run.

    Attributes:
        rows: of the input.
        kept: rows that an earlier run had written.
        values: log probabilities in the output, one for each row and policy.
        stored: how many of them came from the store in this run.
        out_of_support: how many are minus infinity: the policy never gives such a response.
        errors: what has none, by type.
    """

    rows: int
    kept: int
    values: int
    stored: int
    out_of_support: int
    errors: Mapping[str, int]

    @property
    def failed(self) -> int:
        """How many have no log probability."""
        return sum(self.errors.values())


class Scorer(Protocol):
    """What of a `Session` is used here."""

    def score(self, items: Iterable[Item]) -> Iterable[tuple[Item, LogProbResult | LlamalabError]]:
        """Each item with its result, in order."""
        ...


def run(
    source: str,
    target: str,
    plan: Plan,
    *,
    store: Store | None = None,
    force: bool = False,
    session: Scorer | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Score the rows of `source` and write them to `target`, both JSON lines.

    Rows are written in their order, each as soon as it and those before it are done. A target that an earlier run of
    the same rows and settings left unfinished is continued after its last whole row, and is the same then, byte by
    byte, as if that run had finished.

    Args:
        source: a file; "-": standard input.
        target: a file; "-": standard output.
        plan: policies and settings.
        store: results that were computed before, and a place for those that are.
        force: write the target anew.
        session: what scores; None: one is opened if it is needed.
        progress: told about every row.

    Raises:
        InputError: the source cannot be read, the target not be written, or it holds something else.
        ModelFileError, ConfigError, OutOfMemory, StoreError: a policy cannot be used; rows done so far are kept.
    """
    with ExitStack() as stack:
        file = stack.enter_context(_opened(source))
        sum, rows = _measured(file, source)
        marks = {name: fingerprint(policy, plan.mode) for name, policy in plan.policies.items()}
        output = open_output(stack, source, target, lambda: _record(plan, marks, sum, rows), force=force)
        kept = len(output.kept.ids)
        tally = _Tally(output.kept)
        remaining = _after(read_rows(file), output.kept.ids, target)
        done = kept
        if session is None:
            session = stack.enter_context(Session(list(plan.policies.values()), mode=plan.mode, store=store))
        for record in _scored(remaining, plan, session, tally):
            output.write(record)
            tally.count(record)
            done += 1
            if progress is not None:
                progress(done, rows)
        return Summary(rows, kept, tally.values, tally.stored, tally.out_of_support, dict(tally.errors))


def record_of(plan: Plan, rows: bytes) -> dict[str, Any]:
    """What `run` writes beside its target about these rows: everything that decides the target's bytes.

    Args:
        plan: policies and settings.
        rows: JSON lines.

    Raises:
        ModelNotFound, ModelFileError, ConfigError: a policy's model cannot be read.
    """
    marks = {name: fingerprint(policy, plan.mode) for name, policy in plan.policies.items()}
    sum, count = _measured(io.BytesIO(rows), "rows")
    return _record(plan, marks, sum, count)


class _Tally:
    """Counts of what is in the output."""

    def __init__(self, kept: Kept) -> None:
        self.errors = Counter(kept.errors or {})
        self.out_of_support = kept.out_of_support
        self.values = kept.values
        self.stored = 0

    def count(self, row: Mapping[str, Any]) -> None:
        for value in values(row):
            if "error" in value:
                self.errors[str(value["error"])] += 1
            else:
                self.values += 1
                self.out_of_support += bool(value["out_of_support"])


def _scored(rows: Iterator[Row | BadRow], plan: Plan, session: Scorer, tally: _Tally) -> Iterator[dict[str, Any]]:
    """Records of `rows`, in their order.

    The session gets several rows at once, so that they can share passes: in strict mode as many as take about
    `_AT_RISK_S`, because what it has not handed back yet is not in the output. The values of fast mode depend on what
    is computed together, and must not depend on the clock.
    """
    count = 1 if plan.mode == "strict" else _AT_ONCE
    while chunk := list(islice(rows, count)):
        began = time.monotonic()
        yield from _chunk(chunk, plan, session, tally)
        if plan.mode == "strict":
            short = time.monotonic() - began < _AT_RISK_S / 2
            count = min(2 * count, _AT_ONCE) if short else max(1, count // 2)


def _chunk(rows: Sequence[Row | BadRow], plan: Plan, session: Scorer, tally: _Tally) -> Iterator[dict[str, Any]]:
    items = [
        Item(policy, row.prompt, row.response, row.finished, row.response_ids, name)
        for row in rows
        if isinstance(row, Row)
        for name, policy in plan.policies.items()
    ]
    results = iter(session.score(items))
    for row in rows:
        if isinstance(row, BadRow):
            yield _bad_record(row, plan)
            continue
        found = {}
        for item, result in islice(results, len(plan.policies)):
            if isinstance(result, FATAL):
                raise result
            tally.stored += isinstance(result, LogProbResult) and result.stored
            found[item.tag] = result_record(item.policy, result, tokens=plan.tokens)
        yield _record_of(row, found, plan)


def _record_of(row: Row, found: Mapping[str, dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """What is written of a row."""
    if plan.nested:
        return {"id": row.id, "policies": dict(found)}
    (value,) = found.values()
    return {"id": row.id, **value}


def _bad_record(row: BadRow, plan: Plan) -> dict[str, Any]:
    record = {"id": row.id, "line": row.line, **error_record(BAD_ROW, row.message)}
    return record | ({"policies": {}} if plan.nested else {})


def _after(rows: Iterator[Row | BadRow], kept: Sequence[RowId | None], target: str) -> Iterator[Row | BadRow]:
    """The rows that are not in the target yet.

    Raises:
        InputError: those in the target are others.
    """
    for number, id in enumerate(kept, 1):
        row = next(rows, None)
        if row is None or row.id != id:
            expected = "no more rows" if row is None else f"the id {row.id!r}"
            raise InputError(
                f"{target}, row {number}, has the id {id!r} where the input has {expected}: the file was changed. "
                "Write it anew with --force."
            )
    return rows


def _record(plan: Plan, marks: Mapping[str, Fingerprint], sum: str, rows: int) -> dict[str, Any]:
    """What the target is of: everything that decides its bytes."""
    from importlib.metadata import version

    return {
        "format": _FORMAT,
        "llamalab": version("llamalab"),
        "input": {"sha256": sum, "rows": rows},
        "mode": plan.mode,
        "tokens": plan.tokens,
        "nested": plan.nested,
        "policies": {name: _settings(policy, marks[name]) for name, policy in plan.policies.items()},
        FACTS: {mark.key: dict(mark.facts) for mark in marks.values()},
    }


def _settings(policy: Policy, mark: Fingerprint) -> dict[str, Any]:
    options = {name: str(value) for name, value in sorted(policy.options.items()) if name not in _IRRELEVANT}
    template = Path(policy.template).expanduser() if policy.template else None
    content = template.read_bytes() if template is not None and template.is_file() else None
    return {
        "provider": policy.provider,
        "model": policy.model,
        "fingerprint": mark.key,
        "decoding": dataclasses.asdict(policy.decoding),
        "system_prompt": policy.system_prompt,
        "template": policy.template,
        "date": policy.date,
        "template_sha256": None if content is None else hashlib.sha256(content).hexdigest(),
        "options": options,
    }


def _opened(source: str) -> BinaryIO:
    """The source as a file that can be read twice.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if source != STREAM:
            return Path(source).expanduser().open("rb")
        spool = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115  (the caller closes it)
        shutil.copyfileobj(sys.stdin.buffer, spool)
        return spool
    except OSError as error:
        raise InputError(f"The rows {source} cannot be read: {error.strerror or error}.") from error


def _measured(file: BinaryIO, source: str) -> tuple[str, int]:
    """SHA-256 and number of rows; the file stands at its beginning afterwards."""
    try:
        file.seek(0)
        digest, rows = hashlib.sha256(), 0
        for line in file:
            digest.update(line)
            rows += not is_blank(line)
        file.seek(0)
    except OSError as error:
        raise InputError(f"The rows {source} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest(), rows
