"""Do intervals hold the truth as often as they say, and do the gates let the right policies through?

    python benchmarks/coverage.py                       # 4,000 replications of each size, two processes, some minutes
    python benchmarks/coverage.py --replications 200
    python benchmarks/coverage.py --json > result.json
    python benchmarks/coverage.py --markdown > table.md

Each replication is a study as `llamalab.ope` sees one: logged responses, judge scores, labels on a random part (with
known probabilities that depend on something the judge misses), log ratios of eight policies and one fresh draw for each
prompt. In every second replication each prompt has two responses. A response has three normal parts: quality that the
judge sees, quality that it misses, and the rest. A target shifts all three, so its weights are log-normal, its
population ESS is exp(-s^2) exactly, and its true value is an integral over one normal variable. Nothing here knows how
the estimators work; they, the diagnostics and the gates are called as the arena calls them.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing import Pool

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from llamalab.ope.diagnostics import diagnose
from llamalab.ope.estimators import estimate
from llamalab.ope.gates import judge_gates
from llamalab.ope.study import Draws, Study

Array = NDArray[np.float64]

SIZES = (200, 1000)
ESS = (0.9, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.02)
ESTIMATORS = ("ips", "snips", "calibrated_ips", "dr", "stacked")
PROMISED = ("snips", "dr", "stacked")
RANGES = {"oracle": (0.0, 1.0), "judge": (0.0, 1.0)}

SEEN, MISSED = 0.35, 0.30  # of a shift: quality that the judge sees, and that it misses
REST = math.sqrt(1 - SEEN**2 - MISSED**2)
OF_PROMPT, OF_SEEN, OF_MISSED, NOISE = 0.6, 0.8, 0.6, 0.5  # what a unit of each does to outcome and score
LABELLED = (0.25, 0.5)  # where the missed part is below, and above, its mean


@dataclass(frozen=True)
class Cell:
    """What became of one estimator on one policy in all replications of one size.

    Attributes:
        coverage: share of all intervals that hold the truth.
        bias: mean error over its standard deviation.
        passed, refused: shares of the verdicts.
        coverage_passed: of the runs that passed the gates; None where fewer than 20 did.
        far: share of the passed runs that are off by more than 3 of their own standard errors.
        width: mean length of an interval.
        se_ratio: root mean squared standard error over the standard deviation of the estimates.
    """

    n: int
    ess: float
    estimator: str
    coverage: float
    bias: float
    passed: float
    refused: float
    coverage_passed: float | None
    far: float | None
    width: float
    se_ratio: float


def world(n: int, rng: np.random.Generator, responses: int) -> Study:
    """One study."""
    prompts = n // responses
    prompt = np.repeat(np.arange(prompts), responses)
    of_prompt = rng.standard_normal(prompts)
    seen, missed, rest = rng.standard_normal((3, n))
    score, label = _judged(of_prompt[prompt], seen, missed, rng)
    probability = np.where(missed < 0, *LABELLED)
    label[rng.random(n) >= probability] = np.nan
    log_ratio, draws = {}, {}
    for ess in ESS:
        s = spread(ess)
        part = SEEN * seen + MISSED * missed + REST * rest
        log_ratio[f"{ess:g}"] = s * part - s**2 / 2
        seen_, missed_, rest_ = rng.standard_normal((3, prompts)) + s * np.array([[SEEN], [MISSED], [REST]])
        drawn = s * (SEEN * seen_ + MISSED * missed_ + REST * rest_) - s**2 / 2
        draws[f"{ess:g}"] = Draws(np.arange(prompts), _judged(of_prompt, seen_, missed_, rng)[0], drawn)
    names = tuple(f"prompt {at}" for at in range(prompts))
    return Study(prompt, names, score, label, probability, log_ratio, draws)


def spread(ess: float) -> float:
    """Standard deviation of normal log ratios with this population ESS."""
    return math.sqrt(-math.log(ess))


def truth(ess: float) -> float:
    """The exact mean outcome under a target, by quadrature."""
    mean = spread(ess) * (OF_SEEN * SEEN + OF_MISSED * MISSED)
    sd = math.hypot(OF_PROMPT, OF_SEEN, OF_MISSED)
    at, weight = np.polynomial.hermite_e.hermegauss(201)
    return float((weight * expit(mean + sd * at)).sum() / weight.sum())


def _judged(of_prompt: Array, seen: Array, missed: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Judge scores, in twentieths, and outcomes, both in [0, 1]."""
    quality = OF_PROMPT * of_prompt + OF_SEEN * seen
    score = expit(quality + NOISE * rng.standard_normal(len(seen)))
    return np.floor(score * 20 + 0.5) / 20, expit(quality + OF_MISSED * missed)


def replicate(job: tuple[int, int]) -> Array:
    """(policies, columns): value, se, low and high of each estimator, and the verdict, of one study."""
    n, seed = job
    study = world(n, np.random.default_rng([n, seed]), 1 + seed % 2)
    raw = estimate(study, None, ("ips",), scale="judge")  # a gate looks at it
    found = {(each.policy, each.estimator): each for each in estimate(study, None, ESTIMATORS)}
    table = np.empty((len(ESS), 4 * len(ESTIMATORS) + 1))
    for row, policy in enumerate(study.policies):
        own = [found[policy, name] for name in ESTIMATORS]
        verdict = judge_gates(diagnose(study, policy), [*own, *(each for each in raw if each.policy == policy)], RANGES)
        numbers = [number for each in own for number in (each.value, each.se, each.low, each.high)]
        table[row] = [*numbers, ("REFUSED", "CAUTION", "SHOWN").index(verdict.state)]
    return table


def cells(n: int, tables: Array) -> Iterator[Cell]:
    """What (replications, policies, columns) say."""
    for row, ess in enumerate(ESS):
        state = tables[:, row, -1]
        passed = state == 2
        true = truth(ess)
        for at, name in enumerate(ESTIMATORS):
            value, se, low, high = tables[:, row, 4 * at : 4 * at + 4].T
            held = (low <= true) & (true <= high)
            error = value - true
            enough = passed.sum() >= 20
            yield Cell(
                n,
                ess,
                name,
                coverage=float(held.mean()),
                bias=float(error.mean() / value.std(ddof=1)),
                passed=float(passed.mean()),
                refused=float((state == 0).mean()),
                coverage_passed=float(held[passed].mean()) if enough else None,
                far=float((np.abs(error[passed]) > 3 * se[passed]).mean()) if enough else None,
                width=float((high - low).mean()),
                se_ratio=float(math.sqrt(np.square(se).mean()) / value.std(ddof=1)),
            )


def misses(found: list[Cell]) -> list[str]:
    """The promises that these figures do not keep."""
    wrong = []
    for cell in found:
        where = f"n = {cell.n:,}, ESS {cell.ess:g}, {cell.estimator}"
        enough = cell.n * cell.ess > 100  # at 100 exactly, every second sample is below it
        if cell.ess >= 0.5 and enough and cell.passed < 0.95:
            wrong.append(f"{where}: only {cell.passed:.1%} pass the gates")
        if cell.ess <= 0.02 and cell.refused < 0.99:
            wrong.append(f"{where}: only {cell.refused:.1%} are refused")
        if cell.estimator not in PROMISED:
            continue
        if cell.passed >= 0.95 and not 0.93 <= cell.coverage <= 0.97:
            wrong.append(f"{where}: coverage {cell.coverage:.1%}")
        if cell.passed >= 0.95 and abs(cell.bias) > 0.1:
            wrong.append(f"{where}: bias of {cell.bias:.2f} standard errors")
        if cell.estimator == "snips" and cell.passed >= 0.1 and cell.far is not None and cell.far > 0.015:
            wrong.append(f"{where}: {cell.far:.1%} of the passed runs are off by more than 3 standard errors")
    return list(dict.fromkeys(wrong))


def markdown(found: list[Cell]) -> Iterator[str]:
    """A table for each size."""
    columns = ("ESS", "shown", "refused", "estimator", "coverage", "bias / sd", "SE / sd", "width")
    of_shown = ("coverage of those shown", "off by > 3 SE of those shown")
    for n in sorted({cell.n for cell in found}):
        yield f"\n### n = {n:,}\n"
        yield f"| {' | '.join((*columns, *of_shown))} |"
        yield "|---" * (len(columns) + len(of_shown)) + "|"
        for cell in found:
            if cell.n == n:
                numbers = [
                    f"{cell.ess:g}",
                    _share(cell.passed),
                    _share(cell.refused),
                    cell.estimator,
                    _share(cell.coverage),
                    f"{cell.bias:+.2f}",
                    f"{cell.se_ratio:.2f}",
                    f"{cell.width:.3f}",
                    _share(cell.coverage_passed),
                    _share(cell.far),
                ]
                yield f"| {' | '.join(numbers)} |"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def main() -> int:
    """Run it; exit 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replications", type=int, default=4000)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    found: list[Cell] = []
    began = time.monotonic()
    with Pool(chosen.processes) as pool:
        for n in chosen.sizes:
            jobs = [(n, seed) for seed in range(chosen.replications)]
            found += cells(n, np.array(pool.map(replicate, jobs, chunksize=20)))
    wrong = misses(found)
    if chosen.json:
        print(json.dumps({"cells": [asdict(cell) for cell in found], "misses": wrong}, indent=1))
    else:
        print(*markdown(found), sep="\n")
        print(f"\n{chosen.replications:,} replications of each size in {time.monotonic() - began:.0f} s.")
        print(*(wrong or ["Every promise is kept."]), sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
