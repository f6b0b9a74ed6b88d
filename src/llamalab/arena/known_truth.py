"""The steps of the pipeline that differ where the truth is known: responses are drawn from a table, not generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llamalab.arena import candidates, made_from
from llamalab.arena.candidate_scores import score
from llamalab.arena.jsonl import read_lines
from llamalab.arena.logprobs import HOW, rows_to_score, score_clone
from llamalab.arena.manifest import write_json, write_whole
from llamalab.arena.work import Work
from llamalab.errors import EngineError, InputError
from llamalab.scoring.result import LogProbResult
from llamalab.scoring.rows import Row, read_rows
from llamalab.scoring.session import Item, Session
from llamalab.scoring.store import Store

TRUTH = "truth.json"
"""The exact mean outcome of every policy, by name."""


def responses(work: Work) -> None:
    """Score every candidate under every policy, say the truth, and draw the base's responses."""
    config = work.config
    asking = list(work.prompts.values())
    work.write(
        "candidates",
        work.folder / candidates.FILE,
        made_from.candidate_table(work),
        lambda done: score(config, asking, done=done) if done < len(asking) else iter(()),
        len(asking),
    )
    table = _table(work)
    write_json(work.folder / TRUTH, candidates.truth(table))
    _draw(work, table, config.base, work.folder / "responses.jsonl", config.responses.per_prompt, "responses")


def draws(work: Work) -> None:
    """Draw fresh responses of each target."""
    table = _table(work) if work.drawing else None
    for name in work.drawing if table is not None else ():
        assert table is not None
        _draw(work, table, name, work.draws_of(name), work.config.responses.draws, f"draws of {name}")


def logprobs(work: Work) -> None:
    """Look the drawn responses up under every policy; those of the clone are scored once more, apart."""
    config, table = work.config, _table(work)
    rescored = {} if config.clone is None else {config.clone: _rescored(work, config.clone)}
    files = {work.folder / "responses.jsonl": (config.base, *config.targets)}
    files |= {work.draws_of(name): (config.base, name) for name in work.drawing}
    for path, names in files.items():
        own = path.name == "responses.jsonl"
        rows = [line.fields for line in read_lines(path)]
        target = work.folder / "logprobs.jsonl" if own else path.with_name(f"{path.stem}.logprobs.jsonl")
        record = made_from.candidate_logprobs(work, path, names)

        def found(
            done: int,
            rows: list[Mapping[str, Any]] = rows,
            names: tuple[str, ...] = names,
            again: Mapping[str, Mapping[str, float | None]] = rescored if own else {},
        ) -> Iterator[Mapping[str, Any]]:
            return candidates.logprobs(table, rows[done:], names, again)

        work.write("logprobs", target, record, found, len(rows))


def _draw(work: Work, table: candidates.Table, name: str, path: Path, count: int, step: str) -> None:
    seed = work.config.candidates.seed if work.config.candidates is not None else 0
    rows = list(candidates.responses(table, name, count, seed))
    record = made_from.candidate_draw(work, name, count)
    work.write(step, path, record, lambda done: iter(rows[done:]), len(rows))


def _table(work: Work) -> candidates.Table:
    path = work.folder / candidates.FILE
    work.complete(path, len(work.prompts), "responses")
    return candidates.read_table(path, work.config.base, work.config.targets)


def _rescored(work: Work, clone: str) -> dict[str, float | None]:
    """log p of each drawn response under the clone, nats, before renormalising: from a process of its own. None: it
    never gives it.

    Raises:
        EngineError: the process failed, or a response that was scored before has no score now.
    """
    policy = work.config.policies[clone]
    rows = work.folder / "to_score" / "responses.jsonl"
    rows.parent.mkdir(exist_ok=True)
    write_whole(rows, rows_to_score(work.folder / "responses.jsonl", work.prompts))
    path = work.folder / "clone.sqlite"
    if work.force:
        for each in work.folder.glob("clone.sqlite*"):
            each.unlink()
    score_clone(policy, rows, path, partial(work.progress, f"scoring {clone} apart"))
    write_json(work.folder / "aa.json", {"policy": clone, "how": HOW})
    with rows.open("rb") as file:
        items = [_item(work, clone, row) for row in read_rows(file) if isinstance(row, Row)]
    found: dict[str, float | None] = {}
    with Store(path) as store, Session([policy], store=store) as session:
        for item, outcome in session.score(items):
            if not isinstance(outcome, LogProbResult):
                raise EngineError(f"The response {item.tag!r} could not be scored once more under '{clone}': {outcome}")
            found[item.tag] = outcome.value
    return found


def _item(work: Work, clone: str, row: Row) -> Item:
    if not isinstance(row.id, str):
        raise InputError(f"The response id {row.id!r} is no text.")
    return Item(work.config.policies[clone], row.prompt, row.response, row.finished, row.response_ids, row.id)
