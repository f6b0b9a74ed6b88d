"""Logged data and fresh draws in the layout of the library CJE, read and written.

`logged_data.jsonl` holds one response of the base a line: `prompt`, `response`, `base_policy_logprob`,
`target_policy_logprobs` by name, `judge_score`, `oracle_label` on some, `metadata.prompt_id`. Beside it may stand
`fresh_draws/POLICY_responses.jsonl`: `prompt_id`, `prompt`, `response`, `judge_score`, `draw_idx`, and on some
`oracle_label`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamalab.arena.jsonl import Line, read_lines
from llamalab.arena.run_rows import JUDGE, DrawRow, LoggedRow, RunRows, Source
from llamalab.errors import InputError
from llamalab.scoring.rows import as_line

LOGGED = "logged_data.jsonl"
DRAWS = "fresh_draws"

_BASE = "base"
_CLONE = re.compile(r"(pi_)?clone")
_SUFFIX = "_responses.jsonl"
_UNIT = (0.0, 1.0)
_USUAL = (_UNIT, (0.0, 5.0), (0.0, 10.0), (0.0, 100.0))
_SOURCES = {
    "response": Source(f"{LOGGED}, field 'response'", "Take rows without any number out."),
    "logprob": Source(
        f"{LOGGED}, fields 'base_policy_logprob' and 'target_policy_logprobs'",
        "Score the responses, or take the policy out of every line.",
    ),
    "judge": Source(f"{LOGGED}, field 'judge_score'", "Have the responses judged."),
    "prompt": Source(f"{LOGGED}, field 'metadata.prompt_id'", "Log responses to more prompts."),
    "label": Source(
        f"{LOGGED}, field 'oracle_label'",
        "Label more responses, or take the labels out: values then stand on the judge's scale.",
    ),
}


def read_cje(folder: Path) -> RunRows:
    """A folder with `logged_data.jsonl`, and `fresh_draws` if there are any.

    CJE's layout says neither the ranges of scores and labels nor how labelled rows were chosen. Both ranges are the
    first of 0 to 1, 5, 10 and 100 that holds all values, else from the least value found to the largest; labels are
    taken for a random draw. The notes of the result say so.

    Raises:
        InputError: a line cannot be used; it names file, line and field.
    """
    path = folder / LOGGED
    lines = _lines(path)
    targets = tuple(lines[0].object("target_policy_logprobs"))
    if not targets:
        lines[0].refuse("the field 'target_policy_logprobs' names no policy, so there is nothing to evaluate.")
    prompts: dict[str, str] = {}
    rows = _numbered([_logged(line, targets, prompts) for line in lines])
    _check_ids(lines, rows)
    judge_range = _range([row.judge for row in rows])
    asked = {row.prompt_id for row in rows}
    files = {name: folder / DRAWS / f"{name}{_SUFFIX}" for name in targets}
    draws = {
        name: tuple(_draw(line, prompts, judge_range) for line in _lines(file))
        for name, file in files.items()
        if file.is_file()
    }
    if judge_range != _UNIT:
        judge_range = _range([row.judge for row in rows] + [each.judge for some in draws.values() for each in some])
    labelled = sum(row.label is not None for row in rows)
    outcome_range = _range([row.label for row in rows]) if labelled else None
    elsewhere = {name: sum(draw.prompt_id not in asked for draw in some) for name, some in draws.items()}
    return RunRows(
        folder=folder,
        title=folder.absolute().name,
        base=_BASE,
        targets=targets,
        clone=next((name for name in targets if _CLONE.fullmatch(name)), None),
        prompts=prompts,
        rows=tuple(rows),
        draws=draws,
        judge_range=judge_range,
        outcome_range=outcome_range,
        facts={"data": f"{len(rows):,} logged rows in CJE's layout"},
        commands=(f"llamalab arena report {folder}",),
        notes=(*_notes(labelled, len(rows), judge_range, outcome_range), *_oddities(rows, elsewhere)),
        aa={"how": "not known: the scores came with the data"},
        sources=_SOURCES,
    )


def write_cje(rows: RunRows, folder: Path) -> None:
    """Write logged rows and fresh draws in CJE's layout; a log probability of -inf, and what has none, is null.

    A row without a judge score is left out: it is none of CJE's.

    Raises:
        InputError: the folder is the one that the rows came from, or a file cannot be written.
    """
    if folder.absolute() == rows.folder.absolute():
        raise InputError(f"{folder} is where the rows come from. Name another folder for CJE's layout.")
    _write(folder / LOGGED, (_logged_record(rows, row) for row in rows.rows if row.judge is not None))
    for name, draws in rows.draws.items():
        _write(folder / DRAWS / f"{name}{_SUFFIX}", _draw_records(rows, draws))


def _write(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for record in records:
                file.write(as_line(record))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def _logged(line: Line, targets: Sequence[str], prompts: dict[str, str]) -> LoggedRow:
    metadata = line.fields.get("metadata")
    holder = line if "prompt_id" in line.fields or not isinstance(metadata, dict) else line.part("metadata")
    prompt_id = _prompt_id(holder)
    _remember(line, prompts, prompt_id)
    under = line.part("target_policy_logprobs")
    others = sorted(set(under.fields) ^ set(targets))
    if others:
        line.refuse(f"the policy {others[0]!r} of 'target_policy_logprobs' is not in every line.")
    found = {_BASE: line.logprob_or_none("base_policy_logprob")}
    found |= {name: under.logprob_or_none(name) for name in targets}
    judge = line.number_or_none("judge_score")
    errors = {name: "missing" for name, value in found.items() if value is None}
    if judge is None:
        errors[JUDGE] = "missing"
    return LoggedRow(
        response_id=str(line.fields.get("response_id") or line.number),
        prompt_id=prompt_id,
        response=line.text("response"),
        logprobs={name: value for name, value in found.items() if value is not None},
        judge=judge,
        label=line.number_or_none("oracle_label"),
        errors=errors,
    )


def _numbered(rows: list[LoggedRow]) -> list[LoggedRow]:
    """The rows, with the probability of a label: the share that has one."""
    share = sum(row.label is not None for row in rows) / len(rows)
    return [row if row.label is None else replace(row, probability=share) for row in rows]


def _lines(path: Path) -> list[Line]:
    found = list(read_lines(path, growing=False))
    if not found:
        raise InputError(f"{path} holds no rows.")
    return found


def _prompt_id(line: Line) -> str:
    """Text, or a whole number."""
    value = line.fields.get("prompt_id")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else line.text("prompt_id")


def _check_ids(lines: Sequence[Line], rows: Sequence[LoggedRow]) -> None:
    """See that an id that is given is given once."""
    first: dict[str, int] = {}
    for line, row in zip(lines, rows, strict=True):
        if first.setdefault(row.response_id, line.number) != line.number:
            line.refuse(
                f"the response_id {row.response_id!r} is that of line {first[row.response_id]} too. Give each response "
                "an id of its own, or none."
            )


def _draw(line: Line, prompts: dict[str, str], judge_range: tuple[float, float]) -> DrawRow:
    prompt_id = _prompt_id(line)
    _remember(line, prompts, prompt_id)
    judge = line.number_or_none("judge_score")
    if judge is not None and judge_range == _UNIT and not _UNIT[0] <= judge <= _UNIT[1]:
        line.refuse(
            f"the field 'judge_score' is {judge:g}, and those of the logged responses all lie between 0 and 1: these "
            "are two scales. Bring them to one."
        )
    label = line.number_or_none("oracle_label")
    return DrawRow(
        prompt_id, judge, label=label, error="missing" if judge is None else None, response=line.text("response")
    )


def _remember(line: Line, prompts: dict[str, str], prompt_id: str) -> None:
    prompt = line.text("prompt")
    if prompts.setdefault(prompt_id, prompt) != prompt:
        line.refuse(f"the prompt_id {prompt_id!r} stands for another prompt in an earlier line.")


def _range(values: Sequence[float | None]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    if not known:
        return _UNIT
    low, high = min(known), max(known)
    usual = next((each for each in _USUAL if each[0] <= low and high <= each[1]), None)
    if low == high and usual != _UNIT:  # a scale that ends there would make every mean a limit
        return low - max(0.5, abs(low) / 2), high + max(0.5, abs(high) / 2)
    return usual or (low, high)


def _notes(
    labelled: int, rows: int, judge_range: tuple[float, float], outcome_range: tuple[float, float] | None
) -> tuple[str, ...]:
    notes = [f"Judge scores are taken to lie between {judge_range[0]:g} and {judge_range[1]:g}: the data do not say."]
    if outcome_range is not None:
        notes.append(
            f"{labelled:,} of {rows:,} rows have a label of the oracle, between {outcome_range[0]:g} and "
            f"{outcome_range[1]:g}. They are taken for a random draw with probability {labelled / rows:.3g}: the data "
            "do not say."
        )
    return tuple(notes)


def _oddities(rows: Sequence[LoggedRow], elsewhere: Mapping[str, int]) -> Iterator[str]:
    """What is used as it is, and may not be meant so."""
    seen: set[tuple[object, ...]] = set()
    again = 0
    for row in rows:
        key = row.prompt_id, row.response, row.judge, tuple(row.logprobs.items())
        again += key in seen
        seen.add(key)
    if again:
        yield f"{again:,} of {len(rows):,} rows repeat an earlier one in every number. Each is counted as a response."
    for name, count in elsewhere.items():
        if count:
            yield f"{count:,} fresh draws of {name} are to prompts without a logged response: only 'direct' uses them."


def _logged_record(rows: RunRows, row: LoggedRow) -> dict[str, Any]:
    record = {
        "prompt": rows.prompts[row.prompt_id],
        "response": row.response,
        "base_policy_logprob": _finite(row.logprobs.get(rows.base)),
        "target_policy_logprobs": {name: _finite(row.logprobs.get(name)) for name in rows.targets},
        "metadata": {"prompt_id": row.prompt_id},
        "response_id": row.response_id,
        "judge_score": row.judge,
    }
    return record if row.label is None else {**record, "oracle_label": row.label}


def _draw_records(rows: RunRows, draws: Sequence[DrawRow]) -> Iterator[dict[str, Any]]:
    seen: dict[str, int] = {}
    for draw in draws:
        index = seen[draw.prompt_id] = seen.get(draw.prompt_id, -1) + 1
        if draw.judge is None:
            continue
        record = {
            "prompt_id": draw.prompt_id,
            "prompt": rows.prompts[draw.prompt_id],
            "response": draw.response,
            "judge_score": draw.judge,
            "draw_idx": index,
        }
        yield record if draw.label is None else {**record, "oracle_label": draw.label}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
