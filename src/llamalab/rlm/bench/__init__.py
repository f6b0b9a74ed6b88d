"""How well models answer over long texts, and what that costs: seeded questions, exact scorers, two baselines.

outcomes = list(run(QUICK, pool, config))
for cell in cells(outcomes):
    print(row(cell))
"""

from llamalab.rlm.bench.cells import HEADERS, RIGHT_ALIGNED, Cell, cells, row
from llamalab.rlm.bench.outcome import MODES, Mode, Outcome
from llamalab.rlm.bench.picture import plot
from llamalab.rlm.bench.runner import QUICK, Plan, plan, read_sizes, run
from llamalab.rlm.bench.tasks import GROUPS, TASKS, make_case

__all__ = [
    "GROUPS",
    "HEADERS",
    "MODES",
    "QUICK",
    "RIGHT_ALIGNED",
    "TASKS",
    "Cell",
    "Mode",
    "Outcome",
    "Plan",
    "cells",
    "make_case",
    "plan",
    "plot",
    "read_sizes",
    "row",
    "run",
]
