"""From rows to results: one study for all policies, estimates on both scales, gates, and what the report shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llamalab.arena.aa import Gap, check_clone, generation_gap
from llamalab.arena.comparisons import compare
from llamalab.arena.direct import direct_values, mean_of_draws
from llamalab.arena.results import AACheck, HeavyRow, PolicyResult, Results, Role, Scale, Value, Weights
from llamalab.arena.run_folder import token_ratios
from llamalab.arena.run_rows import JUDGE, ORACLE, LoggedRow, RunRows
from llamalab.arena.studies import Studies
from llamalab.arena.verdicts import verdict_on, with_remedy
from llamalab.arena.weight_pictures import calibration_curve, weight_pictures
from llamalab.ope.diagnostics import Diagnostics, diagnose
from llamalab.ope.estimators import Estimate, estimate
from llamalab.ope.gates import Verdict, judge_base
from llamalab.ope.study import Study
from llamalab.ope.weights import mean_one_weights

HEADLINE = ("stacked", "dr", "snips", "calibrated_ips", "ips")
"""Which estimator is quoted: the first of these that there is."""

_HEAVIEST = 8
_PROMPT_CHARACTERS, _RESPONSE_CHARACTERS = 600, 2000


def evaluate(rows: RunRows, *, created: str = "") -> Results:
    """Everything that can be said about the targets from these rows.

    A row that has no number under one policy is left out for every policy, so that all are compared on the same rows. A
    policy under which more than 1% of the rows fail, or which can say none of them, is refused and costs the others no
    rows.

    Args:
        rows: of a run.
        created: when, for the record.

    Raises:
        InputError: too little to evaluate (no row with a score, one prompt, one label), or numbers that cannot be.
    """
    study_of = Studies(rows)
    study, settings = study_of.common, rows.settings
    scale = _scale(rows, study)
    found = _estimates(study, study_of.used, _names(rows), scale, rows)
    direct = direct_values(rows, study_of.kept, settings.level) if settings.direct and scale == "oracle" else {}
    heaviest = _heaviest(rows, study_of.kept, study)
    policies = [_base_result(rows, study, scale, study_of.failure_rate(rows.base))]
    for name in rows.targets:
        estimates = [each for each in found if each.policy == name]
        diagnostics, weights = _diagnosed(study_of, name)
        values = [_value(each) for each in estimates]
        drawn = mean_of_draws(study_of.draws(name), settings.level)
        values += [each for each in (drawn, direct.get(name)) if each is not None]
        verdict = verdict_on(rows, name, diagnostics, estimates, study_of.failed(name))
        policies.append(
            _target_result(rows, name, diagnostics, weights, verdict, values, heaviest.get(name, ()), scale)
        )
    gap = generation_gap(rows)
    aa = check_clone(rows, policies, gap)
    shown = [each.name for each in policies if each.verdict.state == "SHOWN" and each.role != "clone"]
    return Results(
        title=rows.title,
        created=created,
        base=rows.base,
        scale=scale,
        outcome_range=rows.outcome_range or rows.judge_range,
        judge_range=rows.judge_range,
        rows=len(rows.rows),
        prompts=len({row.prompt_id for row in rows.rows}),
        labelled=int(study.labelled.sum()),
        level=settings.level,
        policies=tuple(policies),
        comparisons=compare(_with_base(study, rows.base), shown, rows.base, scale, settings, HEADLINE),
        calibration=calibration_curve(study, folds=settings.folds, seed=settings.seed),
        aa=aa,
        facts={**rows.facts, **_gap_words(gap), "estimates": _how_estimated(rows)},
        commands=rows.commands,
        notes=(*rows.notes, *_notes(rows, study_of, scale, aa, bool(direct))),
    )


def _diagnosed(study_of: Studies, name: str) -> tuple[Diagnostics | None, Weights | None]:
    """What the rows say about a target, and its pictures; None where no row has its log probability."""
    own = study_of.common if name in study_of.used else study_of.alone(name)
    if own is None:
        return None, None
    found = diagnose(own, name, failure_rate=study_of.failure_rate(name), surprisal=study_of.surprisal(name, own))
    return found, weight_pictures(own, name)


def _names(rows: RunRows) -> tuple[str, ...]:
    """The estimators to compute: those of the settings, and IPS, which a gate looks at."""
    return tuple(dict.fromkeys(("ips", *rows.settings.names)))


def _scale(rows: RunRows, study: Study) -> Scale:
    """The oracle's where its labels may be used, else the judge's."""
    usable = study.labelled.any() and (rows.random_labels or study.fully_labelled)
    return "oracle" if rows.outcome_range is not None and usable else "judge"


def _ranges(rows: RunRows) -> dict[str, tuple[float, float]]:
    return {"judge": rows.judge_range, "oracle": rows.outcome_range or rows.judge_range}


def _estimates(
    study: Study, policies: Sequence[str], names: Sequence[str], scale: Scale, rows: RunRows
) -> list[Estimate]:
    settings = rows.settings
    scales: tuple[Scale, ...] = ("oracle", "judge") if scale == "oracle" else ("judge",)
    return [
        each
        for which in scales
        for each in estimate(
            study, policies, names, scale=which, level=settings.level, folds=settings.folds, seed=settings.seed
        )
    ]


def _with_base(study: Study, base: str) -> Study:
    """The study with the base as a policy too: every weight is 1."""
    return replace(study, log_ratio={base: np.zeros(study.n), **study.log_ratio})


def _base_result(rows: RunRows, study: Study, scale: Scale, failure_rate: float) -> PolicyResult:
    found = _estimates(_with_base(study, rows.base), [rows.base], ["snips"], scale, rows)
    values = tuple(replace(_value(each), estimator="mean") for each in found)
    verdict = judge_base(failure_rate, found[0].value, scale, _ranges(rows)[scale])
    verdict = with_remedy(rows, rows.base, verdict)
    return PolicyResult(
        name=rows.base,
        role="base",
        verdict=verdict,
        headline=values[0] if verdict.state == "SHOWN" else None,
        values=values,
        failures=_failures(rows, rows.base),
        facts=rows.policy_facts.get(rows.base, {}),
        truth=(rows.truth or {}).get(rows.base),
    )


def _target_result(
    rows: RunRows,
    name: str,
    diagnostics: Diagnostics | None,
    weights: Weights | None,
    verdict: Verdict,
    values: Sequence[Value],
    heaviest: tuple[HeavyRow, ...],
    scale: Scale,
) -> PolicyResult:
    role: Role = "clone" if name == rows.clone else "target"
    quoted = [each for estimator in HEADLINE for each in values if (each.estimator, each.scale) == (estimator, scale)]
    return PolicyResult(
        name=name,
        role=role,
        verdict=verdict,
        headline=quoted[0] if quoted and verdict.state == "SHOWN" else None,
        values=tuple(values),
        diagnostics=diagnostics,
        weights=weights,
        heaviest=heaviest,
        failures=_failures(rows, name),
        facts=rows.policy_facts.get(name, {}),
        truth=(rows.truth or {}).get(name),
    )


def _value(found: Estimate) -> Value:
    return Value(
        found.estimator, found.scale, found.value, found.se, found.low, found.high, found.df if found.df < 1e9 else None
    )


def _heaviest(rows: RunRows, kept: Sequence[LoggedRow], study: Study) -> dict[str, tuple[HeavyRow, ...]]:
    """Of each policy, the rows with the largest weights; none where all weigh the same."""
    weights = {name: mean_one_weights(log_ratio, name) for name, log_ratio in study.log_ratio.items()}
    largest = {
        name: [at for at in np.argsort(-weight, kind="stable")[:_HEAVIEST].tolist() if weight[at] > 0]
        for name, weight in weights.items()
        if np.ptp(weight) > 0
    }
    tokens = token_ratios(rows, {name: {kept[at].response_id for at in some} for name, some in largest.items()})
    return {
        name: tuple(
            HeavyRow(
                response_id=row.response_id,
                prompt_id=row.prompt_id,
                weight=float(weights[name][at]),
                share=float(weights[name][at] / study.n),
                log_ratio=float(study.log_ratio[name][at]),
                judge=float(study.judge[at]),
                label=row.label,
                prompt=_cut(rows.prompts.get(row.prompt_id, ""), _PROMPT_CHARACTERS),
                response=_cut(row.response, _RESPONSE_CHARACTERS),
                tokens=tokens.get((name, row.response_id), ()),
            )
            for at in some
            for row in [kept[at]]
        )
        for name, some in largest.items()
    }


def _failures(rows: RunRows, name: str) -> dict[str, int]:
    """Rows without a number under a policy, by type of error; the judge's too."""
    counts = Counter(row.errors[name] for row in rows.rows if name in row.errors)
    counts.update(f"judge: {row.errors[JUDGE]}" for row in rows.rows if JUDGE in row.errors)
    counts.update(f"oracle: {row.errors[ORACLE]}" for row in rows.rows if ORACLE in row.errors)
    counts.update(f"draw: {draw.error}" for draw in rows.draws.get(name, ()) if draw.error)
    return dict(counts)


def _notes(rows: RunRows, studies: Studies, scale: Scale, aa: AACheck | None, direct: bool) -> list[str]:
    notes = []
    study = studies.common
    left = len(rows.rows) - len(studies.kept)
    if left:
        notes.append(f"{left:,} of {len(rows.rows):,} rows have no number somewhere and are left out for every policy.")
    if rows.outcome_range is None:
        notes.append("There is no oracle: every value is a mean judge score, and says as much as the judge does.")
    elif scale == "judge":
        notes.append(
            "The labelled rows were chosen by hand; nothing is calibrated on them, and values are judge scores."
        )
    outcomes = study.label[study.labelled] if scale == "oracle" else study.judge
    if np.ptp(outcomes) == 0:
        notes.append(
            f"All outcomes are {outcomes[0]:g}, so nothing says how much they vary: intervals are too short, and what "
            "does not differ here may differ in other responses."
        )
    if aa is not None and aa.state == "FAILED":
        notes.append(f"The A/A check failed: what {aa.policy} shows holds for the weights of every other policy too.")
    if direct:
        notes.append(
            "Direct estimates borrow the calibration of the base's labels: they hold where a judge score means the "
            "same outcome for the target's responses."
        )
    return notes


def _how_estimated(rows: RunRows) -> str:
    settings = rows.settings
    return (
        f"{', '.join(settings.names)}; {settings.folds} folds by prompt, {settings.replicates:,} bootstrap replicates, "
        f"seed {settings.seed}"
    )


def _gap_words(gap: Gap) -> dict[str, str]:
    if gap.largest is None or gap.mean is None:
        return {}
    words = f"{gap.rows:,} rows; largest gap {gap.largest:.3g} nats, mean {gap.mean:.3g}"
    return {"scores against generation": words}


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
