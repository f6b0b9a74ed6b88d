"""What an evaluation found: one record, which the report shows and `results.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from llamalab.arena import records
from llamalab.ope.diagnostics import Diagnostics
from llamalab.ope.gates import Verdict

Scale: TypeAlias = Literal["oracle", "judge"]
Role: TypeAlias = Literal["base", "target", "clone"]

VERSION = 1
"""Of the layout of `results.json`."""


@dataclass(frozen=True, slots=True)
class Value:
    """One estimate of one policy's mean outcome.

    Attributes:
        estimator: "ips", "snips", "calibrated_ips", "dr", "stacked"; "mean" (the base, on its own responses); "direct"
            (the library cje-eval on the target's own draws); "draws" (the plain mean of the target's own draws).
        scale: what the number is of: the oracle's outcome, or the judge's score.
        value: in units of that scale; None where there is none, see `problem`.
        se: standard error, clustered by prompt.
        low: of the interval.
        high: of the interval.
        df: degrees of freedom of the interval; None where it has none of its own.
        problem: why there is no number; None where there is one.
    """

    estimator: str
    scale: Scale
    value: float | None
    se: float | None
    low: float | None
    high: float | None
    df: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts in bins of equal width.

    Attributes:
        edges: one more than counts, rising.
        counts: rows from each edge up to the next; the last bin holds its upper edge.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """What the pictures of the weights are drawn from.

    Attributes:
        log_weights: of the raw log ratios inside the support, nats.
        tail: (weight, share of rows with at least that weight), weights divided by their mean, falling; thinned out to
            200 points, the 50 largest all there.
        against_judge: (judge score, log ratio) of rows inside the support, at most 1,000 of them, evenly taken.
        by_judge: (judge score, E[w | score], mean-one), the calibrated weights as a step function, rising in score.
        outside: rows outside the support, weight 0.
    """

    log_weights: Histogram
    tail: tuple[tuple[float, float], ...]
    against_judge: tuple[tuple[float, float], ...]
    by_judge: tuple[tuple[float, float], ...]
    outside: int


@dataclass(frozen=True, slots=True)
class TokenRatio:
    """One token of a response.

    Attributes:
        text: as it reads.
        log_ratio: log p_target - log p_base of this token, nats; None where the target never gives it.
    """

    text: str
    log_ratio: float | None


@dataclass(frozen=True, slots=True)
class HeavyRow:
    """A logged row with one of the largest weights.

    Attributes:
        response_id: of the row.
        prompt_id: of its prompt.
        weight: divided by the mean weight.
        share: of the sum of all weights.
        log_ratio: nats.
        judge: score.
        label: of the oracle, if it has one.
        prompt: text, cut at 600 characters.
        response: text, cut at 2,000 characters.
        tokens: of the response, with what each adds to the log ratio; empty where only sums are known.
    """

    response_id: str
    prompt_id: str
    weight: float
    share: float
    log_ratio: float
    judge: float
    label: float | None
    prompt: str
    response: str
    tokens: tuple[TokenRatio, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """What was found about one policy.

    Attributes:
        name: in the configuration.
        role: the base, a target, or a clone of the base.
        verdict: whether there is a headline number, and why not. The base's is SHOWN.
        headline: the number to quote; None unless the verdict is SHOWN.
        values: of every estimator, on both scales; to look at, not to quote, where the verdict is not SHOWN.
        diagnostics: None for the base.
        weights: None for the base.
        heaviest: rows with the largest weights, falling.
        failures: rows without a number, by type of error.
        facts: what the policy is: model, temperature, template, fingerprint, in words.
        truth: its exact mean outcome, where that is known.
    """

    name: str
    role: Role
    verdict: Verdict
    headline: Value | None
    values: tuple[Value, ...]
    diagnostics: Diagnostics | None = None
    weights: Weights | None = None
    heaviest: tuple[HeavyRow, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    truth: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference of two policies on the same prompts.

    Attributes:
        first: name of a policy.
        second: name of the other; the difference is that of the first less that of the second.
        estimator: of both.
        scale: of both.
        difference: of the values.
        se: of the difference, from the joint bootstrap.
        low: of the interval.
        high: of the interval.
        p: two-sided.
        p_adjusted: after Benjamini and Hochberg over all comparisons.
        sentence: what it says.
    """

    first: str
    second: str
    estimator: str
    scale: Scale
    difference: float
    se: float
    low: float
    high: float
    p: float
    p_adjusted: float
    sentence: str


@dataclass(frozen=True, slots=True)
class CalibrationCurve:
    """From judge score to outcome.

    Attributes:
        points: (judge score, label) of labelled rows, at most 1,000 of them.
        curve: (judge score, calibrated outcome), rising; a step function.
        error: root mean square of label minus out-of-fold calibrated outcome.
        labelled: labelled rows.
        probability: (least, largest) known probability of being labelled.
    """

    points: tuple[tuple[float, float], ...]
    curve: tuple[tuple[float, float], ...]
    error: float | None
    labelled: int
    probability: tuple[float, float]


@dataclass(frozen=True, slots=True)
class AACheck:
    """The base against its own clone, and scores against what was said at generation.

    Attributes:
        state: PASSED: every row bit-equal. FAILED: not.
        policy: the clone's name.
        rows: compared.
        share_equal: with a log ratio of exactly 0.
        ess: as in `Diagnostics`.
        mean_weight: as in `Diagnostics`.
        largest_gap: largest |log ratio|, nats.
        generation_rows: rows that have a log probability of their generation.
        generation_gap: largest |scored - at generation|, nats.
        generation_gap_mean: mean of the same.
        sentence: what it says.
        how: how the clone was scored: a new process, an empty store, shuffled, sharing off; or that it is not known.
    """

    state: Literal["PASSED", "FAILED"]
    policy: str
    rows: int
    share_equal: float
    ess: float
    mean_weight: float
    largest_gap: float | None
    generation_rows: int
    generation_gap: float | None
    generation_gap_mean: float | None
    sentence: str
    how: str


@dataclass(frozen=True, slots=True)
class Results:
    """Everything an evaluation found.

    Attributes:
        title: of the run.
        created: when, UTC, ISO 8601; empty where the same rows are to give the same bytes.
        base: name of the policy that gave the responses.
        scale: of the headline numbers.
        outcome_range: least and largest outcome on the oracle's scale.
        judge_range: least and largest judge score.
        rows: logged.
        prompts: distinct.
        labelled: rows with a label of the oracle.
        level: of every interval, .95.
        policies: the base first, then in the order of the configuration.
        comparisons: of the policies that are shown, among each other and with the base.
        calibration: None without labels.
        aa: None without a clone.
        facts: the judge, the oracle, the prompts, the software: name and what it was, in words.
        commands: that lead from the configuration to this file.
        notes: what a reader should know, one sentence each.
        version: of this layout.
    """

    title: str
    created: str
    base: str
    scale: Scale
    outcome_range: tuple[float, float]
    judge_range: tuple[float, float]
    rows: int
    prompts: int
    labelled: int
    level: float
    policies: tuple[PolicyResult, ...]
    comparisons: tuple[Comparison, ...] = ()
    calibration: CalibrationCurve | None = None
    aa: AACheck | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    version: int = VERSION

    def policy(self, name: str) -> PolicyResult:
        """The one of that name.

        Raises:
            KeyError: there is none.
        """
        return {policy.name: policy for policy in self.policies}[name]


def write_results(results: Results, path: Path) -> None:
    """Write `results.json`, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    records.write(results, path)


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote.

    Raises:
        InputError: no such file, or not of this layout; it names the field.
    """
    return records.read(Results, path)
