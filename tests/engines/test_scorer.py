"""Scores against the model computed in float64 from its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.engine import GenerateRequest
from llamalab.engines import batch_scorer
from llamalab.engines.kernels import available
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.engines.scorer import ROWS, _even
from llamalab.errors import ConfigError, ContextOverflow, EngineError, InputError
from llamalab.lab.shapes import Shape
from llamalab.lab.synth import write_synthetic
from llamalab.scored import Decoding, ScoreRequest
from tests import tiny
from tests.engines.scores import conversations, same_bits_however_they_are_asked_for

SHAPE = Shape("small", 2, 256, 4, 2, 64, 512, 300, 1024, 10_000.0, True)


def reference(prefix: list[int], response: list[int], n_vocab: int) -> list[float]:
    logits = tiny.reference_logits([*prefix, *response], n_vocab=n_vocab)
    shifted = logits - logits.max(-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return [float(logp[len(prefix) + i - 1, id]) for i, id in enumerate(response)]


@pytest.mark.parametrize("lengths", [(1, 1), (1, 40), (40, 1), (30, 70), (100, 3)])
@pytest.mark.parametrize(
    "options", [{}, {"n_batch": 16}, {"n_outputs_max": 5, "n_seq": 1}, {"n_batch": 7, "n_ubatch": 3}]
)
def test_each_token_of_a_response_is_scored(tiny_gguf: Path, lengths: tuple[int, int], options: dict[str, int]):
    exact = {"type_k": "f32", "type_v": "f32"}
    with LlamaCppEngine(tiny_gguf, n_threads=1, **({"n_seq": 2} | options), **exact) as engine:
        rng = np.random.default_rng(sum(lengths))
        prefix, response = (rng.integers(0, engine.info.n_vocab, n).tolist() for n in lengths)
        (scored,) = engine.score([ScoreRequest(prefix, response)])
        expected = reference(prefix, response, engine.info.n_vocab)
    assert scored.logprobs == pytest.approx(expected, abs=2e-4)
    assert scored.total == pytest.approx(sum(expected), abs=2e-4 * len(expected))


def test_without_a_prefix_the_first_token_has_no_score(tiny_engine: LlamaCppEngine):
    ids = [5, 6, 7, 8]
    (scored,) = tiny_engine.score([ScoreRequest([], ids)])
    assert scored.logprobs[0] is None
    assert scored.logprobs[1:] == pytest.approx(reference(ids[:1], ids[1:], tiny_engine.info.n_vocab), abs=2e-4)
    assert scored.total == pytest.approx(sum(value for value in scored.logprobs if value is not None))
    (single,) = tiny_engine.score([ScoreRequest([], [5])])
    assert (single.logprobs, single.total) == ((None,), 0.0)


def test_an_empty_response_scores_zero(tiny_engine: LlamaCppEngine):
    (scored,) = tiny_engine.score([ScoreRequest([5], [])])
    assert (scored.logprobs, scored.total) == ((), 0.0)


def test_scores_do_not_depend_on_what_else_is_scored(tiny_engine: LlamaCppEngine):
    rng = np.random.default_rng(1)
    requests = [ScoreRequest(rng.integers(0, 300, 20).tolist(), rng.integers(0, 300, n).tolist()) for n in (5, 90, 1)]
    together = tiny_engine.score(requests)
    assert [tiny_engine.score([r])[0] for r in reversed(requests)] == together[::-1]  # bit for bit


def test_the_whole_context_can_be_scored_and_no_more(tiny_engine: LlamaCppEngine):
    n_ctx = tiny_engine.info.n_ctx
    (scored,) = tiny_engine.score([ScoreRequest([5] * 10, [6] * (n_ctx - 10))])
    assert len(scored.logprobs) == n_ctx - 10
    with pytest.raises(ContextOverflow, match=f"Request 1: prefix and response have {n_ctx + 1} tokens") as caught:
        tiny_engine.score([ScoreRequest([5], [6]), ScoreRequest([5] * 10, [6] * (n_ctx - 9))])
    assert (caught.value.needed, caught.value.available) == (n_ctx + 1, n_ctx)


def test_an_id_outside_the_vocabulary_is_refused(tiny_engine: LlamaCppEngine):
    with pytest.raises(InputError, match="Request 0, response: token id 349 at position 1"):
        tiny_engine.score([ScoreRequest([5], [6, 349])])
    with pytest.raises(InputError, match="Request 0, prefix: token id -1 at position 0"):
        tiny_engine.score([ScoreRequest([-1], [6])])


@pytest.fixture(
    scope="module",
    params=[
        ("F32", "repacked"),
        ("Q8_0", "repacked"),
        ("Q4_K_M", "repacked"),
        ("Q4_K_M", "plain"),
        ("Q4_0", "repacked"),
        *((type, "llamalab") for type in ("F32", "F16", "Q8_0", "Q4_K_M", "Q2_K")),
    ],
    ids="-".join,
)
def of_a_type(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LlamaCppEngine:
    """Kernels for quantised matrices work on blocks of rows: where rows lie in a decode could show in the bits."""
    type, kernels = request.param
    if kernels == "llamalab" and not available():
        pytest.skip("kernels='llamalab' cannot be had here")
    path = tmp_path_factory.mktemp("types") / f"{type}.gguf"
    write_synthetic(SHAPE, path, type)
    return LlamaCppEngine(path, n_ctx=512, n_seq=0, n_threads=1, kernels=kernels)


def test_strict_scores_have_the_same_bits_whatever_else_is_scored(of_a_type: LlamaCppEngine) -> None:
    alone = same_bits_however_they_are_asked_for(of_a_type)
    # What a response begins with has the same bits whatever follows.
    assert alone[3].logprobs == alone[4].logprobs[:17]
    assert alone[3].decoded[1].logprobs == alone[4].decoded[1].logprobs[:17]


@pytest.mark.slow
def test_strict_scores_have_the_same_bits_with_any_number_of_threads(of_a_type: LlamaCppEngine) -> None:
    """Two threads wait for each other hundreds of times in a decode: slow where cores are shared."""
    expected = of_a_type.score(conversations())
    with _again(of_a_type, n_threads=2) as engine:
        assert same_bits_however_they_are_asked_for(engine) == expected


def test_strict_scores_have_the_same_bits_in_another_process_of_the_same_settings(of_a_type: LlamaCppEngine) -> None:
    """Another engine, other batches before it."""
    requests = conversations()[5:9]
    expected = of_a_type.score(requests)
    with _again(of_a_type, n_threads=1) as other:
        other.score([ScoreRequest([1, 2, 3], [4, 5])])
        assert other.score(requests) == expected


def test_fast_scores_are_near_strict_ones(of_a_type: LlamaCppEngine) -> None:
    requests = conversations()
    for fast, strict in zip(of_a_type.score(requests, mode="fast"), of_a_type.score(requests), strict=True):
        assert len(fast.logprobs) == len(strict.logprobs)
        for a, b in zip(fast.logprobs, strict.logprobs, strict=True):
            assert a == b if a is None or b is None else abs(a - b) < 0.5


@pytest.mark.parametrize("options", [{}, {"n_batch": 32}, {"n_outputs_max": 16}])
def test_fast_scores_in_float32_are_strict_ones_but_for_rounding(tiny_gguf: Path, options: dict[str, int]) -> None:
    """Whichever responses share a cache, a decode and a window of logits."""
    wide = {"type_k": "f32", "type_v": "f32", "n_seq": 0, "n_threads": 1, "n_ctx": 512}
    with LlamaCppEngine(tiny_gguf, **wide, **options) as engine:
        requests = [*conversations(), ScoreRequest([7], [8]), ScoreRequest([7, 9], [])]
        strict = engine.score(requests)
        for fast in (engine.score(requests, mode="fast"), engine.score(requests[::-1], mode="fast")[::-1]):
            for a, b in zip(fast, strict, strict=True):
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
                assert a.entropies == pytest.approx(b.entropies, abs=1e-3)
                for one, other in zip(a.decoded, b.decoded, strict=True):
                    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


def test_samplers_are_scored_from_the_same_pass(tiny_engine: LlamaCppEngine) -> None:
    prefix, response = [3, 4, 5], list(range(40, 60))
    (found,) = tiny_engine.score([ScoreRequest(prefix, response, (Decoding(0.5), Decoding(top_k=1)))])
    logits = tiny.reference_logits([*prefix, *response], n_vocab=tiny_engine.info.n_vocab)[len(prefix) - 1 : -1]
    half = logits / 0.5
    half = half - half.max(-1, keepdims=True)
    half = half - np.log(np.exp(half).sum(-1, keepdims=True))
    expected = [float(half[i, id]) for i, id in enumerate(response)]
    assert found.decoded[0].logprobs == pytest.approx(expected, abs=2e-4)
    best = [0.0 if int(row.argmax()) == id else -np.inf for row, id in zip(logits, response, strict=True)]
    assert list(found.decoded[1].logprobs) == best
    assert list(found.ranks) == [1 + int((row > row[id]).sum()) for row, id in zip(logits, response, strict=True)]


def test_an_engine_without_sequences_scores_and_does_not_generate(tiny_gguf: Path) -> None:
    with LlamaCppEngine(tiny_gguf, n_seq=0, n_threads=1) as engine:
        assert engine.score([ScoreRequest([1], [2])])[0].total < 0
        with pytest.raises(EngineError, match="loaded with n_seq=0"):
            engine.generate([GenerateRequest([1])])


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (Decoding(0.0), "At temperature 0 one token has all the mass"),
        (Decoding(-1.0), "temperature must be above 0"),
        (Decoding(float("nan")), "temperature must be above 0"),
        (Decoding(top_p=0.0), "top_p must be"),
        (Decoding(order="other"), "order must be"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_distribution_is_refused(tiny_engine: LlamaCppEngine, decoding: Decoding, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_engine.score([ScoreRequest([1], [2], (decoding,))])
    with pytest.raises(ConfigError, match="mode must be strict or fast"):
        tiny_engine.score([ScoreRequest([1], [2])], mode="exact")  # type: ignore[arg-type]


@given(left=st.integers(1, 5000), most=st.integers(1, 32).map(lambda blocks: 16 * blocks))
def test_decodes_are_as_few_as_can_be_and_about_as_long_as_each_other(left: int, most: int) -> None:
    taken = []
    while left > sum(taken):
        taken.append(_even(left - sum(taken), most))
    assert sum(taken) == left
    assert len(taken) == -(-left // most)
    assert max(taken) <= most
    assert all(count % ROWS == 0 for count in taken[:-1])
    assert max(taken) - min(taken) <= ROWS * len(taken)


def _again(engine: LlamaCppEngine, *, n_threads: int) -> LlamaCppEngine:
    """Another engine of the same settings."""
    return LlamaCppEngine(engine.info.path, n_ctx=512, n_seq=0, n_threads=n_threads, kernels=engine.options.kernels)


def test_fast_scores_after_an_interruption_are_those_of_a_fresh_engine(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a group left in the cache when it was cut off, as by Ctrl-C, is in nobody's way."""
    requests = conversations()[:6]
    with LlamaCppEngine(tiny_gguf, n_threads=1, n_batch=32) as engine:
        expected = engine.score(requests, mode="fast")
    decoded, computed = batch_scorer.decode_rows, []

    def interrupted(*arguments: Any, **settings: Any) -> None:
        decoded(*arguments, **settings)
        computed.extend([settings] if "sequences" in settings else [])
        if len(computed) == 2:
            raise KeyboardInterrupt

    with LlamaCppEngine(tiny_gguf, n_threads=1, n_batch=32) as engine:
        monkeypatch.setattr(batch_scorer, "decode_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.score(requests, mode="fast")
        monkeypatch.undo()
        found = engine.score(requests, mode="fast")
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
