"""How fast the JAX Llama writes on a CPU: one run, side by side, the shape of Llama 3.2 1B with random weights.

    python benchmarks/jax_decode.py                        # 1B: about 17 GB of memory
    python benchmarks/jax_decode.py --reference PYTHON     # a Python that has torch and transformers
    python benchmarks/jax_decode.py --quick                # four layers, a small vocabulary, few tokens
    python benchmarks/jax_decode.py --json > result.json

float32 arithmetic is measured over weights in float32 and over the same values kept in bfloat16, as official
checkpoints hold them and as the engine keeps them where there is a C++ compiler.

The arms take turns and every ratio is the median of the ratios round by round. All use as many threads as the process
has cores. It exits 1 if a ratio is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import synthetic
from jax_models import SHAPES, bytes_per_token, huggingface_shape, random_weights
from llamalab.engine import SamplingParams
from llamalab.llama import generate
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.model import xfmr
from llamalab.llama.native_products import available
from llamalab.llama.products import quantize_int8
from llamalab.llama.sampler import Plain
from llamalab.llama.weights import XfmrWeights
from transformers_arm import PROMPT, TransformersArm

CONTEXT = 256
GREEDY = SamplingParams(temperature=0, ignore_eos=True)
LOAD = """
import json, resource, sys, time
from pathlib import Path
import jax
from llamalab.checkpoints.checkpoint import open_checkpoint
from llamalab.checkpoints.load import load_weights

def peak_kib():
    status = Path("/proc/self/status")  # getrusage counts the process that started this one as well
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(status.read_text().partition("VmHWM:")[2].split()[0])

jax.devices()
before, begun = peak_kib(), time.perf_counter()
weights = jax.block_until_ready(load_weights(open_checkpoint(Path(sys.argv[1]))))
seconds, peak = time.perf_counter() - begun, peak_kib()
size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
print(json.dumps({"seconds": seconds, "peak": (peak - before) * 1024, "weights": size}))
"""


@dataclass(frozen=True)
class Line:
    """One comparison: both arms in `unit`, their ratio (above 1: ours is better), and what is asked of it."""

    what: str
    ours: float
    against: str
    other: float
    unit: str
    ratio: float
    at_least: float | None


class Decoding:
    """One text in progress on given weights, batch 1, greedy."""

    def __init__(self, weights: XfmrWeights, config: LlamaConfig) -> None:
        self.weights, self.config = weights, config
        prompt = list(range(1, PROMPT + 1))
        self.state = generate.start(weights, config, Plain(), [prompt], [GREEDY], [0], slots=CONTEXT)
        self.run(1)

    def run(self, tokens: int) -> float:
        """Write so many tokens; seconds per token."""
        begin = time.perf_counter()
        self.state, steps = generate.run(
            self.weights, self.config, Plain(), self.state, np.array([True]), tokens, most=16
        )
        taken = int(steps.taken)
        assert taken == tokens, "the text ended: too many rounds for the context"
        return (time.perf_counter() - begin) / tokens


class Bench:
    """All comparisons on one shape."""

    def __init__(self, config: LlamaConfig, args: argparse.Namespace) -> None:
        self.config, self.args = config, args
        self.tokens, self.rounds = (4, 3) if args.quick or args.tiny else (16, 7)
        self.goals = not (args.quick or args.tiny)  # the goals are of the whole model
        self.weights = random_weights(config, jnp.float32, tied=True)
        self.lines: list[Line] = []
        self.facts: dict[str, object] = {}

    def run(self) -> None:
        """Everything."""
        self._decode()
        self._recompute()
        if not self.args.no_load:
            self._load()

    def _decode(self) -> None:
        """float32, over weights in float32 and in bfloat16, int8, transformers and a plain product by turns."""
        narrow, half = quantize_int8(self.weights), kept_in_bfloat16(self.weights)
        arms: dict[str, Callable[[], float]] = {
            "f32": lambda: wide_text.run(self.tokens),
            "bandwidth": self._matrix_vector(),
            "int8": lambda: narrow_text.run(self.tokens),
        }
        wide_text, narrow_text = Decoding(self.weights, self.config), Decoding(narrow, self.config)
        if available():
            half_text = Decoding(half, self.config)
            arms["half"] = lambda: half_text.run(self.tokens)
        other = self._reference()
        if other is not None:
            arms["transformers"] = lambda: float(other.ask({"steps": self.tokens})["seconds"]) / self.tokens
        found = alternate(arms, self.rounds)
        if other is not None:
            other.close()
            # Both wait for the same bytes, so the memory leaves no room for a goal.
            self._add("decode, float32", found["f32"], "transformers, float32, its cache", found["transformers"], None)
            if "half" in found:
                what = "decode, float32 over bfloat16 weights"
                self._add(what, found["half"], "transformers, float32, its cache", found["transformers"], 1.5)
        size = bytes_per_token(self.weights)
        rates = [size / seconds / 1e9 for seconds in found["f32"]]
        self._line("weights read, float32", rates, "one large product", found["bandwidth"], "GB/s", 0.9)
        self._add("decode, int8", found["int8"], "decode, float32", found["f32"], 2.0)
        self.facts["weights read per token, float32, GB"] = round(size / 1e9, 3)
        self.facts["weights read per token, bfloat16, GB"] = round(bytes_per_token(half) / 1e9, 3)
        self.facts["weights read per token, int8, GB"] = round(bytes_per_token(narrow) / 1e9, 3)

    def _matrix_vector(self) -> Callable[[], float]:
        """GB/s at which one row times the embedding, 1 GB in float32, is computed."""
        matrix_VD, x_1D = self.weights.tok_embeddings, jnp.ones((1, self.config.dim))
        product = jax.jit(lambda x_1D, matrix_VD: jnp.einsum("BD,VD->BV", x_1D, matrix_VD))
        product(x_1D, matrix_VD).block_until_ready()

        def measure() -> float:
            begin = time.perf_counter()
            for _ in range(3):
                product(x_1D, matrix_VD).block_until_ready()
            return 3 * matrix_VD.nbytes / (time.perf_counter() - begin) / 1e9

        return measure

    def _reference(self) -> TransformersArm | None:
        config = self.config
        shape = huggingface_shape(config, tied=True)
        asked = {"device": "cpu", "dtype": "float32", "threads": _threads(), "config": shape}
        try:
            arm = TransformersArm(self.args.reference, asked)
            arm.ask({"begin": 1, "slots": CONTEXT})
        except (RuntimeError, OSError) as error:
            self.facts["transformers"] = f"not measured: {error}. Name a Python that has it with --reference."
            return None
        arm.ask({"steps": 1})
        self.facts["transformers"] = f"{arm.about['transformers']}, torch {arm.about['torch']}"
        return arm

    def _recompute(self) -> None:
        """The token after 255 others, from the cache and from all of them again."""
        config, length = self.config, CONTEXT
        ids_1T = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (1, length)))
        last = jnp.array([0])

        def whole(weights: XfmrWeights, ids_1T: jax.Array) -> jax.Array:
            cache = KVCache.new(config, 1, length)
            return xfmr(weights, config, ids_1T, 0, cache, rows_B=jnp.array([length - 1]))[0]

        def one(weights: XfmrWeights, id_11: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
            return xfmr(weights, config, id_11, jnp.int32(length - 1), cache, rows_B=last)

        again, step = jax.jit(whole), jax.jit(one, donate_argnums=2)
        held = [KVCache.new(config, 1, length)]

        def cached() -> float:
            begin = time.perf_counter()
            logits, held[0] = step(self.weights, ids_1T[:, -1:], held[0])
            logits.block_until_ready()
            return time.perf_counter() - begin

        def recomputed() -> float:
            begin = time.perf_counter()
            again(self.weights, ids_1T).block_until_ready()
            return time.perf_counter() - begin

        found = alternate({"cached": cached, "recomputed": recomputed}, self.rounds)
        self._add(f"token {length} from the cache", found["cached"], "all computed again", found["recomputed"], 10.0)

    def _load(self) -> None:
        """A Q8_0 file of the same shape into float32 weights, in a process of its own."""
        config = self.config
        shape = replace(
            synthetic.LLAMA_1B,
            name=f"llama-{config.dim}x{config.n_layers}-{config.vocab_size}",
            n_layers=config.n_layers,
            dim=config.dim,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            ffn_dim=config.ffn_dim,
            vocab_size=config.vocab_size,
        )
        path = synthetic.quantised_model(shape, "Q8_0")
        done = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        self.facts["GGUF Q8_0 read into float32, s"] = round(found["seconds"], 2)
        self.facts["its peak memory, GB"] = round(found["peak"] / 1e9, 3)
        self.facts["its peak memory over the weights"] = round(found["peak"] / found["weights"], 3)

    def _add(self, what: str, ours: list[float], against: str, other: list[float], at_least: float | None) -> None:
        """Seconds per token of both arms."""
        self._line(what, [1 / s for s in ours], against, [1 / s for s in other], "tok/s", at_least)

    def _line(
        self, what: str, ours: list[float], against: str, other: list[float], unit: str, at_least: float | None
    ) -> None:
        median = statistics.median
        ratio = median(a / b for a, b in zip(ours, other, strict=True))
        line = Line(what, median(ours), against, median(other), unit, ratio, at_least if self.goals else None)
        self.lines.append(line)
        if not self.args.json:
            print(_row(line), flush=True)


def kept_in_bfloat16(weights: XfmrWeights) -> XfmrWeights:
    """Matrices in bfloat16 and all else in float32, as the engine keeps a checkpoint that has them so."""
    kept: XfmrWeights = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim > 1 else leaf, weights)
    return kept


def alternate(arms: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each arm measured in each round; they take turns, and the first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        names = list(arms) if number % 2 else list(reversed(arms))
        for name in names:
            value = arms[name]()
            if number:
                found[name].append(value)
    return found


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _row(line: Line) -> str:
    goal = "" if line.at_least is None else f"  (at least {line.at_least:.1f}{'' if _met(line) else ': NOT MET'})"
    return (
        f"{line.what:<37} {line.ours:8.2f} {line.unit:<5}   {line.against:<33} {line.other:8.2f} {line.unit:<5}   "
        f"ratio {line.ratio:.2f}{goal}"
    )


def _met(line: Line) -> bool:
    return line.at_least is None or line.ratio >= line.at_least


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return (
        f"{next(named, platform.machine())}, {_threads()} threads, Python {platform.python_version()}, "
        f"JAX {jax.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="of the model (default 16; 4 with --quick)")
    parser.add_argument("--reference", default=sys.executable, metavar="PYTHON", help="that has torch and transformers")
    parser.add_argument("--quick", action="store_true", help="a vocabulary of 16,384, few tokens; no goals")
    parser.add_argument("--tiny", action="store_true", help="a model of no size: whether this script runs; no goals")
    parser.add_argument("--no-load", action="store_true", help="leave out reading a Q8_0 file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    if jax.default_backend() != "cpu":
        print("jax_decode.py measures CPUs: start it with JAX_PLATFORMS=cpu.", file=sys.stderr)
        return 2
    config = SHAPES["1b"]
    if args.quick:
        config = replace(config, n_layers=4, vocab_size=16_384)
    if args.tiny:
        config = replace(SHAPES["tiny"], vocab_size=1024)
    if args.layers is not None:
        config = replace(config, n_layers=args.layers)
    bench = Bench(config, args)
    bench.run()
    if args.json:
        shape = {"layers": config.n_layers, "dim": config.dim, "vocabulary": config.vocab_size}
        result: dict[str, Any] = {"machine": _machine(), "shape": shape, "facts": bench.facts}
        print(json.dumps(result | {"comparisons": [asdict(line) for line in bench.lines]}, indent=2))
    else:
        for what, value in bench.facts.items():
            print(f"{what}: {value}")
        print(_machine())
    return 0 if all(_met(line) for line in bench.lines) else 1


if __name__ == "__main__":
    sys.exit(main())
