"""What the engines on other people's code add to it: ids in, draws, scores, events. No PyTorch."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llamalab.engine import GenerateRequest, Generation, LogitsEngine, ModelInfo, SamplingParams, Token
from llamalab.engines.reference import ReferenceEngine, draw
from llamalab.errors import ConfigError, ContextOverflow, EngineError, InputError, SchemaError
from llamalab.scored import ScoreRequest

V, EOS = 12, 11
P = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
ROW = np.log(P).astype(np.float32)


class Letters:
    """Tokens 0 to 25 are the letters."""

    def tokenize(self, text: str, **_: bool) -> list[int]:
        return [ord(c) - ord("a") for c in text]

    def detokenize(self, ids: Sequence[int], **_: bool) -> str:
        return "".join(chr(ord("a") + id) for id in ids)

    def token_bytes(self, id: int, **_: bool) -> bytes:
        return b"\xc3" if id == 9 else b"\xa9" if id == 10 else bytes([ord("a") + id])

    def close(self) -> None:
        pass


class CountingEngine(ReferenceEngine):
    """After a token comes the next one; the cache is the list of ids seen."""

    def __init__(self, n_ctx: int = 20) -> None:
        info = ModelInfo(
            name="counting",
            provider="counting",
            path=None,
            architecture="none",
            n_params=0,
            size_bytes=0,
            context_length=n_ctx,
            n_ctx=n_ctx,
            n_vocab=V,
            bos_id=None,
            eos_id=EOS,
            stop_ids=frozenset({EOS}),
            add_bos=False,
            special_tokens={},
        )
        super().__init__(info, Letters(), ())
        self.steps: list[tuple[int, int]] = []

    def _new_cache(self) -> list[int]:
        return []

    def _run(self, cache: list[int], ids: Sequence[int], start: int, rows: slice) -> np.ndarray[Any, Any]:
        assert len(cache) == start  # positions follow what the cache holds
        cache += ids
        self.steps.append((start, len(ids)))
        logits = np.zeros((len(ids), V), np.float32)
        logits[np.arange(len(ids)), (np.array(ids) + 1) % V] = 5.0
        return logits[rows]

    def hidden(self, ids: Sequence[int]) -> list[np.ndarray[Any, Any]]:
        return [np.zeros((len(ids), 1), np.float32)]

    def _free(self) -> None:
        pass


def greedy(**changes: Any) -> SamplingParams:
    return SamplingParams(**({"temperature": 0.0} | changes))


def run(engine: CountingEngine, ids: Sequence[int], **params: Any) -> tuple[list[Token], Generation]:
    *tokens, last = engine.generate([GenerateRequest(ids, greedy(**params))])
    assert isinstance(last, Generation)
    return tokens, last


def test_it_is_an_engine_that_shows_its_logits() -> None:
    assert isinstance(CountingEngine(), LogitsEngine)


def test_generation_runs_the_prompt_once_and_then_a_token_at_a_time() -> None:
    engine = CountingEngine()
    tokens, last = run(engine, [0, 1, 2], max_tokens=3)
    assert (last.ids, last.text, last.finish_reason) == ((3, 4, 5), "def", "length")
    assert engine.steps == [(0, 3), (3, 1), (4, 1)]
    assert [token.text for token in tokens] == ["d", "e", "f"]
    assert (last.usage.fresh, last.usage.output) == (3, 3)


def test_an_end_token_ends_it_unless_ignored() -> None:
    _, last = run(CountingEngine(), [7])
    assert (last.ids, last.finish_reason) == ((8, 9, 10, 11), "stop")
    assert last.text == "ié"
    _, last = run(CountingEngine(), [7], ignore_eos=True, max_tokens=6)
    assert last.ids == (8, 9, 10, 11, 0, 1)


def test_text_comes_in_whole_characters_and_ends_before_a_stop_string() -> None:
    tokens, last = run(CountingEngine(), [7], stop=("x",))
    assert [token.text for token in tokens] == ["i", "", "é", ""]
    tokens, last = run(CountingEngine(), [0], stop=("ef",))
    assert (last.text, last.ids, last.finish_reason) == ("bcd", (1, 2, 3, 4, 5), "stop")
    assert "".join(token.text for token in tokens) == last.text


def test_half_a_character_at_the_limit_is_shown_as_such() -> None:
    tokens, last = run(CountingEngine(), [7], max_tokens=2)
    assert last.text == "i\N{REPLACEMENT CHARACTER}" == "".join(token.text for token in tokens)


def test_the_context_is_a_limit() -> None:
    _, last = run(CountingEngine(n_ctx=5), [0, 1, 2])
    assert (last.ids, last.finish_reason) == ((3, 4), "length")


def test_cancel_and_deadline_end_a_request() -> None:
    cancel = threading.Event()
    cancel.set()
    requests = [
        GenerateRequest([0], greedy(), cancel=cancel),
        GenerateRequest([0], greedy(), deadline=time.monotonic() - 1),
    ]
    done = list(CountingEngine().generate(requests))
    ends = [(last.finish_reason, last.ids) for last in done if isinstance(last, Generation)]
    assert ends == [("cancelled", ()), ("deadline", ())]


def test_logits_and_steps_are_the_same_rows() -> None:
    engine, ids = CountingEngine(), [3, 1, 4, 1, 5]
    np.testing.assert_array_equal(engine.stepped_logits(ids, 2), engine.logits(ids)[2:])
    np.testing.assert_array_equal(engine.stepped_logits(ids, 0), engine.logits(ids))
    with pytest.raises(InputError, match="from 0 to 4, not 5"):
        engine.stepped_logits(ids, 5)


def test_scores_are_log_probabilities_given_the_prefix() -> None:
    likely = 5 - math.log(math.exp(5) + V - 1)
    scores = CountingEngine().score([ScoreRequest([0, 1], [2, 9]), ScoreRequest([], [4, 5]), ScoreRequest([1], [])])
    assert scores[0].logprobs == pytest.approx((likely, likely - 5))
    assert scores[0].total == pytest.approx(2 * likely - 5)
    assert scores[1].logprobs[0] is None
    assert scores[1].logprobs[1] == pytest.approx(likely)
    assert (scores[2].logprobs, scores[2].total) == ((), 0.0)


def test_log_probabilities_are_reported() -> None:
    *_, last = CountingEngine().generate([GenerateRequest([0], greedy(max_tokens=1), logprobs=2)])
    assert isinstance(last, Generation)
    assert last.logprobs is not None
    (found,) = last.logprobs
    assert found.raw == pytest.approx(5 - math.log(math.exp(5) + V - 1))
    assert (found.id, found.sampled, found.top[0]) == (1, 0.0, (1, found.raw))


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({}, 5),
        ({"top_k": 3}, 3),
        ({"top_p": 0.7}, 2),
        ({"top_p": 0.71}, 3),
        ({"min_p": 0.3}, 3),
        ({"top_k": 4, "min_p": 0.3, "temperature": 2.0}, 3),
    ],
)
def test_draws_follow_the_truncated_distribution(params: dict[str, Any], kept: int) -> None:
    """The kept tokens are the most probable ones, drawn in proportion to p ** (1 / temperature)."""
    random = np.random.default_rng(0)
    request = GenerateRequest([0], SamplingParams(**params), logprobs=0)
    drawn = [draw(ROW, request, random) for _ in range(4000)]
    counts = Counter(id for id, _ in drawn)
    expected = P[:kept] ** (1 / request.params.temperature)
    expected /= expected.sum()
    assert set(counts) == set(range(kept))
    np.testing.assert_allclose([counts[i] / 4000 for i in range(kept)], expected, atol=0.035)
    for id, logprob in drawn[:20]:
        assert logprob is not None
        assert (logprob.raw, logprob.sampled) == pytest.approx((math.log(P[id]), math.log(expected[id])), abs=1e-5)


def test_the_same_seed_gives_the_same_text() -> None:
    engine = CountingEngine()
    params = SamplingParams(temperature=3.0, seed=4, max_tokens=10, ignore_eos=True)
    one, other = (list(engine.generate([GenerateRequest([0], params)]))[-1] for _ in range(2))
    assert isinstance(one, Generation)
    assert isinstance(other, Generation)
    assert (one.ids, one.seed) == (other.ids, 4)


def test_what_is_not_supported_is_refused_before_any_work() -> None:
    engine = CountingEngine()
    for request, error in (
        (GenerateRequest([0], SamplingParams(repeat_penalty=1.1)), ConfigError),
        (GenerateRequest([0], schema={}), SchemaError),
        (GenerateRequest([0], grammar="root ::= [a]"), SchemaError),
        (GenerateRequest([]), InputError),
        (GenerateRequest([V]), InputError),
        (GenerateRequest([0] * 21), ContextOverflow),
        (GenerateRequest([0], SamplingParams(top_p=0.0)), ConfigError),
    ):
        with pytest.raises(error):
            engine.generate([request])
    assert engine.steps == []


def test_logits_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(EngineError, match="not finite"):
        draw(np.array([0, np.nan], np.float32), GenerateRequest([0]), np.random.default_rng(0))


def test_a_closed_engine_says_so() -> None:
    engine = CountingEngine()
    events = engine.generate([GenerateRequest([0], greedy(max_tokens=3))])
    next(events)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        next(events)
    with pytest.raises(EngineError, match="closed"):
        engine.logits([0])


@pytest.mark.parametrize("ids", [[1.5], ["a"], [[1]]])
def test_an_id_that_is_no_whole_number_is_refused(ids: list[Any]) -> None:
    engine = CountingEngine()
    for call in (
        lambda: engine.logits(ids),
        lambda: engine.generate([GenerateRequest(ids)]),
        lambda: engine.score([ScoreRequest([1], ids)]),
    ):
        with pytest.raises(InputError, match="integers"):
            call()
    assert engine.steps == []


def test_a_request_that_means_nothing_is_refused_as_by_every_engine() -> None:
    engine = CountingEngine()
    with pytest.raises(ConfigError, match="mode must be strict or fast"):
        engine.score([ScoreRequest([1], [2])], mode="exact")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="logprobs must be"):
        engine.generate([GenerateRequest([1], logprobs=-1)])
