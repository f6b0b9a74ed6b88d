"""What an evaluation might have found, small: one policy of each verdict."""

from __future__ import annotations

from llamalab.arena.results import (
    AACheck,
    CalibrationCurve,
    Comparison,
    HeavyRow,
    Histogram,
    PolicyResult,
    Results,
    TokenRatio,
    Value,
    Weights,
)
from llamalab.ope.diagnostics import Diagnostics
from llamalab.ope.gates import Reason, State, Verdict

WEIGHTS = Weights(
    log_weights=Histogram((-2.0, -1.0, 0.0, 1.0), (1, 2, 1)),
    tail=((2.0, 0.25), (1.0, 0.75), (0.25, 1.0)),
    against_judge=((0.2, -1.5), (0.5, -0.5), (0.5, -0.5), (0.9, 0.7)),
    by_judge=((0.2, 0.5), (0.5, 1.0), (0.9, 1.5)),
    outside=3,
)

ROW = HeavyRow(
    response_id="r7",
    prompt_id="p7",
    weight=2.0,
    share=0.5,
    log_ratio=0.7,
    judge=0.9,
    label=1.0,
    prompt="Say two words.",
    response="two words\n",
    tokens=(TokenRatio("two", 2.25), TokenRatio(" words", -0.75), TokenRatio("\n", None), TokenRatio("!", 0.01)),
)


def diagnostics(policy: str, ess: float = 0.5) -> Diagnostics:
    return Diagnostics(
        policy=policy,
        n=4,
        prompts=4,
        ess=ess,
        n_ess=4 * ess,
        draws_ess=0.97 * ess,
        ess_calibrated=0.93,
        largest_share=0.5,
        largest_ten_share=0.97,
        hill=2.31,
        median_log_ratio=-0.51,
        log_ratio_sd=0.83,
        lognormal_ess=0.502,
        mean_weight=1.04,
        mean_weight_z=0.72,
        outside_support=0.031,
        share_equal=0.017,
        largest_gap=1.53,
        judge_overlap=0.963,
        bennett_z=-0.44,
        typicality=0.88,
        failure_rate=0.0021,
    )


def value(estimator: str, number: float, scale: str = "oracle") -> Value:
    assert scale in ("oracle", "judge")
    return Value(estimator, scale, number, 0.02, number - 0.04, number + 0.04, 3.0)  # type: ignore[arg-type]


def target(name: str, state: State, number: float, truth: float | None = None) -> PolicyResult:
    refused = Reason("ess", 0.02, 0.3, f"The rows of {name} are worth 2%.", f"Let {name} write some responses.")
    values = (value("snips", number), value("ips", number + 0.01), value("snips", number + 0.1, "judge"))
    return PolicyResult(
        name=name,
        role="target",
        verdict=Verdict(state) if state == "SHOWN" else Verdict(state, (refused,)),
        headline=values[0] if state == "SHOWN" else None,
        values=(*values, Value("dr", "oracle", None, None, None, None, None, "No fresh draws.")),
        diagnostics=diagnostics(name),
        weights=WEIGHTS,
        heaviest=(ROW,),
        failures={"context_overflow": 2},
        facts={"model": "pico", "temperature": "0.7"},
        truth=truth,
    )


def results() -> Results:
    base = PolicyResult("p0", "base", Verdict("SHOWN"), value("mean", 0.6), (value("mean", 0.6),), truth=0.61)
    return Results(
        title="Three policies",
        created="2026-01-02T03:04:05Z",
        base="p0",
        scale="oracle",
        outcome_range=(0.0, 1.0),
        judge_range=(0.0, 1.0),
        rows=4,
        prompts=4,
        labelled=2,
        level=0.95,
        policies=(
            base,
            target("warm", "SHOWN", 0.6543, truth=0.66),
            target("hot", "CAUTION", 0.7176, truth=0.5),
            target("bad", "REFUSED", 0.8442, truth=0.25),
        ),
        comparisons=(Comparison("p0", "warm", "snips", "oracle", -0.05, 0.02, -0.09, -0.01, 0.01, 0.02, "It is."),),
        calibration=CalibrationCurve(
            points=((0.2, 0.0), (0.9, 1.0)),
            curve=((0.2, 0.1), (0.9, 0.9)),
            error=0.2,
            labelled=2,
            probability=(0.25, 0.5),
        ),
        aa=AACheck("PASSED", "clone", 4, 1.0, 1.0, 1.0, 0.0, 4, 1e-4, 1e-5, "All rows are equal.", "In a new process."),
        facts={"judge": "exact match"},
        commands=("llamalab arena run config.yaml",),
        notes=("Nothing more.",),
    )
