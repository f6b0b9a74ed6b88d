"""Scores against the model computed in float64 from its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamalab.engine import ScoreRequest
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import ContextOverflow, InputError
from tests import tiny


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
