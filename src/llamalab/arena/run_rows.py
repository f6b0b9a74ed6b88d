"""The rows that an evaluation starts from, however they came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamalab.arena.settings import EstimatorSettings

JUDGE = "judge"
"""In `errors`, where policies' names stand otherwise: the judge's."""

ORACLE = ":oracle"
"""The same: the oracle's, for a row that it was asked about. No policy has such a name."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a number of the rows is read from, for messages.

    Attributes:
        place: file of the folder, and field.
        remedy: what to do where it is missing.
    """

    place: str
    remedy: str


def _anew(step: str) -> str:
    return (
        f"Mend the cause, write the step's file anew (--only {step} --force), then run again. The file says of each "
        "row what was wrong."
    )


RUN_SOURCES: Mapping[str, Source] = {
    "response": Source(
        "responses.jsonl, field 'response'",
        "Mend the cause and write the responses anew (--from responses --force). The file says what was wrong.",
    ),
    "logprob": Source("logprobs.jsonl, field 'policies'", _anew("logprobs")),
    "judge": Source("judged.jsonl, field 'score'", _anew("judge")),
    "prompt": Source("responses.jsonl, field 'prompt_id'", "Draw more prompts (prompts.num), or mend what fails."),
    "label": Source(
        "labels.jsonl, field 'label'",
        "Raise oracle.fraction, mend what fails and run --only labels --force, or leave the oracle out: values then "
        "stand on the judge's scale.",
    ),
}
"""Of the folder of a run."""


@dataclass(frozen=True, slots=True)
class LoggedRow:
    """A response of the base policy, with all that is known about it.

    Attributes:
        response_id: its own.
        prompt_id: of its prompt.
        response: text.
        logprobs: nats, by policy; -inf: the policy never gives it; a policy without a number is absent.
        judge: score; None where the judge failed.
        label: of the oracle; None where it was not asked.
        probability: of having been labelled; None: not known.
        generation: its log probability when it was written, nats; None: not known.
        lengths: tokens, by policy.
        errors: types, by policy that has no number, or `JUDGE` or `ORACLE`.
    """

    response_id: str
    prompt_id: str
    response: str
    logprobs: Mapping[str, float]
    judge: float | None
    label: float | None = None
    probability: float | None = None
    generation: float | None = None
    lengths: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DrawRow:
    """A fresh response of a target.

    Attributes:
        prompt_id: of its prompt.
        judge: score; None where the judge failed.
        base: its log probability under the base, nats; None: not scored.
        target: the same under the target that wrote it.
        label: of the oracle.
        error: type, where it has no judge score.
        response: text.
    """

    prompt_id: str
    judge: float | None
    base: float | None = None
    target: float | None = None
    label: float | None = None
    error: str | None = None
    response: str = ""


@dataclass(frozen=True, slots=True)
class RunRows:
    """What an evaluation is computed from.

    Attributes:
        folder: that it was read from.
        title: of the run.
        base: name of the policy that gave the responses.
        targets: names, in the order of the configuration.
        clone: the target that agrees with the base in everything; None: there is none.
        prompts: text by prompt id.
        rows: logged responses.
        draws: fresh responses, by target.
        judge_range: least and largest score.
        outcome_range: least and largest label; None: there is no oracle.
        random_labels: False where the labelled rows were chosen by hand.
        settings: of the estimators.
        truth: exact mean outcome by policy, where it is known.
        policy_facts: what each policy is, in words.
        facts: the judge, the oracle, the software.
        commands: that made the rows.
        notes: what a reader should know.
        aa: what is known of how the clone was scored; empty: nothing.
        sources: where "response", "logprob", "judge", "prompt" and "label" are read from.
    """

    folder: Path
    title: str
    base: str
    targets: tuple[str, ...]
    clone: str | None
    prompts: Mapping[str, str]
    rows: tuple[LoggedRow, ...]
    draws: Mapping[str, tuple[DrawRow, ...]]
    judge_range: tuple[float, float]
    outcome_range: tuple[float, float] | None
    random_labels: bool = True
    settings: EstimatorSettings = field(default_factory=EstimatorSettings)
    truth: Mapping[str, float] | None = None
    policy_facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    aa: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=lambda: RUN_SOURCES)
