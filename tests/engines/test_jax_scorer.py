"""Scores of the JAX engine: bits that do not depend on company, and values that agree with llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llamalab.engines.jax import JaxEngine
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.scored import Decoding, ScoreRequest
from tests.engines.scores import conversations, same_bits_however_they_are_asked_for


@pytest.fixture(scope="module")
def engine(tiny_gguf: Path) -> Iterator[JaxEngine]:
    with JaxEngine(tiny_gguf, n_ctx=512, n_seq=1) as engine:
        yield engine


def test_strict_scores_have_the_same_bits_whatever_else_is_scored(engine: JaxEngine) -> None:
    strict = same_bits_however_they_are_asked_for(engine)
    assert strict[3].logprobs == strict[4].logprobs[:17]
    for ours, other in zip(strict, engine.score(conversations(), mode="fast"), strict=True):
        assert ours.total == pytest.approx(other.total, abs=1e-4 * max(1, len(ours.logprobs)))
        for a, b in zip(ours.decoded, other.decoded, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


@pytest.mark.slow
def test_strict_scores_in_bfloat16_have_the_same_bits_too(tiny_gguf: Path) -> None:
    with JaxEngine(tiny_gguf, n_ctx=512, n_seq=1, dtype="bfloat16") as engine:
        same_bits_however_they_are_asked_for(engine)


def test_scores_are_llama_cpps(engine: JaxEngine, tiny_engine: LlamaCppEngine) -> None:
    asked = conversations()[:6]
    for ours, theirs in zip(engine.score(asked), tiny_engine.score(asked), strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=2e-4)
        assert ours.entropies == pytest.approx(theirs.entropies, abs=1e-3)
        for a, b in zip(ours.decoded, theirs.decoded, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


def test_fast_scores_under_temperatures_are_reduced_on_the_device(engine: JaxEngine) -> None:
    samplers = (Decoding(0.5), Decoding(2.0))
    asked = [ScoreRequest([1, 2, 3], [4, 5, 6, 7], samplers), ScoreRequest([1, 2], [9], samplers[:1])]
    for fast, strict in zip(engine.score(asked, mode="fast"), engine.score(asked), strict=True):
        assert fast.logprobs == pytest.approx(strict.logprobs, abs=1e-4)
        assert fast.ranks == strict.ranks
        assert fast.entropies == pytest.approx(strict.entropies, abs=1e-3)
        for a, b in zip(fast.decoded, strict.decoded, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)
