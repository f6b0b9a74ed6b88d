"""How fast the JAX Llama is on a GPU: 1B, 3B and 8B with random weights made on the device, in bfloat16 and int8.

    python benchmarks/jax_gpu.py                           # all cells: about 30 GB of device memory
    python benchmarks/jax_gpu.py --model 1b --batch 1
    python benchmarks/jax_gpu.py --reference PYTHON        # a Python whose torch has CUDA, and transformers
    python benchmarks/jax_gpu.py --json > result.json
    python benchmarks/jax_gpu.py --smoke                   # a model of no size, on any device: whether this script runs

Decoding is set against the bandwidth of a large copy in the same run, prefill against the rate of a large matrix
product, and both against the same shape in transformers with a static cache and torch.compile, where there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # transformers needs room on the same device

import jax
import jax.numpy as jnp
import numpy as np

from jax_models import SHAPES, TIED, bytes_per_token, huggingface_shape, random_weights
from llamalab.engine import SamplingParams
from llamalab.llama import generate
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.model import xfmr
from llamalab.llama.products import quantize_int8
from llamalab.llama.sampler import Plain
from llamalab.llama.weights import XfmrWeights, count_parameters
from transformers_arm import PROMPT, TransformersArm

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
PREFILL = (8, 2048)


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        model, dtype, batch: of which.
        what: "decode" or "prefill".
        rate: tokens per second, all sequences together.
        share: of the copy's bandwidth (decode) or of the matrix product's rate (prefill).
        transformers: its tokens per second; None where it was not measured.
        note: what kept a cell from being measured.
    """

    model: str
    dtype: str
    batch: int
    what: str
    rate: float | None = None
    share: float | None = None
    transformers: float | None = None
    note: str = ""


class Bench:
    """All cells of one model."""

    def __init__(self, name: str, args: argparse.Namespace, copy_rate: float, product_rate: float) -> None:
        self.name, self.config, self.args = name, SHAPES[name], args
        self.copy_rate, self.product_rate = copy_rate, product_rate
        self.tokens, self.rounds, self.prefill = (4, 2, (2, 32)) if args.smoke else (64, 5, PREFILL)
        self.slots = PROMPT + 1 + self.tokens * (self.rounds + 1)
        self.cells: list[Cell] = []

    def run(self) -> str:
        """Measure; what is to be said of transformers."""
        weights = random_weights(self.config, jnp.bfloat16, tied=self.name in TIED)
        for dtype in ("bfloat16", "int8"):
            if dtype == "int8":
                weights = quantize_int8(weights)
            for batch in self.args.batch:
                self._measure(dtype, batch, "decode", partial(self._decode, weights, batch))
            self._measure(dtype, self.prefill[0], "prefill", partial(self._prefill, weights))
        del weights
        return self._transformers()

    def _measure(self, dtype: str, batch: int, what: str, measure: Callable[[], tuple[float, float]]) -> None:
        try:
            rate, share = measure()
            cell = Cell(self.name, dtype, batch, what, rate, share)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            cell = Cell(self.name, dtype, batch, what, note="the device has too little memory")
        self.cells.append(cell)
        if not self.args.json:
            print(_row(cell), flush=True)

    def _decode(self, weights: XfmrWeights, batch: int) -> tuple[float, float]:
        """Tokens per second of greedy steps in the loop on the device, and the share of the bandwidth."""
        prompts = [list(range(1, PROMPT + 1))] * batch
        state = generate.start(
            weights,
            self.config,
            Plain(),
            prompts,
            [GREEDY] * batch,
            list(range(batch)),
            slots=self.slots,
            dtype=jnp.bfloat16,
        )
        live, seconds = np.ones(batch, bool), []
        for _ in range(self.rounds + 1):
            begin = time.perf_counter()
            state, steps = generate.run(
                weights, self.config, Plain(), state, live, self.tokens, most=max(16, self.tokens)
            )
            assert int(steps.taken) == self.tokens
            seconds.append((time.perf_counter() - begin) / self.tokens)
        median = statistics.median(seconds[1:])
        cache = sum(leaf.nbytes for leaf in jax.tree.leaves(state.cache))
        read = bytes_per_token(weights) + cache
        return batch / median, read / median / self.copy_rate

    def _prefill(self, weights: XfmrWeights) -> tuple[float, float]:
        """Tokens per second of prompts read, and the share of the matrix product's rate."""
        (batch, length), config = self.prefill, self.config
        ids_BT = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (batch, length)))

        @jax.jit
        def read(weights: XfmrWeights, ids_BT: jax.Array) -> tuple[jax.Array, KVCache]:
            cache = KVCache.new(config, batch, length, jnp.bfloat16)
            return xfmr(weights, config, ids_BT, 0, cache, rows_B=jnp.full(batch, length - 1))

        seconds = [_seconds(lambda: read(weights, ids_BT)) for _ in range(self.rounds + 1)]
        median = statistics.median(seconds[1:])
        return batch * length / median, flops(weights, config, batch, length) / median / self.product_rate

    def _transformers(self) -> str:
        config = self.config
        shape = huggingface_shape(config, tied=self.name in TIED)
        asked = {"device": "cuda", "dtype": "bfloat16", "threads": 4, "config": shape}
        try:
            arm = TransformersArm(self.args.reference, asked)
            for batch in self.args.batch:
                if not arm.ask({"begin": batch, "slots": self.slots + 8}).get("memory"):
                    self._compare(arm, batch)
        except (RuntimeError, OSError) as error:
            return f"not measured: {error}"
        arm.close()
        return f"{arm.about['transformers']}, torch {arm.about['torch']}, static cache, torch.compile"

    def _compare(self, arm: TransformersArm, batch: int) -> None:
        seconds = [arm.ask({"steps": self.tokens})["seconds"] / self.tokens for _ in range(self.rounds)]
        rate = batch / statistics.median(seconds)
        for number, cell in enumerate(self.cells):
            if cell.batch == batch and cell.what == "decode":
                self.cells[number] = Cell(**asdict(cell) | {"transformers": rate})
                if not self.args.json:
                    print(_row(self.cells[number]), flush=True)


def flops(weights: XfmrWeights, config: LlamaConfig, batch: int, length: int) -> float:
    """Floating-point operations of prefill.

    Two per weight and token in the layers, the causal half of attention, the output projection of one token per
    sequence.
    """
    per_token = 2 * count_parameters(weights._replace(tok_embeddings=weights.norm, output=None))
    attention = 2 * config.n_layers * config.n_heads * config.head_dim * length**2  # half of four
    return batch * (length * per_token + attention + 2 * config.vocab_size * config.dim)


def copy_bandwidth(size: int) -> float:
    """Bytes per second, read and written, of a large copy on the device."""
    x = jnp.zeros(size // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    times = [_seconds(lambda: copy(x)) for _ in range(8)]
    return 2 * x.nbytes / statistics.median(times[1:])


def product_rate(n: int) -> float:
    """Floating-point operations per second of a large bfloat16 matrix product on the device."""
    x = jnp.ones((n, n), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    times = [_seconds(lambda: product(x)) for _ in range(8)]
    return 2 * n**3 / statistics.median(times[1:])


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begin


def _row(cell: Cell) -> str:
    where = f"{cell.model:<5} {cell.dtype:<9} batch {cell.batch:<3} {cell.what:<8}"
    if cell.rate is None:
        return f"{where} {cell.note}"
    of = "copy bandwidth" if cell.what == "decode" else "matrix product"
    row = f"{where} {cell.rate:12,.0f} tok/s   {cell.share:.3f} of the {of}"
    return row if cell.transformers is None else f"{row}   {cell.rate / cell.transformers:.2f} x transformers"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=("1b", "3b", "8b"), help="may be repeated (default: all)")
    parser.add_argument("--batch", action="append", type=int, help="may be repeated (default: 1, 8 and 64)")
    parser.add_argument("--reference", default=sys.executable, metavar="PYTHON", help="that has torch with CUDA")
    parser.add_argument("--smoke", action="store_true", help="a model of no size, on any device")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    if not args.smoke and jax.default_backend() != "gpu":
        found = jax.devices()[0].platform
        print(f"jax_gpu.py needs a GPU; JAX finds only: {found}. Install jax[cuda12], or try --smoke.", file=sys.stderr)
        return 2
    args.batch = args.batch or ([1, 2] if args.smoke else [1, 8, 64])
    copied, multiplied = (
        (copy_bandwidth(2**20), product_rate(64))
        if args.smoke
        else (
            copy_bandwidth(2**31),
            product_rate(8192),
        )
    )
    facts: dict[str, object] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "copy, GB/s": round(copied / 1e9, 1),
        "bfloat16 matrix product, TFLOP/s": round(multiplied / 1e12, 2),
    }
    cells: list[Cell] = []
    for name in ["tiny"] if args.smoke else args.model or ["1b", "3b", "8b"]:
        bench = Bench(name, args, copied, multiplied)
        facts[f"transformers, {name}"] = bench.run()
        cells += bench.cells
    if args.json:
        print(json.dumps({"facts": facts, "cells": [asdict(cell) for cell in cells]}, indent=2))
    else:
        for what, value in facts.items():
            print(f"{what}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
