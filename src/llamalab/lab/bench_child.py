"""The process in which one model is measured: alone, so that its peak memory is its own.

A request comes as JSON on standard input; records go as JSON lines to standard output. `bench.py` starts it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llamalab.engine import Engine, GenerateRequest, Generation, SamplingParams, Token
from llamalab.engines import load
from llamalab.engines.machine import peak_memory
from llamalab.errors import EngineError, LlamalabError

LATE = 32
"""Tokens that the first requests write while another one is read, at most, in an engine that keeps no prompts."""


def main() -> None:
    """Measure what standard input asks for."""
    # Whatever a runtime prints goes to standard error; standard output is for records alone.
    records = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        for record in measured(json.load(sys.stdin)):
            print(json.dumps(record), file=records, flush=True)
    except LlamalabError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}), file=records, flush=True)


def measured(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Load the model and run the tests.

    Args:
        request: `spec`, `options`, `n_seq`, `caches`, `repetitions` and `tests` of a `Setup`.

    Yields:
        {"loaded": ...}, then {"test": its number, "rates": ..., "first_token": ...} for each, then {"peak_bytes": ...}.
    """
    begin = time.perf_counter()
    engine = load(request["spec"], **request["options"])
    seconds = time.perf_counter() - begin
    info = engine.info
    yield {
        "loaded": seconds,
        "name": info.name,
        "n_params": info.n_params,
        "size_bytes": info.size_bytes,
        "path": info.path,
    }
    bench = Bench(engine, n_seq=request["n_seq"], caches=request["caches"])
    for number, test in enumerate(request["tests"]):
        run = bench.prompt if test["kind"] == "prompt" else bench.generation
        # One round more than asked: what is compiled, read from disk or cached by the first is not counted.
        rounds = [run(test["tokens"], test["depth"]) for _ in range(request["repetitions"] + 1)][1:]
        rates, first = zip(*rounds, strict=True)
        yield {"test": number, "rates": rates, "first_token": [value for value in first if value is not None]}
    engine.close()
    yield {"peak_bytes": peak_memory()}


class Bench:
    """Rounds of an open engine, with random token ids.

    Args:
        engine: with room for `n_seq` requests at once.
        n_seq: requests at once.
        caches: the engine keeps prompts, so a depth is computed once, and all requests begin to write at once.
    """

    def __init__(self, engine: Engine, *, n_seq: int, caches: bool) -> None:
        self._engine, self._n_seq, self._caches = engine, n_seq, caches
        self._random = np.random.default_rng(0)
        self._depth, self._prefixes = -1, [[0]]

    def prompt(self, tokens: int, depth: int) -> tuple[float, float | None]:
        """Prompt tokens per second over all requests, `depth` tokens into each; seconds to a first token."""
        if depth and not self._caches:  # what the depth alone takes is measured beside it
            before = [self._ids(depth) for _ in range(self._n_seq)]
            whole, _ = self._first_tokens([prefix + self._ids(tokens) for prefix in before])
            alone, _ = self._first_tokens(before)
            if whole <= alone:
                raise EngineError(f"{tokens} tokens after {depth} took no longer than the {depth} alone; try more.")
            return self._n_seq * tokens / (whole - alone), None
        prompts = [prefix + self._ids(tokens) for prefix in self._begun(depth)]
        seconds, cached = self._first_tokens(prompts)
        if cached < self._n_seq * depth:
            raise EngineError(f"The engine did not keep the {depth} tokens that the prompts begin with.")
        return self._n_seq * tokens / seconds, None if depth else seconds

    def generation(self, tokens: int, depth: int) -> tuple[float, None]:
        """Tokens per second over all requests, counted while all of them write."""
        late = 0 if self._caches else LATE * (self._n_seq - 1)
        params = SamplingParams(temperature=0, max_tokens=tokens + late + 1, ignore_eos=True)
        times: list[list[float]] = [[] for _ in range(self._n_seq)]
        for event in self._engine.generate([GenerateRequest(ids, params) for ids in self._begun(max(1, depth))]):
            if isinstance(event, Token):
                times[event.request].append(time.perf_counter())
        begin, end = max(of[0] for of in times), min(of[-1] for of in times)
        if end <= begin:
            raise EngineError(f"Requests ended before all {self._n_seq} had begun; generate more than {tokens} tokens.")
        return sum(begin < at <= end for of in times for at in of) / (end - begin), None

    def _first_tokens(self, prompts: Sequence[list[int]]) -> tuple[float, int]:
        """Seconds until every request has its first token, and how many tokens of the prompts were kept from before."""
        params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        requests = [GenerateRequest(ids, params) for ids in prompts]
        begin = time.perf_counter()
        done = [event for event in self._engine.generate(requests) if isinstance(event, Generation)]
        return time.perf_counter() - begin, sum(event.usage.cached for event in done)

    def _begun(self, depth: int) -> list[list[int]]:
        """What each request begins with, kept by the engine where it can; the same until another depth is asked for."""
        if depth != self._depth:
            self._depth, self._prefixes = depth, [self._ids(depth) for _ in range(self._n_seq)]
            if depth and self._caches:
                self._first_tokens(self._prefixes)
        return self._prefixes

    def _ids(self, count: int) -> list[int]:
        found: list[int] = self._random.integers(self._engine.info.n_vocab, size=count).tolist()
        return found


if __name__ == "__main__":
    main()
