"""Rows as arrays: one study that every policy has a number for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from llamalab.arena.run_rows import JUDGE, ORACLE, LoggedRow, RunRows
from llamalab.errors import InputError
from llamalab.ope.gates import FAILURES_REFUSED
from llamalab.ope.study import Draws, FloatArray, Study

_LABELS_OFF = 6.0
"""Standard errors by which the number of labels may be off: of a random draw it is so once in a billion times."""


class Studies:
    """Rows as arrays: those that every policy has a number for."""

    def __init__(self, rows: RunRows) -> None:
        """Take the rows apart.

        Raises:
            InputError: nothing can be evaluated; names file, field and remedy.
        """
        self.rows = rows
        if not rows.rows:
            raise InputError(f"{rows.folder} has no responses to evaluate.")
        scored = [row for row in rows.rows if rows.base in row.logprobs and row.judge is not None]
        self._lost = (len(rows.rows) - len(scored)) / len(rows.rows)
        failed = {name: sum(name not in row.logprobs for row in scored) for name in rows.targets}
        self._own = {name: count / len(scored) if scored else 1.0 for name, count in failed.items()}
        possible = {name for name in rows.targets for row in scored if row.logprobs.get(name, -math.inf) > -math.inf}
        self.used = tuple(name for name in rows.targets if name in possible and self._own[name] <= FAILURES_REFUSED)
        self.kept = tuple(row for row in scored if all(name in row.logprobs for name in self.used))
        if not self.kept:
            raise _nothing(rows)
        if len({row.prompt_id for row in self.kept}) < 2:
            source = rows.sources["prompt"]
            raise InputError(
                f"{rows.folder / source.place}: the {len(self.kept):,} of {len(rows.rows):,} responses that have all "
                f"their numbers{_what_failed(rows)} belong to one prompt, so nothing says how much prompts differ. "
                f"{source.remedy}"
            )
        _check_labels(rows, self.kept)
        self.common = _study(rows, self.kept, self.used)

    def alone(self, name: str) -> Study | None:
        """What there is of a policy that too many rows fail under, or that can say none of them; for its diagnostics
        only. None: no row has its log probability and a judge score."""
        kept = [row for row in self.rows.rows if {self.rows.base, name} <= {*row.logprobs} and row.judge is not None]
        return _study(self.rows, kept, (name,)) if kept else None

    def draws(self, name: str) -> Draws | None:
        """Fresh draws of a policy to the prompts of the common study."""
        return _drawn(self.rows, name, {id: at for at, id in enumerate(self.common.prompt_ids)})

    def failed(self, name: str) -> str:
        """What failed most under a policy, in words; empty where nothing did."""
        found = Counter(row.errors[name] for row in self.rows.rows if name in row.errors)
        return "; ".join(f"{error}, {count:,} times" for error, count in found.most_common(3))

    def failure_rate(self, name: str) -> float:
        """Share of logged rows, or of fresh draws or due labels if that is more, that a policy's study lacks."""
        left = len(self.rows.rows) - len(self.kept)
        lost = left / len(self.rows.rows) if name in (self.rows.base, *self.used) else self._lost + self._own[name]
        draws = self.rows.draws.get(name, ())
        scored = _scored(self.rows, name)
        fresh = sum(draw.judge is None or (scored and None in (draw.base, draw.target)) for draw in draws)
        return max(lost, fresh / len(draws) if draws else 0.0, _labels_lost(self.rows))

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
    """Fresh draws with a score, of prompts that have a logged response; if draws were scored under both policies, only
    those that have both log probabilities, so that one failure does not hide what the others say."""
    scored = _scored(rows, name)
    found = [
        draw
        for draw in rows.draws.get(name, ())
        if draw.judge is not None and draw.prompt_id in code and not (scored and None in (draw.base, draw.target))
    ]
    if not found:
        return None
    base, target = ([getattr(draw, side) for draw in found] for side in ("base", "target"))
    return Draws(
        prompt=np.array([code[draw.prompt_id] for draw in found]),
        judge=np.array([draw.judge for draw in found], dtype=np.float64),
        log_ratio=np.array(target) - np.array(base) if scored else None,
    )


def _scored(rows: RunRows, name: str) -> bool:
    """Whether any fresh draw of a policy was scored under both policies."""
    return any(None not in (draw.base, draw.target) for draw in rows.draws.get(name, ()))


def _labels_lost(rows: RunRows) -> float:
    """Share of the rows that the oracle was asked about and gave no label for."""
    failed = sum(ORACLE in row.errors for row in rows.rows)
    return failed / (failed + sum(row.label is not None for row in rows.rows)) if failed else 0.0


def _nothing(rows: RunRows) -> InputError:
    """Why there is not one row to evaluate."""
    has = {"logprob": f"a log probability under {rows.base}", "judge": "a judge score"}
    there = {
        "logprob": sum(rows.base in row.logprobs for row in rows.rows),
        "judge": sum(row.judge is not None for row in rows.rows),
    }
    least = min(there, key=lambda name: there[name])
    source = rows.sources[least]
    both = " together with " + next(has[name] for name in has if name != least) if there[least] else ""
    return InputError(
        f"{rows.folder / source.place}: none of the {len(rows.rows):,} responses has {has[least]}{both}"
        f"{_what_failed(rows)}. {source.remedy}"
    )


def _check_labels(rows: RunRows, kept: Sequence[LoggedRow]) -> None:
    """See that there are as many labels as their probabilities make likely: each weighs one over its own.

    Raises:
        InputError: there are none, though there is an oracle, or far too few or too many.
    """
    if rows.outcome_range is None or not rows.random_labels:
        return
    source = rows.sources["label"]
    drawn = [row.probability or 1.0 for row in rows.rows if row.label is not None or ORACLE in row.errors]
    if all(row.label is None for row in rows.rows):
        raise InputError(
            f"{rows.folder / source.place}: there is an oracle, but no response has a label of it{_what_failed(rows)}. "
            f"{source.remedy}"
        )
    if len({row.prompt_id for row in kept if row.label is not None}) < 2:
        raise InputError(
            f"{rows.folder / source.place}: only one prompt has labels, so nothing says what a judge score is worth. "
            f"{source.remedy}"
        )
    written = sum(bool(row.response) or row.probability is not None for row in rows.rows)
    found = sum(1 / each for each in drawn)
    error = math.sqrt(sum((1 - each) / each**2 for each in drawn))
    if abs(found - written) > max(_LABELS_OFF * error, 1e-6 * written):
        raise InputError(
            f"{rows.folder / source.place}: {len(drawn):,} of {written:,} responses were labelled, and their "
            f"probabilities say about {len(drawn) * written / found:,.0f}. If the step 'labels' was stopped, run it to "
            "its end; of labels in a file, give oracle.fraction (or 'probability' in each line) as the responses were "
            "drawn; if somebody chose them, set oracle.random to false."
        )


def _what_failed(rows: RunRows) -> str:
    """The commonest errors, for a message."""
    found: Counter[str] = Counter()
    for row in rows.rows:
        words = {JUDGE: "the judge", ORACLE: "the oracle"}
        found.update(f"{words.get(name, name)}: {error}" for name, error in row.errors.items())
    return f" ({'; '.join(f'{what}, {count:,} times' for what, count in found.most_common(3))})" if found else ""
