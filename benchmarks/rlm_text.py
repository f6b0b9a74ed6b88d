"""How fast commands are on 100 MB of text with a million lines, in what memory, and how they end on hostile input.

    python benchmarks/rlm_text.py                   # a log in ASCII, and one with other characters
    python benchmarks/rlm_text.py --mib 10 --json   # smaller; the goals are for 100 MB

The file is written to a temporary folder and read once before the clock runs. Each figure is the best of three, but for
opening and for hostile patterns, which are done once. Memory is what the process has of its own (RssAnon): pages of the
mapping are the system's. Exits 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from llamalab.engines import machine
from llamalab.rlm.commands import Command, check_command
from llamalab.rlm.execute import Limits, State, execute
from llamalab.rlm.text import Context, Document

MATCHES = 200_000
NAMES = {"ascii": ["harbor", "gate", "tower", "bridge"], "utf-8": ["Hafenstraße", "café", "мост", "塔"]}
HOSTILE = (
    r"x(?:x*[0-9])?",
    r"(?:x.{0,400}){2}!",
    r"x[xy]{400}!",
    r"(x*)*z",
    r"(?:.{0,30}){30}!",
)


@dataclass(frozen=True)
class Line:
    """One measurement, and the most it may be."""

    what: str
    value: float
    goal: float
    unit: str = "s"

    @property
    def met(self) -> bool:
        return self.value <= self.goal


def write_log(path: Path, size: int, kind: str) -> None:
    """A log of lines of about 100 bytes; every line has one number, every fifth an error."""
    rng = Random(0)
    names = NAMES[kind]
    with path.open("wb") as file:
        written = begun = 0
        while written < size:
            lines = []
            for n in range(begun + 1, begun + 10_001):
                level = "ERROR" if n % 5 == 0 else "INFO "
                text = f"2026-01-01 {n:07d} {level} the {rng.choice(names)} service took {rng.random() * 1000:.2f} ms"
                lines.append(f"{text} for request {rng.getrandbits(64):016x} of user {n % 977}".ljust(99))
            begun += 10_000
            block = ("\n".join(lines) + "\n").encode()
            written += file.write(block)
        file.write(b"Nobody knows the Blue Harbor vault; its access code is 48213.\n")


def measure(path: Path, kind: str) -> Iterator[Line]:
    path.read_bytes()  # from here on it is in the page cache
    before = own_memory()
    start = time.perf_counter()
    document = Document.open(path)
    yield Line(f"{kind}: open", time.perf_counter() - start, 1.5)
    yield Line(f"{kind}: memory after opening", own_memory() - before, 64, "MiB")
    state = State(Context([document]), limits=Limits(seconds=60))
    middle, lines = document.n_chars // 2, document.n_lines
    quick = {
        "slice": {"op": "slice", "start": middle, "end": middle + 2000},
        "lines": {"op": "lines", "start": lines // 2, "end": lines // 2 + 20},
        "len": {"op": "len"},
        "find a phrase at the end": {"op": "find", "text": "Blue Harbor vault"},
        "count lines": {"op": "count", "what": "lines"},
        "count words": {"op": "count", "what": "words"},
    }
    for what, command in quick.items():
        yield Line(f"{kind}: {what}", best(check_command(command), state), 0.5)
    for what, pattern, group, goal in (
        (f"{lines // 5} matches", "ERROR the .*", "ERROR.* took ([0-9.]+)", 1.0),
        (f"{lines} matches", "request [0-9a-f]+", "took ([0-9.]+)", 4.0),
    ):
        yield Line(f"{kind}: regex, {what}", best(check_command({"op": "regex", "pattern": pattern}), state), goal)
        command = {"op": "aggregate", "pattern": group, "what": "mean"}
        yield Line(f"{kind}: aggregate, {what}", best(check_command(command), state), goal)
    yield Line(f"{kind}: memory after all", own_memory() - before, 256, "MiB")
    document.close()


def hostile(size: int) -> Iterator[Line]:
    """One line of x's, then of x and y at random: searches end at their limit, with what they have."""
    state = State(Context([Document.of(b"x" * size, "x")]))
    for at, pattern in enumerate(HOSTILE):
        if at == 1:
            state = State(Context([Document.of("".join(Random(0).choices("xyß", k=size)), "xy")]))
        start = time.perf_counter()
        result, _ = execute(check_command({"op": "regex", "pattern": pattern}), state)
        seconds = time.perf_counter() - start
        said = f"partial after {result.partial_at}" if result.partial_at is not None else result.head
        yield Line(f"{pattern} on a line of {size >> 20} MiB: {said}", seconds, state.limits.seconds + 1)


def best(command: Command, state: State, rounds: int = 3) -> float:
    def once() -> float:
        start = time.perf_counter()
        result, _ = execute(command, state)
        assert result.error is None, result.error
        assert result.partial_at is None
        return time.perf_counter() - start

    return min(once() for _ in range(rounds))


def own_memory() -> float:
    """What the process has that is no file, MiB; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def report(lines: list[Line], *, as_json: bool, show: Callable[[str], None] = print) -> None:
    if as_json:
        show(json.dumps({"machine": machine.processor(), "lines": [asdict(line) for line in lines]}, indent=2))
        return
    for line in lines:
        mark = "" if line.met else "   MISSED"
        show(f"{line.value:9.3f} {line.unit:3}  at most {line.goal:g}  {line.what}{mark}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=96, help="size of a log; 96 MiB are 100 MB")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in NAMES:
            path = Path(folder) / f"{kind}.log"
            write_log(path, arguments.mib << 20, kind)
            lines += measure(path, kind)
            path.unlink()
    lines += hostile(max(arguments.mib // 10, 1) << 20)
    report(lines, as_json=arguments.json)
    return 0 if all(line.met for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
