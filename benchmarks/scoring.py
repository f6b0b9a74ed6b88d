"""How fast responses are scored: one run, side by side, on a synthetic 1B in Q4_K_M and on pico.

    python benchmarks/scoring.py                      # both; some 20 minutes on two cores, 6 GB of memory
    python benchmarks/scoring.py --model pico --quick
    python benchmarks/scoring.py --reference PYTHON   # a Python that has lm-eval, transformers and torch: two arms more
    python benchmarks/scoring.py --json > result.json

Arms take turns in each round; figures are medians, ratios are medians of the ratios round by round. The slowest arms,
which take minutes for one response, are run once. Ours is strict mode through `Engine.score`, cold: nothing is stored,
and the prompt of each round is another one.
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
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import synthetic
from comparison import Line
from llamalab.checkpoints.locate import PICO
from llamalab.engines import load, machine
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.engines.native import api
from llamalab.engines.scorer import decode_rows, score_window, strict_options
from llamalab.scored import Decoding, ScoreRequest

PROMPT = RESPONSE = 150
N_CTX = 512
POLICIES = (Decoding(0.5), Decoding(0.7), Decoding(1.0))
TRUNCATED = (*POLICIES[:2], Decoding(0.7, top_p=0.9))
GOALS = {
    "two echo calls": 20.0,
    "one echo call": 12.0,
    "two evals": 1.6,
    "4 responses": 2.5,
    "3 policies": 4.5,
    "bare": 0.95,
    "lm-eval": 2.5,
}
PEAK_MIB = 300


class Bench:
    """Comparisons on one model."""

    def __init__(self, name: str, path: Path, args: argparse.Namespace) -> None:
        self.name, self.path, self.args = name, path, args
        self.rounds = 1 if args.quick else args.rounds
        self.engine = LlamaCppEngine(path, n_ctx=N_CTX, n_seq=0, n_threads=args.threads)
        self.random = np.random.default_rng(0)
        self.lines: list[Line] = []
        self.facts: dict[str, Any] = {}

    def run(self) -> None:
        """All comparisons."""
        from llama_cpp import Llama

        llama = Llama(
            str(self.path), n_ctx=N_CTX, n_batch=512, n_threads=self.args.threads, logits_all=True, verbose=False
        )
        self._against_bare()
        self._single(llama)
        self._many(llama)
        llama.close()
        if self.args.reference and self.name != "pico":
            self._against_lm_eval()
        self.engine.close()
        self.facts["peak memory beyond weights and KV cache at 4,096 tokens, MiB (asked: under 300)"] = self._peak()

    def _single(self, llama: Any) -> None:
        """One response, against what users and experts do with llama-cpp-python."""
        text, rest = self._text(PROMPT), self._text(RESPONSE)

        def echo(whole: str) -> None:
            llama.reset()
            llama.create_completion(whole, echo=True, max_tokens=1, logprobs=1, temperature=0)

        found = self._alternate(
            {"ours": lambda: self._score(1), "evals": lambda: evals(llama, self._ids(PROMPT), self._ids(RESPONSE))}
        )
        self._add("1 response", found["ours"], "two evals, log softmax in NumPy", found["evals"], "two evals")
        one = seconds(lambda: echo(text + rest))
        two = one + seconds(lambda: echo(text))
        ours = statistics.median(found["ours"])
        self._add("1 response", [ours], "two create_completion(echo=True)", [two], "two echo calls")
        self._add("1 response", [ours], "one create_completion(echo=True)", [one], "one echo call")

    def _many(self, llama: Any) -> None:
        """What sharing prefixes and passes saves."""

        def four() -> None:
            prompt = self._ids(PROMPT)
            for _ in range(4):
                evals(llama, prompt, self._ids(RESPONSE))

        def three() -> None:
            prompt, response = self._ids(PROMPT), self._ids(RESPONSE)
            for _ in POLICIES:
                evals(llama, prompt, response)

        found = self._alternate({"ours": lambda: self._score(4), "evals": four})
        self._add("4 responses to a prompt", found["ours"], "two evals for each", found["evals"], "4 responses")
        found = self._alternate({"ours": lambda: self._score(1, POLICIES), "evals": three})
        self._add("3 temperatures", found["ours"], "two evals for each", found["evals"], "3 policies")
        ours = [seconds(lambda: self._score(1, TRUNCATED)) for _ in found["evals"]]
        self._add("2 temperatures and a top-p", ours, "two evals for each, no top-p", found["evals"], None)

    def _against_bare(self) -> None:
        """The same decodes without anything around them, and reading the same tokens without logits."""
        engine = self.engine
        engine.score([ScoreRequest([0], [0])])
        options = strict_options(engine.options)
        window = score_window(engine.info.n_vocab, options)
        context = engine._new_context(1, window, options=options, spare=16)
        memory = api.llama_get_memory(context)
        first, end = PROMPT - 1, PROMPT + RESPONSE - 1

        def bare(*, outputs: bool) -> None:
            ids = np.array(self._ids(PROMPT + RESPONSE), np.int32)
            api.llama_memory_clear(memory, False)
            for at in range(0, first, options.n_batch):
                decode_rows(context, ids[at : min(at + options.n_batch, first)], at, outputs=False)
            for at in range(first, end, window):
                decode_rows(context, ids[at : min(at + window, end)], at, outputs=outputs)

        found = self._alternate(
            {
                "ours": lambda: self._score(1),
                "bare": lambda: bare(outputs=True),
                "reading": lambda: bare(outputs=False),
            }
        )
        self._add("1 response", found["ours"], "bare llama_decode, the same rows of logits", found["bare"], "bare")
        self._add("1 response", found["ours"], "reading the same tokens, no logits", found["reading"], None)
        rate = (PROMPT + RESPONSE) / statistics.median(found["ours"])
        self.facts["tokens of prompt and response per second"] = round(rate, 1)

    def _against_lm_eval(self) -> None:
        """lm-evaluation-harness with transformers in float32, a model of the same shape with random weights."""
        shape = synthetic.LLAMA_1B
        request = {
            "dim": shape.dim,
            "n_layers": shape.n_layers,
            "n_heads": shape.n_heads,
            "n_kv_heads": shape.n_kv_heads,
            "head_dim": shape.head_dim,
            "ffn_dim": shape.ffn_dim,
            "vocab_size": shape.vocab_size,
            "threads": self.args.threads,
            "rounds": self.rounds,
            "prompt": PROMPT,
            "response": RESPONSE,
        }
        env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [self.args.reference, str(Path(__file__).with_name("lm_eval_arm.py"))],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=env,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason"])[-1]
            raise SystemExit(f"{self.args.reference} cannot run lm-eval: {last}")
        times = json.loads(done.stdout.strip().splitlines()[-1])["seconds"]
        ours = [seconds(lambda: self._score(1)) for _ in times]
        self._add("1 response", ours, "lm-eval, transformers in float32", times, "lm-eval")
        self._add("1 response, JAX in float32", self._jax(len(times)), "the same", times, None)

    def _jax(self, rounds: int) -> list[float]:
        """Seconds of the JAX engine on the same file, widened to float32; the first round compiles."""
        with closing(load(f"jax:{self.path}", n_ctx=N_CTX, n_seq=1)) as engine:
            return [
                seconds(lambda: engine.score([ScoreRequest(self._ids(PROMPT), self._ids(RESPONSE))]))
                for _ in range(rounds + 1)
            ][1:]

    def _peak(self) -> int:
        """MiB that a process takes which scores at 4,096 tokens, less the file, the KV cache and an idle process."""
        found = []
        for scores in (False, True):
            code = (
                "import numpy as np; from llamalab.engines.llama_cpp import LlamaCppEngine\n"
                "from llamalab.scored import ScoreRequest; from llamalab.engines.machine import peak_memory\n"
                f"e = LlamaCppEngine({str(self.path)!r}, n_ctx=4096, n_seq=0, n_threads={self.args.threads},"
                " load_mode='read')\n"
                "ids = np.random.default_rng(0).integers(0, e.info.n_vocab, 4096).tolist()\n"
                f"{scores} and e.score([ScoreRequest(ids[:3700], ids[3700:])])\n"
                "print(peak_memory(), e._weights.header.cache_bytes(4096 + 256, 'f32', 'f32') if {scores} else 0)"
            ).replace("{scores}", str(scores))
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            peak, cache = map(int, done.stdout.split())
            found.append(peak - cache)
        return round((found[1] - found[0]) / 2**20)

    def _score(self, responses: int, decodings: tuple[Decoding, ...] = ()) -> None:
        prompt = self._ids(PROMPT)
        self.engine.score([ScoreRequest(prompt, self._ids(RESPONSE), decodings) for _ in range(responses)])

    def _alternate(self, arms: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
        """Seconds of each arm by turns; the first round does not count."""
        found: dict[str, list[float]] = {name: [] for name in arms}
        for repetition in range(self.rounds + 1):
            for name in arms if repetition % 2 else list(arms)[::-1]:
                taken = seconds(arms[name])
                if repetition:
                    found[name].append(taken)
        return found

    def _ids(self, count: int) -> list[int]:
        return self.random.integers(0, self.engine.info.n_vocab - 300, count).tolist()

    def _text(self, count: int) -> str:
        """A text of about so many tokens: ids drawn at random read as one, but are cut into others again."""
        text = self.engine.detokenize(self._ids(count))
        while len(self.engine.tokenize(text)) > count:
            text = text[: len(text) * 9 // 10]
        return text

    def _add(self, what: str, ours: Sequence[float], against: str, other: Sequence[float], goal: str | None) -> None:
        ratio = statistics.median(b / a for a, b in zip(ours, other, strict=True))
        at_least = GOALS.get(goal or "") if self.name != "pico" else None
        line = Line(self.name, what, statistics.median(ours), against, statistics.median(other), ratio, at_least)
        self.lines.append(line)
        if not self.args.json:
            asked = "" if at_least is None else f"  (at least {at_least:g}{'' if line.met else ': NOT MET'})"
            times = f"{line.ours:8.3f} s   {line.against:44s} {line.other:8.3f} s"
            print(f"{line.model:5s}  {line.what:26s} {times}   {ratio:6.2f}{asked}", flush=True)


def evals(llama: Any, prompt: Sequence[int], response: Sequence[int]) -> float:
    """What an expert writes: the prompt, the response, one log softmax over the response's rows."""
    llama.reset()
    llama.eval(prompt)
    llama.eval(response)
    begin = len(prompt) - 1
    rows = llama.scores[begin : begin + len(response)].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return float(rows[np.arange(len(response)), response].sum())


def model_path(name: str) -> Path:
    """The file of a model by its short name, or a path."""
    if name == "1b":
        return synthetic.quantised_model(synthetic.LLAMA_1B)
    return PICO if name == "pico" else Path(name)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> int:
    """Run; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="pico, 1b or a path; may be repeated (default: pico and 1b)")
    parser.add_argument("--threads", type=int, default=machine.physical_cores(), help="compute threads")
    parser.add_argument("--reference", metavar="PYTHON", help="a Python that has lm-eval, transformers and torch")
    parser.add_argument("--rounds", type=int, default=3, help="of each comparison, after one that does not count")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    lines: list[Line] = []
    facts: dict[str, Any] = {}
    for name in args.model or ["pico", "1b"]:
        bench = Bench(name, model_path(name), args)
        bench.run()
        lines += bench.lines
        facts |= {f"{name}: {key}": value for key, value in bench.facts.items()}
    about = f"{machine.processor()}, {args.threads} threads, Python {platform.python_version()}"
    if args.json:
        print(json.dumps({"machine": about, "lines": [asdict(line) for line in lines], "facts": facts}, indent=2))
    else:
        for key, value in facts.items():
            print(f"{key}: {value}")
        print(f"{about}, {time.strftime('%Y-%m-%d')}")
    return 0 if all(line.met for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
