"""How much of llama.cpp's own speed `generate` keeps: one run, side by side.

    python benchmarks/generate.py                  # pico and a synthetic 1B in Q4_K_M
    python benchmarks/generate.py --model pico --quick
    python benchmarks/generate.py --json > result.json

Every comparison alternates its arms and takes medians, of the ratios round by round. `--clock cpu` counts
the CPU time of one compute thread instead of the wall clock: for machines that are busy with something else.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import synthetic
from comparison import Line
from llamalab.checkpoints.locate import PICO
from llamalab.engine import GenerateRequest, Generation, SamplingParams
from llamalab.engines import machine
from llamalab.engines.constrain import Compiler
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.engines.native import api, decode

PROMPT = "The access code of the Blue Harbor vault is 48213. What is the access code of the Blue Harbor vault?"
PARAMS = SamplingParams(temperature=0.8, top_k=40, top_p=0.95, ignore_eos=True)
N_CTX = 512
GOALS = {
    "pico": {"alone": 0.97, "many": 0.95, "in turn": 1.0, "schema": 0.90},
    "1b": {"alone": 0.97, "many": 0.95, "in turn": 1.0, "schema": 0.97},
}
# As many elements as anyone can want: the document never ends before the token limit.
SCHEMA = {"type": "array", "minItems": 500, "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}


@dataclass(frozen=True)
class Rates:
    """Median tokens per second of two arms, and the median of the ratios of each round."""

    ours: float
    other: float
    ratio: float


class BareLoop:
    """llama_decode and a sampler chain for each sequence, nothing else."""

    def __init__(self, model: int, prompt: list[int], sequences: int, tokens: int, threads: int) -> None:
        params = api.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_outputs_max = N_CTX * sequences, sequences, sequences
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED  # as the engine on a CPU
        self.context = api.llama_init_from_model(model, params)
        self.memory = api.llama_get_memory(self.context)
        self.batch = api.llama_batch_init(512, 0, 1)
        self.prompt, self.sequences, self.tokens = prompt, sequences, tokens

    def run(self) -> int:
        """Generate; the number of tokens."""
        context, batch, prompt, sequences = self.context, self.batch, self.prompt, self.sequences
        api.llama_memory_clear(self.memory, False)
        chains = [_chain(seed) for seed in range(sequences)]
        drawn = [0] * sequences
        for sequence in range(sequences):  # prompts one after the other, as a batch may be too small for all
            for i, token in enumerate(prompt):
                self._put(i, token, i, sequence, i == len(prompt) - 1)
            batch.n_tokens = len(prompt)
            decode(context, batch)
            drawn[sequence] = api.llama_sampler_sample(chains[sequence], context, len(prompt) - 1)
        for sequence in range(sequences):
            self._put(sequence, 0, 0, sequence, True)
        batch.n_tokens = sequences
        for step in range(self.tokens - 1):
            for sequence in range(sequences):
                batch.token[sequence] = drawn[sequence]
                batch.pos[sequence] = len(prompt) + step
            decode(context, batch)
            for sequence in range(sequences):
                drawn[sequence] = api.llama_sampler_sample(chains[sequence], context, sequence)
        for chain in chains:
            api.llama_sampler_free(chain)
        return sequences * self.tokens

    def close(self) -> None:
        api.llama_batch_free(self.batch)
        api.llama_free(self.context)

    def _put(self, row: int, token: int, position: int, sequence: int, output: bool) -> None:
        batch = self.batch
        batch.token[row], batch.pos[row], batch.logits[row] = token, position, output
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence


class Bench:
    """Comparisons on one model."""

    def __init__(self, name: str, path: Path, args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        self.tokens = 32 if args.quick else 128
        self.batch_tokens = self.tokens // 2  # of each request of a batch: eight and more take minutes on a 1B
        self.repetitions = 3 if args.quick else 7
        self.batch_repetitions = 3
        self.threads = 1 if args.clock == "cpu" else args.threads
        self.clock = time.thread_time if args.clock == "cpu" else time.perf_counter
        self.engine = LlamaCppEngine(path, n_ctx=N_CTX, n_seq=16, n_threads=self.threads)
        self.path = path
        bos = self.engine.info.bos_id
        self.prompt = [*([] if bos is None else [bos]), *self.engine.tokenize(PROMPT)]
        self.lines: list[Line] = []
        self.facts: dict[str, object] = {}

    def run(self) -> None:
        """All comparisons."""
        for sequences in (1, 8, 16):
            self._against_bare(sequences)
        self._against_llama()
        self._schema()
        self._batch_effect()
        self.engine.close()

    def _against_bare(self, sequences: int) -> None:
        tokens, rounds = self._effort(sequences)
        bare = BareLoop(self.engine._weights.model, self.prompt, sequences, tokens, self.threads)
        rates = self._alternate(lambda: self._generate(sequences, tokens), bare.run, rounds)
        bare.close()
        what = "1 request" if sequences == 1 else f"{sequences} requests at once"
        self._add(what, "bare llama_decode", rates, "alone" if sequences == 1 else "many")

    def _against_llama(self) -> None:
        """Eight requests at once against llama-cpp-python's `Llama`, one after the other."""
        from llama_cpp import Llama

        llama = Llama(
            str(self.path),
            n_ctx=N_CTX,
            n_batch=512,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            verbose=False,
        )

        tokens, rounds = self._effort(8)

        def one_after_another() -> int:
            for _ in range(8):
                llama.reset()
                drawn = llama.generate(
                    self.prompt,
                    top_k=PARAMS.top_k,
                    top_p=PARAMS.top_p,
                    min_p=0.0,
                    temp=PARAMS.temperature,
                    repeat_penalty=1.0,
                )
                for _, _token in zip(range(tokens), drawn, strict=False):
                    pass
            return 8 * tokens

        rates = self._alternate(lambda: self._generate(8, tokens), one_after_another, rounds)
        llama.close()
        self._add("8 requests at once", "Llama.generate, 8 in turn", rates, "in turn")

    def _schema(self) -> None:
        free = GenerateRequest(self.prompt, replace(PARAMS, max_tokens=self.tokens, seed=1))
        bound = replace(free, schema=SCHEMA)
        begin = self.clock()
        compiler = self.engine._weights.compiler
        built = self.clock() - begin
        begin = self.clock()
        compiler.compile(SCHEMA)
        compiled = self.clock() - begin

        def count(request: GenerateRequest) -> int:
            (done,) = [e for e in self.engine.generate([request]) if isinstance(e, Generation)]
            assert done.finish_reason == "length"
            return len(done.ids)

        rates = self._alternate(lambda: count(bound), lambda: count(free), self.repetitions)
        self._add(f"JSON schema, {self.tokens} tokens", "free generation", rates, "schema")
        (done,) = [e for e in self.engine.generate([bound]) if isinstance(e, Generation)]
        self.facts["vocabulary prepared for schemas (once per model), s"] = round(built, 3)
        self.facts["schema compiled (once per schema), ms"] = round(1e3 * compiled, 2)
        self.facts["mask per token, ms"] = round(1e3 * self._mask_time(compiler, done.ids), 3)

    def _mask_time(self, compiler: Compiler, ids: tuple[int, ...]) -> float:
        """Median seconds to compute a mask and apply it to a row of logits."""
        constraint, row = compiler.compile(SCHEMA), np.zeros(self.engine.info.n_vocab, np.float32)
        seconds = []
        for token in ids:
            begin = self.clock()
            np.copyto(row, -np.inf, where=constraint.forbidden())
            seconds.append(self.clock() - begin)
            constraint.advance(token)
        return statistics.median(seconds)

    def _batch_effect(self) -> None:
        """What running beside seven others does to the text and the numbers of the same seed."""
        requests = [
            GenerateRequest(self.prompt, replace(PARAMS, max_tokens=self.tokens, seed=seed), logprobs=10)
            for seed in range(8)
        ]
        together = {e.request: e for e in self.engine.generate(requests) if isinstance(e, Generation)}
        same, largest = 0, 0.0
        for number, request in enumerate(requests):
            (alone,) = [e for e in self.engine.generate([request]) if isinstance(e, Generation)]
            same += alone.ids == together[number].ids
            assert alone.logprobs is not None
            # As long as both texts agree, and at the token where they part, both distributions are of the same prefix.
            for a, b in zip(alone.logprobs, together[number].logprobs or (), strict=False):
                beside = dict(b.top)
                largest = max([largest, *(abs(raw - beside[id]) for id, raw in a.top if id in beside)])
                if a.id != b.id:
                    break
        self.facts[f"texts of {self.tokens} tokens that a batch of 8 left unchanged"] = f"{same} of 8"
        self.facts["largest change of a log probability by the batch, nats"] = float(f"{largest:.2g}")

    def _generate(self, sequences: int, tokens: int) -> int:
        params = replace(PARAMS, max_tokens=tokens)
        requests = [GenerateRequest(self.prompt, replace(params, seed=seed)) for seed in range(sequences)]
        done = [e for e in self.engine.generate(requests) if isinstance(e, Generation)]
        return sum(len(e.ids) for e in done)

    def _effort(self, sequences: int) -> tuple[int, int]:
        """Tokens of each request, and rounds."""
        return (self.tokens, self.repetitions) if sequences == 1 else (self.batch_tokens, self.batch_repetitions)

    def _alternate(self, ours: Callable[[], int], other: Callable[[], int], repetitions: int) -> Rates:
        """Tokens per second of both arms, by turns; the first round does not count."""
        rounds = []
        for repetition in range(repetitions + 1):
            arms = (ours, other) if repetition % 2 else (other, ours)
            measured = {}
            for arm in arms:
                begin = self.clock()
                tokens = arm()
                measured[arm] = tokens / (self.clock() - begin)
            if repetition:
                rounds.append((measured[ours], measured[other]))
        median = statistics.median
        return Rates(median(a for a, _ in rounds), median(b for _, b in rounds), median(a / b for a, b in rounds))

    def _add(self, what: str, against: str, rates: Rates, goal: str) -> None:
        at_least = GOALS.get(self.name, {}).get(goal)
        line = Line(self.name, what, rates.ours, against, rates.other, rates.ratio, at_least)
        self.lines.append(line)
        if not self.args.json:
            print(_row(line), flush=True)


def startup() -> dict[str, object]:
    """Seconds of fresh processes: importing, the command line's help, and the first token of pico."""
    first_token = (
        "import time; t = time.perf_counter(); import llamalab; e = llamalab.load('pico')\n"
        "from llamalab import GenerateRequest, SamplingParams\n"
        "next(e.generate([GenerateRequest(e.tokenize('Hello'), SamplingParams(max_tokens=1))]))\n"
        "print(time.perf_counter() - t); e.close()"
    )
    python = sys.executable
    facts: dict[str, object] = {
        "python alone, s": _best([python, "-c", "pass"]),
        "python and import llamalab, s": _best([python, "-c", "import llamalab"]),
        "llamalab --help, s": _best([python, "-m", "llamalab", "--help"]),
    }
    if PICO.exists():
        said = min(
            float(subprocess.run([python, "-c", first_token], capture_output=True, text=True, check=True).stdout)
            for _ in range(5)
        )
        facts["pico loaded and first token out, s"] = round(said, 3)
    return facts


def _best(command: list[str]) -> float:
    def once() -> float:
        begin = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        return time.perf_counter() - begin

    return round(min(once() for _ in range(5)), 3)


def _chain(seed: int) -> Any:
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    for sampler in (
        api.llama_sampler_init_top_k(PARAMS.top_k),
        api.llama_sampler_init_top_p(PARAMS.top_p, 1),
        api.llama_sampler_init_temp(PARAMS.temperature),
        api.llama_sampler_init_dist(seed),
    ):
        api.llama_sampler_chain_add(chain, sampler)
    return chain


def _row(line: Line) -> str:
    goal = "" if line.at_least is None else f"  (at least {line.at_least:.2f}{'' if line.met else ': NOT MET'})"
    return (
        f"{line.model:<6} {line.what:<26} {line.ours:9.1f} tok/s   {line.against:<26} {line.other:9.1f} tok/s   "
        f"ratio {line.ratio:.3f}{goal}"
    )


def _machine(args: argparse.Namespace) -> str:
    threads = 1 if args.clock == "cpu" else args.threads
    return (
        f"{_processor()}, {machine.physical_cores()} cores, {threads} threads, {args.clock} clock, "
        f"Python {platform.python_version()}, llama.cpp {api.llama_version().decode()}, {time.strftime('%Y-%m-%d')}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="pico, 1b or a path; may be repeated (default: pico and 1b)")
    parser.add_argument("--threads", type=int, default=machine.physical_cores(), help="compute threads")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--quick", action="store_true", help="fewer tokens and repetitions")
    parser.add_argument("--no-startup", action="store_true", help="leave out the start of fresh processes")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    lines: list[Line] = []
    facts: dict[str, dict[str, object]] = {}
    for name in args.model or ["pico", "1b"]:
        path = {"pico": PICO}.get(name) or (
            synthetic.quantised_model(synthetic.LLAMA_1B) if name == "1b" else Path(name)
        )
        bench = Bench(name if name in ("pico", "1b") else path.stem[:6], path, args)
        bench.run()
        lines += bench.lines
        facts[bench.name] = bench.facts
    if not args.no_startup:
        facts["start"] = startup()
    if args.json:
        result = {"machine": _machine(args), "comparisons": [asdict(line) for line in lines], "facts": facts}
        print(json.dumps(result, indent=2))
    else:
        for where, found in facts.items():
            for what, value in found.items():
                print(f"{where:<6} {what}: {value}")
        print(_machine(args))
    return 0 if all(line.met for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
