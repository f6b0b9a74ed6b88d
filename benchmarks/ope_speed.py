"""How fast the bootstrap is: against cje-eval by the same estimator on the same rows, and on a study of 100,000 rows.

    python benchmarks/ope_speed.py --arena FOLDER           # a folder in CJE's layout, such as its arena sample
    python benchmarks/ope_speed.py --arena FOLDER --large   # and the large study: 5,000 labels, 4 policies
    python benchmarks/ope_speed.py --large --json > result.json

The estimator is cje-eval's Direct one: f, monotone and cross-fitted in 5 folds, averaged over a policy's fresh draws,
and corrected by its labels where it has any. Both sides weigh prompts by Exp(1) and refit f in every replicate; arms
take turns in each round, and rates are medians. Exits 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llamalab.engines import machine
from llamalab.ope.bootstrap import bootstrap
from llamalab.ope.calibration import cross_fit
from llamalab.ope.estimators import estimate
from llamalab.ope.study import Draws, FloatArray, Study

RATIO, RATIO_DEFAULT, SE_GAP = 50.0, 100.0, 0.05
SECONDS, GIB = 60.0, 2.0
BATCH = 512


@dataclass(frozen=True)
class Line:
    """One measurement, and what is asked of it: at least `goal`, or at most."""

    what: str
    value: float
    goal: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.goal if self.at_most else self.value >= self.goal


@dataclass(frozen=True)
class Rows:
    """Fresh draws of every policy, in one table: the first policy has the labels."""

    policies: tuple[str, ...]
    prompt_ids: tuple[str, ...]
    prompt: np.ndarray
    policy: np.ndarray
    judge: FloatArray
    label: FloatArray


def read_arena(folder: Path) -> Rows:
    files = sorted((folder / "fresh_draws").glob("*_responses.jsonl"))
    files.sort(key=lambda path: not path.name.startswith("base"))
    found = [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in files]
    ids = tuple(dict.fromkeys(row["prompt_id"] for rows in found for row in rows))
    code = {name: at for at, name in enumerate(ids)}
    flat = [(at, row) for at, rows in enumerate(found) for row in rows]
    labels = [row.get("oracle_label") for _, row in flat]
    return Rows(
        tuple(path.name.removesuffix("_responses.jsonl") for path in files),
        ids,
        np.array([code[row["prompt_id"]] for _, row in flat]),
        np.array([at for at, _ in flat]),
        np.array([float(row["judge_score"]) for _, row in flat]),
        np.array([np.nan if label is None else float(label) for label in labels]),
    )


def ours(rows: Rows, replicates: int, seed: int) -> FloatArray:
    """(B, P) by the parts that our own estimators are made of."""
    first, size = rows.policy == 0, len(rows.prompt_ids)
    count = int(first.sum())
    study = Study(
        rows.prompt[first], rows.prompt_ids, rows.judge[first], rows.label[first], np.ones(count), log_ratio={}
    )
    fitted = cross_fit(study, whole=True)
    whole = np.full(len(rows.judge), len(fitted.nodes) - 1)
    all_rows = fitted.at(rows.judge, whole)
    known = np.flatnonzero(study.labelled)
    left_out = fitted.at(study.judge[known], fitted.fold[study.prompt[known]])
    rng, parts = np.random.default_rng(seed), []
    by_policy = [np.flatnonzero(rows.policy == at) for at in range(len(rows.policies))]
    for start in range(0, replicates, BATCH):
        weight = rng.standard_exponential((size, min(BATCH, replicates - start)))
        fit = fitted.fit(weight)
        worth, row_weight = all_rows @ fit, weight[rows.prompt]
        means = np.array([(row_weight[at] * worth[at]).sum(0) / row_weight[at].sum(0) for at in by_policy])
        label_weight = weight[study.prompt[known]]
        means[0] += (label_weight * (study.label[known][:, None] - left_out @ fit)).sum(0) / label_weight.sum(0)
        parts.append(means.T)
    return np.concatenate(parts)


def theirs(rows: Rows, replicates: int, seed: int, mode: str) -> FloatArray:
    """(B, P) by cje-eval's own bootstrap."""
    from cje.diagnostics.robust_inference import (
        DirectEvalTable,
        cluster_bootstrap_direct_with_refit,
        make_calibrator_factory,
    )

    logging.disable(logging.WARNING)
    table = DirectEvalTable(
        prompt_ids=rows.prompt,
        prompt_id_strings=[rows.prompt_ids[at] for at in rows.prompt],
        policy_indices=rows.policy,
        judge_scores=rows.judge,
        oracle_labels=rows.label,
        oracle_mask=~np.isnan(rows.label),
        covariates=None,
        covariate_names=None,
        policy_names=list(rows.policies),
    )
    factory = make_calibrator_factory(mode)  # type: ignore[arg-type]
    found = cluster_bootstrap_direct_with_refit(
        table, factory, n_bootstrap=replicates, calibration_policy_idx=0, seed=seed
    )
    return np.asarray(found["bootstrap_matrix"])


def compare(folder: Path, *, replicates: int, rounds: int) -> list[Line]:
    rows = read_arena(folder)
    few = max(replicates // 10, 20)
    arms: dict[str, tuple[int, Callable[[int, int], FloatArray]]] = {
        "ours": (20 * replicates, lambda count, seed: ours(rows, count, seed)),
        "cje-eval, monotone": (replicates, lambda count, seed: theirs(rows, count, seed, "monotone")),
        "cje-eval, its default": (few, lambda count, seed: theirs(rows, count, seed, "auto")),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    values: dict[str, list[FloatArray]] = {name: [] for name in arms}
    for seed in range(rounds):
        for name, (count, run) in arms.items():
            start = time.perf_counter()
            values[name].append(run(count, seed))
            rates[name].append(count / (time.perf_counter() - start))
    spread = {name: np.concatenate(parts).std(axis=0, ddof=1) for name, parts in values.items()}
    for name, found in rates.items():
        print(f"{name}: {statistics.median(found):,.0f} replicates a second", file=sys.stderr)
    gap = np.abs(spread["ours"] / spread["cje-eval, monotone"] - 1)
    for name, one, other in zip(rows.policies, spread["ours"], spread["cje-eval, monotone"], strict=True):
        print(f"{name}: standard error {one:.5f}, cje-eval's {other:.5f}", file=sys.stderr)

    def ratio(name: str) -> float:
        return statistics.median(a / b for a, b in zip(rates["ours"], rates[name], strict=True))

    return [
        Line("times cje-eval's replicates a second, monotone", ratio("cje-eval, monotone"), RATIO),
        Line("times cje-eval's replicates a second, its default", ratio("cje-eval, its default"), RATIO_DEFAULT),
        Line("largest gap between standard errors", float(gap.max()), SE_GAP, at_most=True),
    ]


def large_study(n: int = 100_000, labels: int = 5000, policies: int = 4) -> Study:
    rng = np.random.default_rng(0)
    judge = rng.beta(2, 2, n)
    label = np.full(n, np.nan)
    chosen = rng.choice(n, labels, replace=False)
    label[chosen] = np.clip(judge[chosen] + 0.2 * rng.normal(size=labels), 0, 1)
    names = tuple(f"p{at}" for at in range(policies))
    sd = dict(zip(names, np.linspace(0.3, 0.75, policies), strict=True))
    log_ratio = {name: rng.normal(-(sd[name] ** 2) / 2, sd[name], n) for name in names}
    draws = {name: Draws(np.arange(n), rng.beta(2.2, 2, n)) for name in names}
    prompts = tuple(f"prompt {at}" for at in range(n))
    return Study(np.arange(n), prompts, judge, label, np.full(n, labels / n), log_ratio, draws)


def large(n: int, labels: int, replicates: int) -> list[Line]:
    study = large_study(n, labels)
    start, cpu = time.perf_counter(), time.process_time()
    found = estimate(study)
    drawn = bootstrap(study, replicates=replicates)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    for one in found:
        spread = drawn.values[one.estimator][:, study.policies.index(one.policy)].std(ddof=1)
        print(f"{one.policy} {one.estimator}: {one.value:.4f} se {one.se:.5f}, bootstrap {spread:.5f}", file=sys.stderr)
    print(f"{cpu:.1f} s of processor time in {seconds:.1f} s", file=sys.stderr)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        Line(f"seconds, {n:,} rows, 4 policies, {replicates:,} replicates", seconds, SECONDS, at_most=True),
        Line("GiB of memory at most", peak, GIB, at_most=True),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arena", type=Path, help="a folder with fresh_draws/POLICY_responses.jsonl")
    parser.add_argument("--large", action="store_true", help="the study of 100,000 rows")
    parser.add_argument("--replicates", type=int, default=700, help="of cje-eval in a round; ours are 20 times as many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=5000)
    parser.add_argument("--large-replicates", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lines: list[Line] = []
    if options.large:  # first: its peak memory is the process's
        lines += large(options.rows, options.labels, options.large_replicates)
    if options.arena:
        lines += compare(options.arena, replicates=options.replicates, rounds=options.rounds)
    if not lines:
        parser.error("nothing to measure: give --arena, --large or both")
    if options.json:
        result: dict[str, Any] = {"machine": machine.processor(), "lines": [asdict(line) for line in lines]}
        print(json.dumps(result, indent=1))
    else:
        for line in lines:
            sign = "at most" if line.at_most else "at least"
            print(f"{line.what}: {line.value:.3g} ({sign} {line.goal:g}: {'met' if line.met else 'MISSED'})")
    return 0 if all(line.met for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
