"""What is promised of `llamalab rlm`, measured: one line for each figure; exits 1 if one is missed.

    python benchmarks/rlm.py                      # all of it; half an hour or so on two cores, 1 GB of disk
    python benchmarks/rlm.py --only pico map
    python benchmarks/rlm.py --quick              # small numbers of everything: whether it runs
    python benchmarks/rlm.py --json > result.json

The figures of 100 MB are those of `rlm_text.py`, which runs in a process of its own: it measures memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the tests' tiny models

import rlm_full
import rlm_models
import rlm_scripted
from rlm_line import Line


def large_texts(quick: bool) -> list[Line]:
    """Commands on 100 MB, and on patterns made to hang."""
    command = [sys.executable, str(Path(__file__).with_name("rlm_text.py")), "--json", "--mib", "2" if quick else "96"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)["lines"]
    return [Line("text", line["what"], line["value"], line["unit"], line["goal"]) for line in found]


PARTS: dict[str, Callable[[bool], list[Line]]] = {
    "text": large_texts,
    "weights": rlm_scripted.weights,
    "map": rlm_scripted.slow_map,
    "walks": rlm_models.walks,
    "pico": rlm_models.pico,
    "resume": rlm_scripted.resume,
    "turns": rlm_models.pico_turns,
    "random": rlm_models.random_turns,
    "full": rlm_full.full,
    "grammar": rlm_models.grammar_cost,
}


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="only these parts")
    parser.add_argument("--quick", action="store_true", help="few of everything")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    lines: list[Line] = []
    for name, part in PARTS.items():
        if args.only is None or name in args.only:
            measured = part(args.quick)
            lines += measured
            if not args.json:
                for line in measured:
                    print(written(line), flush=True)
    missed = [line.what for line in lines if not line.met]
    if args.json:
        print(json.dumps({"lines": [asdict(line) for line in lines], "missed": missed}, indent=1))
    elif missed:
        print(f"missed: {'; '.join(missed)}")
    return 1 if missed else 0


def written(line: Line) -> str:
    """A line of the table."""
    value = f"{line.value:,.4g} {line.unit}".rstrip()
    if line.asked is None:
        return f"{line.part:8} {line.what:75} {value:>12}"
    asked = f"{'at least' if line.least else 'at most'} {line.asked:g}"
    return f"{line.part:8} {line.what:75} {value:>12}  ({asked}{'' if line.met else ': missed'})"


if __name__ == "__main__":
    sys.exit(main())
