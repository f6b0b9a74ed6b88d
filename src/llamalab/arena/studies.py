"""Rows as arrays: one study that every policy has a number for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from llamalab.arena.run_rows import LoggedRow, RunRows
from llamalab.errors import InputError
from llamalab.ope.gates import FAILURES_REFUSED
from llamalab.ope.study import Draws, FloatArray, Study


class Studies:
    """Rows as arrays: those that every policy has a number for."""

    def __init__(self, rows: RunRows) -> None:
        self.rows = rows
        if not rows.rows:
            raise InputError(f"{rows.folder} has no responses to evaluate.")
        scored = [row for row in rows.rows if rows.base in row.logprobs and row.judge is not None]
        self._lost = (len(rows.rows) - len(scored)) / len(rows.rows)
        failed = {name: sum(name not in row.logprobs for row in scored) for name in rows.targets}
        self._own = {name: count / len(scored) if scored else 1.0 for name, count in failed.items()}
        self.used = tuple(name for name in rows.targets if self._own[name] <= FAILURES_REFUSED)
        self.kept = tuple(row for row in scored if all(name in row.logprobs for name in self.used))
        if not self.kept:
            raise InputError(f"{rows.folder}: no row has both a log probability under {rows.base} and a judge score.")
        self.common = _study(rows, self.kept, self.used)

    def alone(self, name: str) -> Study:
        """What there is of a policy that too many rows fail under; for its diagnostics only."""
        kept = [row for row in self.rows.rows if {self.rows.base, name} <= {*row.logprobs} and row.judge is not None]
        if not kept:
            raise InputError(f"{self.rows.folder}: no row has a log probability under {name} and a judge score.")
        return _study(self.rows, kept, (name,))

    def failure_rate(self, name: str) -> float:
        """Share of logged rows, or of fresh draws if that is more, that are not in the study of a policy."""
        left = len(self.rows.rows) - len(self.kept)
        lost = left / len(self.rows.rows) if name in self.used else self._lost + self._own[name]
        draws = self.rows.draws.get(name, ())
        return max(lost, sum(draw.judge is None for draw in draws) / len(draws) if draws else 0.0)

    def surprisal(self, name: str, study: Study) -> FloatArray | None:
        """(n,) nats per token under a policy; None where lengths are not known."""
        kept = self.kept if study is self.common else [row for row in self.rows.rows if name in row.logprobs]
        if len(kept) != study.n or not all(row.lengths.get(name) for row in kept):
            return None
        return np.array([-row.logprobs[name] / row.lengths[name] for row in kept])


def _study(rows: RunRows, kept: Sequence[LoggedRow], policies: Sequence[str]) -> Study:
    ids = tuple(dict.fromkeys(row.prompt_id for row in kept))
    code = {id: at for at, id in enumerate(ids)}
    base = np.array([row.logprobs[rows.base] for row in kept])
    if not np.isfinite(base).all():
        row = kept[int(np.argmin(base))]
        raise InputError(
            f"{rows.folder}: the base {rows.base} can never give its own response {row.response_id!r}: it was scored "
            "with another sampler than it was generated with."
        )
    labels = [row.label for row in kept]
    return Study(
        prompt=np.array([code[row.prompt_id] for row in kept]),
        prompt_ids=ids,
        judge=np.array([row.judge for row in kept], dtype=np.float64),
        label=np.array([math.nan if label is None else label for label in labels]),
        label_probability=np.array([row.probability or 1.0 for row in kept]),
        log_ratio={name: np.array([row.logprobs[name] for row in kept]) - base for name in policies},
        draws={name: drawn for name in policies if (drawn := _drawn(rows, name, code)) is not None},
        outcome_range=rows.outcome_range or rows.judge_range,
        judge_range=rows.judge_range,
        random_labels=rows.random_labels,
    )


def _drawn(rows: RunRows, name: str, code: Mapping[str, int]) -> Draws | None:
    """Fresh draws with a score, of prompts that have a logged response."""
    found = [draw for draw in rows.draws.get(name, ()) if draw.judge is not None and draw.prompt_id in code]
    if not found:
        return None
    base, target = ([getattr(draw, side) for draw in found] for side in ("base", "target"))
    scored = None not in base and None not in target
    return Draws(
        prompt=np.array([code[draw.prompt_id] for draw in found]),
        judge=np.array([draw.judge for draw in found], dtype=np.float64),
        log_ratio=np.array(target) - np.array(base) if scored else None,
    )
