"""What an evaluation is computed from: logged responses of one policy, weighed for others.

Dimension key: n logged responses, G prompts, m fresh draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llamalab.errors import InputError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

LEAST_LABEL_PROBABILITY = 1e-6
"""Of being labelled. One label weighs one over it: below, that label would decide every estimate."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Fresh responses of one target policy, judged.

    Attributes:
        prompt: (m,) codes of prompts, as in `Study.prompt`.
        judge: (m,) judge scores.
        log_ratio: (m,) nats, log p_target - log p_base of these draws, where they were scored under both; else None.
    """

    prompt: IntArray
    judge: FloatArray
    log_ratio: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """Logged responses of the base policy, with all that is known about each.

    Rows are in any order; a prompt may have several. Whatever failed to be scored or judged is left out here, as a
    whole row and for every policy at once.

    Attributes:
        prompt: (n,) codes of prompts, 0..G-1: rows of one prompt form a cluster.
        prompt_ids: (G,) names; folds are made from these, so the order of rows decides nothing.
        judge: (n,) judge scores S, finite.
        label: (n,) oracle labels Y, NaN where there is none.
        label_probability: (n,) probability q with which the row was chosen to be labelled, in (0, 1].
        log_ratio: of each target policy, (n,) nats, log p_target - log p_base; -inf: the target cannot say this
            (its weight is 0).
        draws: fresh draws of each target policy; a policy may have none.
        outcome_range: lowest and highest possible label.
        judge_range: lowest and highest possible judge score.
        random_labels: False where somebody chose by hand which rows to label; then nothing is calibrated on them.

    Raises:
        InputError: arrays of different lengths, values that are no number or out of range, prompts unknown or named
            twice; the message names the row, counted from 0.
    """

    prompt: IntArray
    prompt_ids: tuple[str, ...]
    judge: FloatArray
    label: FloatArray
    label_probability: FloatArray
    log_ratio: Mapping[str, FloatArray]
    draws: Mapping[str, Draws] = field(default_factory=dict)
    outcome_range: tuple[float, float] = (0.0, 1.0)
    judge_range: tuple[float, float] = (0.0, 1.0)
    random_labels: bool = True

    def __post_init__(self) -> None:
        if self.n == 0:
            raise InputError("A study without responses cannot be evaluated.")
        if len(set(self.prompt_ids)) != len(self.prompt_ids):
            twice = sorted({name for name in self.prompt_ids if self.prompt_ids.count(name) > 1})
            raise InputError(
                f"The prompt id {twice[0]!r} stands for several prompts. Give each prompt an id of its own."
            )
        columns = {
            "prompt": self.prompt,
            "label": self.label,
            "label_probability": self.label_probability,
            **{f"log_ratio of {name}": values for name, values in self.log_ratio.items()},
        }
        for name, values in columns.items():
            if values.shape != (self.n,):
                raise InputError(f"{name} has shape {values.shape}, but there are {self.n} judge scores.")
        _check_codes(self.prompt, self.n_prompts, "response")
        _check_range("judge score", self.judge, self.judge_range, "judge")
        _check_range("label", self.label[self.labelled], self.outcome_range, "oracle", np.flatnonzero(self.labelled))
        wrong = ~((self.label_probability >= LEAST_LABEL_PROBABILITY) & (self.label_probability <= 1))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"Row {row} has the label probability {self.label_probability[row]}; it must lie between "
                f"{LEAST_LABEL_PROBABILITY:g} and 1: the probability with which the row was chosen to be labelled."
            )
        for name, log_ratio in self.log_ratio.items():
            _check_log_ratio(name, log_ratio, "response")
        for name, draws in self.draws.items():
            if name not in self.log_ratio:
                raise InputError(f"There are fresh draws of {name!r}, which is none of {', '.join(self.log_ratio)}.")
            if draws.prompt.shape != draws.judge.shape or draws.prompt.ndim != 1:
                raise InputError(f"The draws of {name} have {draws.prompt.size} prompts and {draws.judge.size} scores.")
            _check_codes(draws.prompt, self.n_prompts, f"draw of {name}")
            _check_range(f"judge score of a draw of {name}", draws.judge, self.judge_range, "judge")
            if draws.log_ratio is not None:
                _check_log_ratio(name, draws.log_ratio, "draw")

    @property
    def n(self) -> int:
        """Logged responses."""
        return len(self.judge)

    @property
    def n_prompts(self) -> int:
        """Prompts, G."""
        return len(self.prompt_ids)

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the target policies."""
        return tuple(self.log_ratio)

    @property
    def labelled(self) -> BoolArray:
        """(n,) which rows have a label."""
        return ~np.isnan(self.label)

    @property
    def fully_labelled(self) -> bool:
        """Whether every row has a label, so that nothing needs calibration."""
        return bool(self.labelled.all())


def _check_codes(codes: IntArray, size: int, what: str) -> None:
    wrong = (codes < 0) | (codes >= size)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"The {what} in row {row} names prompt {codes[row]}, but prompts go from 0 to {size - 1}.")


def _check_range(
    what: str, values: FloatArray, allowed: tuple[float, float], section: str, rows: IntArray | None = None
) -> None:
    low, high = allowed
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InputError(
            f"The range of a {what} goes from {low} to {high}; give the lowest value first, then the highest."
        )
    wrong = ~((values >= low) & (values <= high))  # NaN is wrong too
    if wrong.any():
        at = int(np.argmax(wrong))
        row = at if rows is None else int(rows[at])
        raise InputError(
            f"Row {row} has the {what} {values[at]}, which is outside {low:g} to {high:g}. "
            f"Correct the row, or the range that the {section} declares."
        )


def _check_log_ratio(policy: str, log_ratio: FloatArray, what: str) -> None:
    wrong = np.isnan(log_ratio) | (log_ratio == np.inf)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"The log ratio of {policy} for the {what} in row {row} is {log_ratio[row]}. It must be a number, or "
            "minus infinity where the policy cannot say the response; a row that failed is left out for every policy."
        )
