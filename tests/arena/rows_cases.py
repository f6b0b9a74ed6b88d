"""Rows of a made-up run whose every number is known, and the same as a run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llamalab.arena.run_rows import DrawRow, LoggedRow, RunRows
from llamalab.arena.settings import EstimatorSettings

FAST = EstimatorSettings(replicates=100, direct=False)


def made_rows(n: int = 200, *, labels: float = 0.5, draws: bool = True) -> RunRows:
    """A base, its clone, a near target that is better, and a far one; two responses a prompt."""
    rng = np.random.default_rng(5)
    quality = rng.standard_normal(n)
    near = 0.4 * quality - 0.08
    far = 3.0 * rng.standard_normal(n) - 4.5
    score = np.clip(np.round(0.5 + 0.15 * quality + 0.05 * rng.standard_normal(n), 2), 0, 1)
    outcome = np.clip(0.45 + 0.2 * quality, 0, 1)
    labelled = rng.random(n) < labels
    rows = tuple(
        LoggedRow(
            response_id=f"r{at}",
            prompt_id=f"p{at // 2}",
            response=f"response {at}",
            logprobs={"p0": -40.0, "pi_clone": -40.0, "near": -40.0 + float(near[at]), "far": -40.0 + float(far[at])},
            judge=float(score[at]),
            label=float(outcome[at]) if labelled[at] else None,
            probability=labels if labelled[at] else None,
            generation=-40.0 + 1e-6 * (at % 2),
            lengths={"p0": 20, "pi_clone": 20, "near": 20, "far": 20},
        )
        for at in range(n)
    )
    drawn = tuple(
        DrawRow(f"p{at}", float(np.clip(0.56 + 0.15 * rng.standard_normal(), 0, 1)), response=f"draw {at}")
        for at in range(n // 2)
    )
    return RunRows(
        folder=Path("nowhere"),
        title="made",
        base="p0",
        targets=("pi_clone", "near", "far"),
        clone="pi_clone",
        prompts={f"p{at}": f"prompt {at}" for at in range(n // 2)},
        rows=rows,
        draws={"near": drawn} if draws else {},
        judge_range=(0.0, 1.0),
        outcome_range=(0.0, 1.0) if labels else None,
        settings=FAST,
        truth={"p0": 0.45, "near": 0.53},
    )


def failing(rows: RunRows, policy: str, count: int) -> RunRows:
    """The same rows, the first of which have no number under a policy (or, "judge", no score)."""

    def failed(row: LoggedRow) -> LoggedRow:
        errors = {policy: "context_overflow"}
        if policy == "judge":
            return replace(row, judge=None, errors=errors)
        kept = {name: value for name, value in row.logprobs.items() if name != policy}
        return replace(row, logprobs=kept, errors=errors)

    return replace(rows, rows=tuple(failed(row) if at < count else row for at, row in enumerate(rows.rows)))


def write_run(folder: Path, rows: RunRows, *, oracle: Mapping[str, Any] | None = None) -> Path:
    """The files of a run that has these rows."""
    policies = (rows.base, *rows.targets)
    config = {
        "base": rows.base,
        "targets": list(rows.targets),
        "clone": rows.clone,
        "judge": {"range": list(rows.judge_range)},
        "oracle": {"range": [0.0, 1.0], "random": True} if oracle is None else oracle,
        "estimators": {"names": ["snips"], "level": 0.9, "folds": 4, "replicates": 50, "seed": 3, "direct": False},
    }
    (folder / "draws").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"title": rows.title, "config": config, "commands": ["x"]}))
    _write(folder / "prompts.jsonl", [{"prompt_id": id, "prompt": text} for id, text in rows.prompts.items()])
    _write(folder / "responses.jsonl", [_response(row.response_id, row, row.generation) for row in rows.rows])
    _write(
        folder / "logprobs.jsonl", [{"id": row.response_id, "policies": _scores(row, policies)} for row in rows.rows]
    )
    judged = [_judged(row.response_id, row.judge) for row in rows.rows]
    for name, draws in rows.draws.items():
        ids = [f"{name}-{at}" for at in range(len(draws))]
        _write(folder / "draws" / f"{name}.jsonl", [_response(id, row) for id, row in zip(ids, draws, strict=True)])
        judged += [_judged(id, row.judge) for id, row in zip(ids, draws, strict=True)]
    _write(folder / "judged.jsonl", judged)
    labels = [row for row in rows.rows if row.label is not None]
    _write(
        folder / "labels.jsonl",
        [{"response_id": row.response_id, "label": row.label, "probability": row.probability} for row in labels],
    )
    return folder


def _response(id: str, row: LoggedRow | DrawRow, logprob: float | None = None) -> dict[str, Any]:
    return {"response_id": id, "prompt_id": row.prompt_id, "response": row.response, "logprob": logprob}


def _judged(id: str, score: float | None) -> dict[str, Any]:
    return {"response_id": id} | ({"error": "judge", "message": "no"} if score is None else {"score": score})


def _scores(row: LoggedRow, policies: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in policies:
        value = row.logprobs.get(name)
        if value is None:
            found[name] = {"logprob": None, "error": row.errors[name], "message": "no"}
        else:
            outside = value == -math.inf
            found[name] = {"logprob": None if outside else value, "out_of_support": outside, "n_tokens": 20}
    return found


def _write(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
