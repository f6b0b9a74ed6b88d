"""How near `llamalab memory` comes to what a process really takes.

    python benchmarks/memory_accuracy.py                     # a synthetic 1B: 3 types x 2 contexts x 2 KV types
    python benchmarks/memory_accuracy.py --types Q4_K_M --contexts 2048
    python benchmarks/memory_accuracy.py --json > result.json

Each cell estimates first, then loads the model in a process of its own, fills the context with random tokens, and reads
the peak of its resident memory. It exits 1 if an estimate is off by more than 3%. Where something else made the system
drop pages of the file meanwhile, so that the process had less than all of them, the cell is measured again.

The files are written once, to the user's cache folder: 2.5 GB for F16, 1.0 GB for Q6_K, 0.8 GB for Q4_K_M. Filling
8,192 tokens of a 1B takes some minutes for each cell on two cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from llamalab.checkpoints.folders import cache_folder
from llamalab.engines.machine import physical_cores, processor
from llamalab.lab.memory import ModelMemory
from llamalab.lab.memory_estimate import Estimate
from llamalab.lab.shapes import Shape, shape_named
from llamalab.lab.synth import write_synthetic

MOST_ERROR = 0.03
MOST_TRIES = 3
TINY = Shape("tiny", 2, 256, 4, 2, 64, 512, 1000, 512, 10_000.0, True)
MIB = 2**20


@dataclass(frozen=True)
class Cell:
    """One estimate and what was measured; bytes."""

    type: str
    n_ctx: int
    kv_type: str
    estimate: int
    measured: int
    error: float
    parts: dict[str, int]
    anonymous: int
    file: int


def model_file(shape: Shape, type: str) -> Path:
    """The synthetic model; written at the first call."""
    path = cache_folder("synthetic") / f"{shape.name}-{type}.gguf"
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        write_synthetic(shape, path, type)
    return path


def undisturbed(memory: ModelMemory, n_ctx: int, kv_type: str) -> Estimate:
    """An estimate and a run that had the whole file in memory at its end, or the last of some tries."""
    for _ in range(MOST_TRIES):
        found = memory.estimate(n_ctx=n_ctx, kv_type=kv_type, measure=True)
        assert found.measured is not None
        mapped = next(part.ram for part in found.parts if part.name == "weights")
        if not found.measured.file or found.measured.file >= mapped:
            break
        print(f"pages of the file were dropped: {found.measured.file} of {mapped} bytes left", file=sys.stderr)
    return found


def cells(shape: Shape, types: list[str], contexts: list[int], kv_types: list[str]) -> Iterator[Cell]:
    for type in types:
        with ModelMemory(model_file(shape, type)) as memory:
            for n_ctx in contexts:
                for kv_type in kv_types:
                    found = undisturbed(memory, n_ctx, kv_type)
                    assert found.measured is not None
                    assert found.error is not None
                    yield Cell(
                        type=type,
                        n_ctx=n_ctx,
                        kv_type=kv_type,
                        estimate=found.total,
                        measured=found.measured.peak,
                        error=found.error,
                        parts={part.name: part.ram for part in found.parts},
                        anonymous=found.measured.anonymous,
                        file=found.measured.file,
                    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b", help="a published shape; tiny: one that takes seconds")
    parser.add_argument("--types", default="Q4_K_M,Q6_K,F16")
    parser.add_argument("--contexts", default="2048,8192")
    parser.add_argument("--kv-types", default="f16,q8_0")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    asked = parser.parse_args()
    shape = TINY if asked.shape == "tiny" else shape_named(asked.shape)
    contexts = [min(int(n), shape.max_seq_len) for n in asked.contexts.split(",")]
    found = []
    if not asked.json:
        print("type     context  KV     estimate MiB  measured MiB   error")
    for cell in cells(shape, asked.types.split(","), contexts, asked.kv_types.split(",")):
        found.append(cell)
        if not asked.json:
            sizes = f"{cell.estimate / MIB:>12.1f}  {cell.measured / MIB:>12.1f}"
            print(f"{cell.type:<8} {cell.n_ctx:>7}  {cell.kv_type:<5} {sizes}  {cell.error:>+6.1%}", flush=True)
    largest = max(abs(cell.error) for cell in found)
    machine = f"{processor()}, {physical_cores()} cores, Python {platform.python_version()}"
    runtime = f"llama-cpp-python {version('llama-cpp-python')}"
    if asked.json:
        document = {"shape": shape.name, "machine": machine, "runtime": runtime, "largest_error": largest}
        print(json.dumps(document | {"cells": [asdict(cell) for cell in found]}, indent=2))
    else:
        print(f"largest error {largest:.1%}, at most {MOST_ERROR:.0%}; {machine}, {runtime}")
    return int(largest > MOST_ERROR)


if __name__ == "__main__":
    sys.exit(main())
