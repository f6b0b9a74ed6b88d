"""Benchmarks. Oracle of the arithmetic: an engine that takes exactly as long as it is told, on a clock of its own."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llamalab.engine import GenerateRequest, Generation, Token, Usage
from llamalab.errors import ConfigError, EngineError, ModelFileError, ModelNotFound
from llamalab.lab import bench, bench_child
from llamalab.lab.bench import Result, plan, run
from llamalab.lab.bench_history import append, read
from llamalab.lab.bench_plot import plot
from tests.fake_engine import FakeEngine

READ, WRITE = 0.01, 0.1
"""Seconds to read a token and to write one."""


@dataclass
class TimedEngine(FakeEngine):
    """Reads the prompts of a call one after the other, then writes a token of each at a time; keeps prompts or not."""

    clock: float = 0.0
    keeps: bool = False
    kept: list[tuple[int, ...]] = field(default_factory=list)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Any]:
        cached = []
        for number, request in enumerate(requests):
            prompt = tuple(request.prompt_ids)
            known = max((shared(prompt, kept) for kept in self.kept), default=0) if self.keeps else 0
            cached.append(min(known, len(prompt) - 1))
            self.clock += READ * (len(prompt) - cached[-1])
            yield Token(number, 1, "")
        self.kept = [tuple(request.prompt_ids) for request in requests] + self.kept
        for _ in range(1, requests[0].params.max_tokens or 0):
            self.clock += WRITE
            for number in range(len(requests)):
                yield Token(number, 1, "")
        for number, request in enumerate(requests):
            usage = Usage(fresh=len(request.prompt_ids) - cached[number], cached=cached[number], output=1)
            yield Generation(number, "", (1,), "length", usage=usage)


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> TimedEngine:
    engine = TimedEngine()
    monkeypatch.setattr(bench_child.time, "perf_counter", lambda: engine.clock)
    return engine


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("n_seq", [1, 3])
@pytest.mark.parametrize("depth", [0, 40])
def test_rates_are_tokens_over_the_time_they_take(timed: TimedEngine, keeps: bool, n_seq: int, depth: int) -> None:
    """Reading costs the same at every depth here, whether the depth is kept or measured beside it."""
    timed.keeps = keeps
    of = bench_child.Bench(timed, n_seq=n_seq, caches=keeps)
    for _ in range(2):
        rate, first = of.prompt(20, depth)
        assert rate == pytest.approx(1 / READ)
        assert first == (pytest.approx(20 * n_seq * READ) if depth == 0 else None)
        rate, _ = of.generation(10, depth)
        assert rate == pytest.approx(n_seq / WRITE)


def test_an_engine_that_did_not_keep_the_depth_is_not_believed(timed: TimedEngine) -> None:
    with pytest.raises(EngineError, match="did not keep the 40 tokens"):
        bench_child.Bench(timed, n_seq=1, caches=True).prompt(20, 40)


def test_a_plan_is_every_combination_once(tiny_gguf: Path) -> None:
    setups = plan([str(tiny_gguf)], prompt=[8, 0], generate=[4], depth=[0, 16, 0], threads=[1, 2], batch=[1, 2, 1])
    assert [(s.n_threads, s.n_seq) for s in setups] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [str(test) for test in setups[0].tests] == ["pp8", "tg4", "pp8 @ 16", "tg4 @ 16"]
    assert setups[0].n_ctx >= 16 + 8
    assert setups[0].engine_options["cache_prompts"] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": [-1]}, r"--pp takes whole numbers of 0 or more, not -1"),
        ({"threads": [0]}, r"--threads takes whole numbers of 1 or more"),
        ({"batch": [0]}, r"--batch-seqs takes"),
        ({"prompt": [0], "generate": [0]}, "nothing to measure"),
        ({"options": {"llama_cpp": {"n_ctx": 16}}}, "more than n_ctx=16"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny_gguf: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = [setup.n_ctx for setup in plan([str(tiny_gguf)], **changes)]


def test_a_model_that_is_not_there_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        plan([str(tmp_path / "none.gguf")])


def test_threads_are_llama_cpps(tiny_gguf: Path) -> None:
    with pytest.raises(ConfigError, match=r"--threads is for llama\.cpp"):
        plan([f"jax:{tiny_gguf}"], threads=[1])


def test_a_model_is_measured_in_a_process_of_its_own(tiny_gguf: Path) -> None:
    setups = plan([str(tiny_gguf)], prompt=[16], generate=[8], depth=[0, 32], batch=[2], threads=[1], repetitions=2)
    results = list(run(setups))
    assert [result.test for result in results] == ["pp16", "tg8", "pp16 @ 32", "tg8 @ 32"]
    for result in results:
        assert len(result.rates) == 2
        assert min(result.rates) > 0
        assert result.mean == pytest.approx(statistics.mean(result.rates))
        assert result.deviation == pytest.approx(statistics.stdev(result.rates))
        assert result.peak_bytes is None or result.peak_bytes > result.size_bytes
        assert (result.n_threads, result.n_seq, result.provider) == (1, 2, "llama_cpp")
        assert result.runtime.startswith("llama-cpp-python 0.")
        assert result.estimate_bytes is not None
        assert result.peak_bytes is None or abs(result.estimate_bytes / result.peak_bytes - 1) < 0.25
    assert [len(result.first_token) for result in results] == [2, 0, 0, 0]


def test_what_memory_does_not_know_has_no_estimate(tiny_gguf: Path) -> None:
    options = {"llama_cpp": {"load_mode": "read"}}
    (found,) = run(plan([str(tiny_gguf)], prompt=[8], generate=[0], repetitions=1, options=options))
    assert found.estimate_bytes is None


def test_the_childs_error_is_ours(tiny_gguf: Path) -> None:
    (setup,) = plan([str(tiny_gguf)], prompt=[8], generate=[0], options={"llama_cpp": {"n_bach": 4}})
    with pytest.raises(ConfigError, match="no option 'n_bach'"):
        list(run([setup]))


def test_a_child_that_dies_is_one_message(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\necho cannot allocate >&2\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(bench.sys, "executable", str(killed))
    with pytest.raises(EngineError, match=r"ended with status -9: cannot allocate\. .* more memory"):
        list(run(plan([str(tiny_gguf)])))


@pytest.mark.slow
def test_jax_is_measured_too(tiny_gguf: Path) -> None:
    setups = plan([f"jax:{tiny_gguf}"], prompt=[300], generate=[4], depth=[0, 16], batch=[2], repetitions=1)
    results = list(run(setups))
    assert [result.test for result in results] == ["pp300", "tg4", "pp300 @ 16", "tg4 @ 16"]


def result(**changes: Any) -> Result:
    made = Result(
        model="tiny",
        spec="tiny.gguf",
        provider="llama_cpp",
        n_params=1000,
        size_bytes=4000,
        n_threads=2,
        n_seq=1,
        n_ctx=641,
        test="tg128",
        kind="generate",
        tokens=128,
        depth=0,
        rates=(10.0, 12.0),
        first_token=(),
        load_seconds=0.1,
        peak_bytes=100_000,
        estimate_bytes=99_000,
        extrapolated="",
        options={"flash_attn": True},
        runtime="llama-cpp-python 0",
        processor="a processor",
        cores=2,
        time="2026-01-01T00:00:00+00:00",
    )
    return dataclasses.replace(made, **changes)


def test_what_was_measured_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "bench.sqlite"
    assert read(path=path) == []
    first, second = result(), result(test="pp512", kind="prompt", first_token=(0.5, 0.6))
    append([first], path)
    append([second], path)
    assert read(path=path) == [first, second]
    assert read(1, path) == [second]


def test_many_can_write_the_history_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bench.sqlite"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: append([result(depth=i)], path), range(40)))
    assert sorted(found.depth for found in read(path=path)) == list(range(40))


def test_a_file_that_is_no_history_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.sqlite"
    path.write_text("nothing that SQLite knows, but long enough to be looked at" * 20)
    with pytest.raises(ModelFileError, match="cannot be read"):
        read(path=path)
    with pytest.raises(ModelFileError, match="cannot be written"):
        append([result()], path)


@pytest.mark.parametrize(
    "results",
    [
        [result()],
        [result(depth=d, kind=k, rates=(10.0 - d / 1000,) * 2) for d in (0, 1024) for k in ("prompt", "generate")],
        [result(model=m, n_threads=t) for m in ("a", "b") for t in (1, 2)],
    ],
    ids=["one", "depths", "models"],
)
def test_a_picture_is_drawn(tmp_path: Path, results: list[Result]) -> None:
    pytest.importorskip("matplotlib")
    plot(results, tmp_path / "bench.svg")
    assert "tokens/s" in (tmp_path / "bench.svg").read_text()
    with pytest.raises(ConfigError, match="cannot be written"):
        plot(results, tmp_path / "no" / "bench.svg")
