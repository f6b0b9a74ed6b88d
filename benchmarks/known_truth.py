"""Does the interval hold the truth as often as it says? Studies drawn from the arena with known truth.

    llamalab arena run examples/known_truth/arena_config.yaml --out RUN
    python benchmarks/known_truth.py RUN                    # 4,000 studies, some minutes
    python benchmarks/known_truth.py RUN --studies 200

Every candidate of RUN was scored once by pico. A study takes 200 prompts from it with replacement, one response to
each in one half of the studies and two in the other, one fresh draw of each target, and labels on a quarter. The truth
is the sum over all candidates. It exits 1 if SNIPS, DR or stacking has coverage outside 93% to 97% on a policy whose
population ESS is 0.3 or more.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llamalab.arena.candidates import FILE, Table, population_ess, read_table, study, truth
from llamalab.arena.config import load_config
from llamalab.ope.diagnostics import diagnose
from llamalab.ope.estimators import estimate
from llamalab.ope.gates import judge_gates

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "known_truth" / "arena_config.yaml"
ESTIMATORS = ("ips", "snips", "dr", "stacked")
RANGES = {"oracle": (0.0, 1.0), "judge": (0.0, 1.0)}
LABELLED = 0.25
GOOD, LOW, HIGH = 0.3, 0.93, 0.97


def main() -> int:
    """Draw, estimate, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--config", type=Path, default=EXAMPLE, help="of the run")
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    targets = [name for name in config.targets if name != config.clone]
    table = read_table(arguments.run / FILE, config.base, targets)
    found, verdicts = studies(table, targets, arguments.studies, arguments.seed)
    return show(table, targets, found, verdicts)


def studies(
    table: Table, targets: Sequence[str], count: int, seed: int
) -> tuple[dict[tuple[str, str], list[tuple[bool, float, float]]], dict[str, Counter[str]]]:
    """For each policy and estimator: (held, error, se) of every study; for each policy: its verdicts."""
    exact, rng = truth(table), np.random.default_rng(seed)
    found: dict[tuple[str, str], list[tuple[bool, float, float]]] = {}
    verdicts: dict[str, Counter[str]] = {name: Counter() for name in targets}
    for number in range(count):
        one = study(table, rng, per_prompt=1 + number % 2, label_probability=LABELLED, draws=1)
        values = estimate(one, targets, ESTIMATORS, scale="oracle", seed=number)
        raw = estimate(one, targets, ("ips",), scale="judge", seed=number)
        for each in values:
            held = each.low <= exact[each.policy] <= each.high
            row = held, each.value - exact[each.policy], each.se
            found.setdefault((each.policy, each.estimator), []).append(row)
        for name in targets:
            own = [each for each in (*values, *raw) if each.policy == name]
            state = judge_gates(diagnose(one, name), own, RANGES).state
            verdicts[name][state] += 1
            if state == "SHOWN":
                held, error, se = found[name, "stacked"][-1]
                verdicts[name].update({"held": int(held), "far": int(abs(error) > 3 * se)})
    return found, verdicts


def show(
    table: Table,
    targets: Sequence[str],
    found: dict[tuple[str, str], list[tuple[bool, float, float]]],
    verdicts: dict[str, Counter[str]],
) -> int:
    """Two tables in Markdown; 1 if a well covered policy misses its coverage."""
    missed = False
    print("| policy | truth | population ESS | estimator | coverage | bias | sd of estimates | mean SE |")
    print("|---|---|---|---|---|---|---|---|")
    for (policy, estimator), rows in found.items():
        held, error, se = np.array(rows, float).T
        share = population_ess(table, policy)
        good = estimator in ("snips", "dr", "stacked") and share >= GOOD
        missed |= bool(good and not LOW <= held.mean() <= HIGH)
        print(
            f"| {policy} | {truth(table)[policy]:.4f} | {share:.2g} | {estimator} | {100 * held.mean():.1f}% "
            f"| {error.mean():+.4f} | {error.std():.4f} | {se.mean():.4f} |"
        )
    print("\n| policy | shown | caution | refused | of those shown: held | off by more than 3 SE |")
    print("|---|---|---|---|---|---|")
    for name in targets:
        counts, shown = verdicts[name], verdicts[name]["SHOWN"]
        all_of = shown + counts["CAUTION"] + counts["REFUSED"]
        states = " | ".join(f"{100 * counts[state] / all_of:.1f}%" for state in ("SHOWN", "CAUTION", "REFUSED"))
        of_shown = (f"{100 * counts[key] / shown:.1f}%" if shown else "" for key in ("held", "far"))
        print(f"| {name} | {states} | {' | '.join(of_shown)} |")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
