"""Ten tokens per second from a 7B on this CPU? A Llama 2 7B with random weights in three types, at each thread count.

    python benchmarks/seven_b.py                    # some 10 minutes on two cores, 10 GB of memory, 4 GB of disk
    python benchmarks/seven_b.py --types Q4_K_M --threads 2 --keep
    python benchmarks/seven_b.py --quick            # a small shape, seconds
    python benchmarks/seven_b.py --json > result.json

One token reads every weight once (of the embedding, one row), so memory sets the limit. Three arms take turns in each
round: a plain read loop over an array larger than any cache, the engine, and a bare llama_decode loop on the same
weights. Figures are medians over the rounds; generation is counted from the first token to the last.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the read loop brings threads of its own

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llamalab.checkpoints.folders import cache_folder
from llamalab.checkpoints.stored import byte_size
from llamalab.engine import GenerateRequest, SamplingParams, Token
from llamalab.engines import machine
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.engines.native import api, decode, sample
from llamalab.lab.shapes import SHAPES, Shape, changed_shape
from llamalab.lab.synth import planned_types, write_synthetic

MILESTONE = 10.0
TYPES = ("Q4_0", "Q4_K_M", "Q3_K_S")
PROMPT_TOKENS = 16
N_CTX = 256
READ_LOOPS: dict[str, Callable[[np.ndarray], Any]] = {
    "sum of float32": np.add.reduce,
    "dot of float32 with itself": lambda part: np.dot(part, part),
    "largest float32": np.maximum.reduce,
    "or of uint64": lambda part: np.bitwise_or.reduce(part.view(np.uint64)),
}


@dataclass(frozen=True)
class Cell:
    """One type at one thread count.

    `share` is of the read loop's bytes per second; `allowed` is what they would allow in tokens per second.
    """

    type: str
    threads: int
    bytes_per_token: int
    ours: float
    bare: float
    ratio: float
    read_gb_per_s: float
    read_by: str
    share: float
    allowed: float


class BareLoop:
    """llama_decode and a greedy sampler, nothing else."""

    def __init__(self, model: int, threads: int) -> None:
        params = api.llama_context_default_params()
        params.n_ctx = N_CTX
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED  # as the engine on a CPU
        self.context = api.llama_init_from_model(model, params)
        self.batch = api.llama_batch_init(PROMPT_TOKENS, 0, 1)
        self.chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        api.llama_sampler_chain_add(self.chain, api.llama_sampler_init_greedy())

    def run(self, prompt: Sequence[int], tokens: int) -> float:
        """Tokens per second after the first."""
        api.llama_memory_clear(api.llama_get_memory(self.context), False)
        for i, token in enumerate(prompt):
            self._put(i, token, i, i == len(prompt) - 1)
        self.batch.n_tokens = len(prompt)
        decode(self.context, self.batch)
        token = sample(self.chain, self.context, -1)
        begin = time.perf_counter()
        self.batch.n_tokens = 1
        for step in range(tokens):
            self._put(0, token, len(prompt) + step, True)
            decode(self.context, self.batch)
            token = sample(self.chain, self.context, -1)
        return tokens / (time.perf_counter() - begin)

    def close(self) -> None:
        api.llama_sampler_free(self.chain)
        api.llama_batch_free(self.batch)
        api.llama_free(self.context)

    def _put(self, row: int, token: int, position: int, output: bool) -> None:
        batch = self.batch
        batch.token[row], batch.pos[row], batch.logits[row] = token, position, output
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0


class ReadLoop:
    """Threads that each read a slice of one large array, in whichever form NumPy is fastest here."""

    def __init__(self, n_bytes: int) -> None:
        self.array = np.ones(n_bytes // 4, np.float32)

    def run(self, threads: int) -> tuple[float, str]:
        """Bytes per second of the best of three passes of the best form, and that form."""
        parts = [part[: part.size // 2 * 2] for part in np.array_split(self.array, threads)]
        found = []
        with ThreadPoolExecutor(threads) as pool:
            for name, read in READ_LOOPS.items():
                for _ in range(3):
                    begin = time.perf_counter()
                    list(pool.map(read, parts))
                    found.append((sum(part.nbytes for part in parts) / (time.perf_counter() - begin), name))
        return max(found)


def ours(engine: LlamaCppEngine, prompt: Sequence[int], tokens: int) -> float:
    """Tokens per second after the first."""
    params = SamplingParams(temperature=0, max_tokens=tokens + 1, ignore_eos=True)
    times = [
        time.perf_counter() for event in engine.generate([GenerateRequest(prompt, params)]) if isinstance(event, Token)
    ]
    if len(times) != tokens + 1:
        raise SystemExit(f"{tokens + 1} tokens were to be generated, {len(times)} were.")
    return tokens / (times[-1] - times[0])


def bytes_per_token(shape: Shape, type: str) -> int:
    """Of all weights that one token needs: every tensor, but one row of an embedding that is not the output."""
    types = planned_types(shape, type)
    sizes = {name: byte_size(types[name], size) for name, size in shape.tensors.items()}
    if not shape.tied:
        sizes["token_embd.weight"] //= shape.vocab_size
    return sum(sizes.values())


def measure(shape: Shape, type: str, path: Path, args: argparse.Namespace) -> list[Cell]:
    """All thread counts of one type."""
    loop = ReadLoop(args.array << 20)
    prompt = [int(id) for id in np.random.default_rng(0).integers(100, shape.vocab_size // 2, PROMPT_TOKENS)]
    needed, cells = bytes_per_token(shape, type), []
    for threads in args.threads:
        with LlamaCppEngine(path, n_ctx=N_CTX, n_seq=1, n_threads=threads) as engine:
            bare = BareLoop(engine._weights.model, threads)
            rounds = []
            for number in range(args.rounds + 1):
                read, engine_rate = loop.run(threads), ours(engine, prompt, args.tokens)
                rounds.append((read, engine_rate, bare.run(prompt, args.tokens)))
                if not number:
                    rounds.clear()  # the first round reads the file and fills caches
            bare.close()
        speed, form = max(read for read, _, _ in rounds)
        rate = statistics.median(engine_rate for _, engine_rate, _ in rounds)
        cells.append(
            Cell(
                type=type,
                threads=threads,
                bytes_per_token=needed,
                ours=rate,
                bare=statistics.median(bare_rate for _, _, bare_rate in rounds),
                ratio=statistics.median(engine_rate / bare_rate for _, engine_rate, bare_rate in rounds),
                read_gb_per_s=speed / 1e9,
                read_by=form,
                share=rate * needed / speed,
                allowed=speed / needed,
            )
        )
        if not args.json:
            print(row(cells[-1]), flush=True)
    return cells


def row(cell: Cell) -> str:
    return (
        f"{cell.type:8} {cell.threads:7} {cell.bytes_per_token / 1e9:9.3f} {cell.ours:8.2f} {cell.bare:8.2f} "
        f"{cell.ratio:6.3f} {cell.read_gb_per_s:9.1f} {cell.share:6.0%} {cell.allowed:8.1f}  "
        f"{'yes' if cell.ours >= MILESTONE else 'no'}"
    )


def verdict(cells: Sequence[Cell]) -> list[str]:
    """For which types and thread counts the milestone holds, and what it would take elsewhere."""
    lines = []
    for type in dict.fromkeys(cell.type for cell in cells):
        of_type = [cell for cell in cells if cell.type == type]
        enough = [cell.threads for cell in of_type if cell.ours >= MILESTONE]
        best = max(of_type, key=lambda cell: cell.ours)
        needed = MILESTONE * best.bytes_per_token / best.share / 1e9
        lines.append(
            f"{type}: {MILESTONE:g} tokens/s hold with {', '.join(map(str, enough))} of the threads tried"
            if enough
            else f"{type}: {MILESTONE:g} tokens/s hold at no thread count here (best {best.ours:.1f}; the read loop's "
            f"bandwidth alone would allow {best.allowed:.1f}); at this share of it they take {needed:.0f} GB/s"
        )
    forms = statistics.mode(cell.read_by for cell in cells)
    return [*lines, f"read loop: {forms}, one slice of the array for each thread"]


def thread_counts() -> list[int]:
    """1 ... all physical cores; on large machines powers of two and all."""
    cores = machine.physical_cores()
    return [n for n in range(1, cores + 1) if cores <= 8 or n == cores or n & (n - 1) == 0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", type=lambda text: text.split(","), default=list(TYPES), help="e.g. Q4_0,Q4_K_M")
    parser.add_argument(
        "--threads", type=lambda text: [int(n) for n in text.split(",")], default=thread_counts(), help="e.g. 1,2,4"
    )
    parser.add_argument("--tokens", type=int, default=32, help="counted in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--array", type=int, default=1024, help="MiB that the read loop reads")
    parser.add_argument("--keep", action="store_true", help="leave the model files in the cache folder")
    parser.add_argument("--quick", action="store_true", help="a small shape")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    shape = SHAPES["llama-2-7b"]
    if args.quick:
        shape = changed_shape(shape.name, n_layers=2, dim=256, n_heads=4, n_kv_heads=4, ffn_dim=512, vocab_size=1000)
        args.tokens, args.rounds, args.array = 8, 1, 64
    facts = {
        "processor": machine.processor(),
        "cores": machine.physical_cores(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "shape": shape.name,
        "n_params": shape.n_params,
        "date": time.strftime("%Y-%m-%d"),
    }
    if not args.json:
        print(", ".join(f"{name}: {value}" for name, value in facts.items()))
        print("type     threads  GB/token     ours     bare  ratio read GB/s  share  allowed  10 tok/s")
    cells: list[Cell] = []
    for type in args.types:
        path = cache_folder() / f"{shape.name.replace(', ', '-')}-random-{type}.gguf"
        kept = args.keep or path.exists()
        try:
            if not path.exists():
                write_synthetic(shape, path, type)
            cells += measure(shape, type, path, args)
        finally:
            if not kept:
                path.unlink(missing_ok=True)
    if args.json:
        print(json.dumps({"machine": facts, "cells": [asdict(cell) for cell in cells], "verdict": verdict(cells)}))
    else:
        print("\n".join(verdict(cells)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
