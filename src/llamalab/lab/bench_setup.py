"""What is measured of a model: tests, the setups that they run in, and what comes out."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llamalab.engines import provider_of
from llamalab.errors import ConfigError
from llamalab.lab.bench_child import LATE

PROMPT, GENERATE, REPETITIONS = 512, 128, 5


@dataclass(frozen=True, slots=True)
class Test:
    """What is measured.

    Attributes:
        kind: "prompt": reading so many tokens at once; "generate": writing them one by one.
        tokens: how many, of each request.
        depth: tokens that stand before them in the context.
    """

    kind: Literal["prompt", "generate"]
    tokens: int
    depth: int = 0

    def __str__(self) -> str:
        name = f"{'pp' if self.kind == 'prompt' else 'tg'}{self.tokens}"
        return f"{name} @ {self.depth}" if self.depth else name


@dataclass(frozen=True, slots=True)
class Setup:
    """One model in one process.

    Attributes:
        spec: the model.
        provider: whose engine runs it.
        n_threads: compute threads; None: the engine's own choice.
        n_seq: requests at once.
        tests: in this order.
        repetitions: of each test, after one that is not counted.
        options: of the engine, besides threads, requests and context.
    """

    spec: str
    provider: str
    n_threads: int | None
    n_seq: int
    tests: tuple[Test, ...]
    repetitions: int = REPETITIONS
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_ctx(self) -> int:
        """Context of each request, tokens: as the options say, or what the longest test needs.

        Raises:
            ConfigError: the options say less than that.
        """
        spare = 2 if self.provider == "llama_cpp" else 2 + LATE * (self.n_seq - 1)
        needed = max(test.depth + test.tokens for test in self.tests) + spare
        given: int = self.options.get("n_ctx", needed)
        if given < needed:
            raise ConfigError(f"These tests need a context of {needed} tokens, more than n_ctx={given}.")
        return given

    @property
    def engine_options(self) -> dict[str, Any]:
        """Everything for `llamalab.load`."""
        found = {**self.options, "n_ctx": self.n_ctx}
        if self.provider in ("llama_cpp", "jax"):
            found["n_seq"] = self.n_seq
        if self.provider == "llama_cpp" and any(test.depth for test in self.tests):
            found["cache_prompts"] = True
        if self.n_threads is not None:
            found["n_threads"] = self.n_threads
        return found


@dataclass(frozen=True, slots=True)
class Result:
    """One test of one setup.

    Attributes:
        model: name in the file.
        spec: as it was asked for.
        provider: whose engine ran it.
        n_params: parameters.
        size_bytes: of the weights.
        n_threads: compute threads.
        n_seq: requests at once.
        n_ctx: context of each, tokens.
        test: e.g. "pp512", "tg128 @ 4096".
        kind: "prompt" or "generate".
        tokens: of each request.
        depth: tokens before them.
        rates: tokens per second of each repetition, all requests together.
        first_token: seconds to the first token after such a prompt, of each repetition; empty where not measured.
        load_seconds: to open the model.
        peak_bytes: most memory that the process held; None where the system does not say.
        estimate_bytes: what `llamalab memory` says of it beforehand; None where it cannot.
        extrapolated: how the rates follow from measured ones; empty where they are measured.
        options: of the engine.
        runtime: package and version.
        processor: its name.
        cores: physical cores that the process may use.
        time: when it ended, UTC, ISO 8601.
    """

    model: str
    spec: str
    provider: str
    n_params: int
    size_bytes: int
    n_threads: int | None
    n_seq: int
    n_ctx: int
    test: str
    kind: str
    tokens: int
    depth: int
    rates: tuple[float, ...]
    first_token: tuple[float, ...]
    load_seconds: float
    peak_bytes: int | None
    estimate_bytes: int | None
    extrapolated: str
    options: Mapping[str, Any]
    runtime: str
    processor: str
    cores: int
    time: str

    @property
    def mean(self) -> float:
        """Tokens per second."""
        return statistics.fmean(self.rates)

    @property
    def deviation(self) -> float:
        """Standard deviation of the repetitions, tokens per second."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0


def plan(
    specs: Sequence[str],
    *,
    prompt: Sequence[int] = (PROMPT,),
    generate: Sequence[int] = (GENERATE,),
    depth: Sequence[int] = (0,),
    threads: Sequence[int] = (),
    batch: Sequence[int] = (1,),
    repetitions: int = REPETITIONS,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Setup]:
    """Every setup that the lists ask for: models x threads x requests at once; tests are tokens x depths.

    Args:
        specs: the models.
        prompt: tokens to read at once; 0: none.
        generate: tokens to write; 0: none.
        depth: tokens that stand before them.
        threads: of llama.cpp; empty: its own choice.
        batch: requests at once.
        repetitions: of each test.
        options: of the engine of each provider.

    Raises:
        ConfigError: numbers that mean nothing, nothing to measure, or threads for an engine that chooses its own.
        ModelNotFound: no such model.
    """
    for name, values, least in (
        ("pp", prompt, 0),
        ("tg", generate, 0),
        ("depth", depth, 0),
        ("threads", threads, 1),
        ("batch-seqs", batch, 1),
        ("repetitions", [repetitions], 1),
    ):
        if any(value < least for value in values):
            raise ConfigError(f"--{name} takes whole numbers of {least} or more, not {min(values)}.")
    tests = [Test("prompt", n, d) for d in dict.fromkeys(depth) for n in dict.fromkeys(prompt) if n]
    tests += [Test("generate", n, d) for d in dict.fromkeys(depth) for n in dict.fromkeys(generate) if n]
    tests.sort(key=lambda test: test.depth)  # both kinds of one depth share what is computed for it
    if not tests:
        raise ConfigError("There is nothing to measure: both --pp and --tg are 0.")
    providers = {spec: provider_of(spec) for spec in specs}
    for spec, provider in providers.items():
        if threads and provider != "llama_cpp":
            raise ConfigError(f"--threads is for llama.cpp; the {provider} engine of {spec} uses the cores it finds.")
    given = options or {}
    return [
        Setup(spec, providers[spec], n_threads, n_seq, tuple(tests), repetitions, given.get(providers[spec], {}))
        for spec, n_threads, n_seq in itertools.product(
            dict.fromkeys(specs), dict.fromkeys(threads) or [None], dict.fromkeys(batch)
        )
    ]
