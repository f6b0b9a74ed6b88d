"""The determinism report: it sees what is kept, and what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.engines.scorer import Scorer
from llamalab.lab.shapes import Shape
from llamalab.lab.synth import write_synthetic
from llamalab.scored import Scored, ScoreRequest
from llamalab.scoring.self_test import Report, self_test


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """K-quants round by the rows that stand in a decode together."""
    path = tmp_path_factory.mktemp("self-test") / "small.gguf"
    write_synthetic(Shape("small", 2, 256, 4, 2, 64, 512, 300, 1024, 10_000.0, True), path, "Q4_K_M")
    return path


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for each other are slow where tests share the cores."""
    monkeypatch.setattr("llamalab.engines.machine.physical_cores", lambda: 1)


def of(report: Report) -> dict[str, tuple[bool, bool]]:
    return {check.name: (check.promised, check.equal) for check in report.checks}


def test_strict_mode_keeps_what_it_promises_and_other_schedules_do_not(quantised: Path) -> None:
    report = self_test(str(quantised), options={"n_threads": 1, "n_ctx": 256})
    assert report.kept
    assert report.provider == "llama_cpp"
    checks = of(report)
    for name in ("again", "backwards", "shuffled", "each alone", "a fresh engine"):
        assert checks[name] == (True, True)
    assert checks["no padding, 7 tokens at a time"] == (False, False)
    noise = next(check for check in report.checks if check.name == "no padding, 7 tokens at a time")
    assert 0 < noise.per_token < 1
    assert noise.per_response > 0


def test_a_promise_that_is_broken_is_seen(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rows that fill a decode up, the bits of llama.cpp's kernels depend on where it begins."""
    init = Scorer.__init__
    monkeypatch.setattr(Scorer, "__init__", lambda self, *args, **options: init(self, *args, **{**options, "fill": 1}))
    report = self_test(str(quantised), options={"n_threads": 1, "n_ctx": 256, "kernels": "repacked"})
    assert not report.kept


def test_a_difference_has_its_size(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose scores drift by 0.25 a call."""
    real, calls = LlamaCppEngine.score, [0]

    def drifting(self: LlamaCppEngine, requests: list[ScoreRequest], *, mode: str = "strict") -> list[Scored]:
        calls[0] += 1
        scores = real(self, requests, mode="strict")
        return [
            Scored(tuple(None if v is None else v - 0.25 * calls[0] for v in s.logprobs), s.total - 0.25 * calls[0])
            for s in scores
        ]

    monkeypatch.setattr(LlamaCppEngine, "score", drifting)
    report = self_test(str(tiny_gguf), options={"n_threads": 1, "n_ctx": 256})
    again = next(check for check in report.checks if check.name == "again")
    assert not report.kept
    assert again.per_token == pytest.approx(0.25)
    assert again.per_response == pytest.approx(0.25)
