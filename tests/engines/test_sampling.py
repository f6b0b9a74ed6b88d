"""Draws and their log probabilities, against a plain numpy account of the samplers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llamalab.engine import GenerateRequest, Generation, SamplingParams, TokenLogprob
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import ConfigError
from tests import tiny

TOLERANCE = 2e-4  # float32 in llama.cpp against float64 here


def generate(engine: LlamaCppEngine, prompt: list[int], params: SamplingParams, **more: Any) -> Generation:
    *_, last = engine.generate([GenerateRequest(prompt, params, **more)])
    assert isinstance(last, Generation)
    return last


def prompt_of(engine: LlamaCppEngine, text: str = "hello world, the code is") -> list[int]:
    assert engine.info.bos_id is not None
    return [engine.info.bos_id, *engine.tokenize(text)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - math.log(np.exp(shifted).sum())


def distribution(logits: np.ndarray, recent: list[int], params: SamplingParams) -> np.ndarray:
    """Log probabilities of the next token: penalties, top-k, top-p, min-p, temperature, by their definitions."""
    z = logits.copy()
    last = recent[-params.penalty_last_n :] if params.penalty_last_n > 0 else recent * (params.penalty_last_n < 0)
    for id in set(last):
        z[id] = z[id] / params.repeat_penalty if z[id] > 0 else z[id] * params.repeat_penalty
        z[id] -= last.count(id) * params.frequency_penalty + params.presence_penalty
    order = np.argsort(-z, kind="stable")
    keep = len(z) if params.top_k == 0 else params.top_k
    kept = order[:keep]
    if params.top_p < 1:
        p = np.exp(log_softmax(z[kept]))
        kept = kept[: int(np.searchsorted(np.cumsum(p), params.top_p)) + 1]
    if params.min_p > 0:
        kept = kept[z[kept] >= z[kept].max() + math.log(params.min_p)]
    out = np.full(len(z), -np.inf)
    out[kept] = log_softmax(z[kept] / params.temperature)
    return out


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.3, top_k=9),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.1, temperature=2.0),
        SamplingParams(top_k=40, top_p=0.9, min_p=0.02, temperature=0.8),
        SamplingParams(repeat_penalty=1.5),
        SamplingParams(frequency_penalty=0.5, presence_penalty=0.3, penalty_last_n=5),
        SamplingParams(repeat_penalty=1.3, penalty_last_n=-1, top_k=20),
        SamplingParams(repeat_penalty=1.3, penalty_last_n=0),
    ],
    ids=lambda p: ",".join(f"{k}={v}" for k, v in _changed(p).items()) or "plain",
)
def test_raw_and_sampled_log_probabilities(tiny_engine: LlamaCppEngine, params: SamplingParams):
    prompt = prompt_of(tiny_engine)
    result = generate(tiny_engine, prompt, replace(params, max_tokens=25, seed=3, ignore_eos=True), logprobs=3)
    assert result.logprobs is not None
    assert [lp.id for lp in result.logprobs] == list(result.ids)
    logits = tiny.reference_logits([*prompt, *result.ids], n_vocab=tiny_engine.info.n_vocab)
    for step, logprob in enumerate(result.logprobs):
        row = logits[len(prompt) + step - 1]
        raw = log_softmax(row)
        assert logprob.raw == pytest.approx(raw[logprob.id], abs=TOLERANCE)
        drawn_from = distribution(row, [*prompt, *result.ids[:step]], params)
        assert logprob.sampled == pytest.approx(drawn_from[logprob.id], abs=5 * TOLERANCE)
        best = np.argsort(-row, kind="stable")[:3]
        assert [id for id, _ in logprob.top] == best.tolist()
        assert [value for _, value in logprob.top] == pytest.approx(raw[best], abs=TOLERANCE)


def test_temperature_zero_takes_the_most_probable_token_with_certainty(tiny_engine: LlamaCppEngine):
    prompt = prompt_of(tiny_engine)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    result = generate(tiny_engine, prompt, params, logprobs=0)
    logits = tiny.reference_logits([*prompt, *result.ids], n_vocab=tiny_engine.info.n_vocab)
    assert list(result.ids) == logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert result.logprobs is not None
    assert {lp.sampled for lp in result.logprobs} == {0.0}
    assert {lp.top for lp in result.logprobs} == {()}
    assert result.ids == generate(tiny_engine, prompt, params).ids


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_k=20, temperature=0.7, repeat_penalty=1.2)])
def test_asking_for_log_probabilities_does_not_change_the_text(tiny_engine: LlamaCppEngine, params: SamplingParams):
    params = replace(params, seed=11, max_tokens=30)
    without = generate(tiny_engine, prompt_of(tiny_engine), params)
    assert generate(tiny_engine, prompt_of(tiny_engine), params, logprobs=5).ids == without.ids
    assert without.logprobs is None


def test_draws_follow_the_distribution(tiny_engine: LlamaCppEngine):
    """Chi-square of 600 first tokens with seeds 0..599, tokens of under five expected draws together."""
    prompt = prompt_of(tiny_engine)
    requests = [GenerateRequest(prompt, SamplingParams(max_tokens=1, seed=seed, top_k=12)) for seed in range(600)]
    drawn = [e.ids[0] for e in tiny_engine.generate(requests) if isinstance(e, Generation)]
    row = tiny.reference_logits(prompt, n_vocab=tiny_engine.info.n_vocab)[-1]
    expected = 600 * np.exp(distribution(row, [], SamplingParams(top_k=12)))
    assert set(drawn) <= set(np.flatnonzero(expected))
    counts = np.bincount(drawn, minlength=len(expected))
    common = expected >= 5
    pairs = [*zip(counts[common], expected[common], strict=True), (counts[~common].sum(), expected[~common].sum())]
    statistic = sum((seen - e) ** 2 / e for seen, e in pairs if e > 0)
    assert statistic < 33  # the 0.1% point for 11 degrees of freedom is 31.3


def test_a_fresh_seed_is_drawn_and_reported(tiny_engine: LlamaCppEngine):
    prompt = prompt_of(tiny_engine)
    first, second = (generate(tiny_engine, prompt, SamplingParams(max_tokens=20, ignore_eos=True)) for _ in range(2))
    assert first.seed != second.seed
    assert first.ids != second.ids
    again = generate(tiny_engine, prompt, SamplingParams(max_tokens=20, ignore_eos=True, seed=first.seed))
    assert again.ids == first.ids


def test_more_alternatives_than_tokens_gives_them_all(tiny_engine: LlamaCppEngine):
    result = generate(tiny_engine, prompt_of(tiny_engine), SamplingParams(max_tokens=1, seed=0), logprobs=10_000)
    assert result.logprobs is not None
    (logprob,) = result.logprobs
    assert isinstance(logprob, TokenLogprob)
    assert len(logprob.top) == tiny_engine.info.n_vocab
    assert sum(math.exp(value) for _, value in logprob.top) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("top_k", -1),
        ("top_k", 2.5),
        ("repeat_penalty", 0.0),
        ("frequency_penalty", math.nan),
        ("penalty_last_n", -2),
        ("max_tokens", -1),
        ("seed", -1),
        ("seed", 2**32 - 1),
        ("stop", "word"),
        ("stop", ("",)),
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny_engine: LlamaCppEngine, field: str, value: object):
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        tiny_engine.generate([GenerateRequest([1], SamplingParams(**{field: value}))])


def _changed(params: SamplingParams) -> dict[str, object]:
    default = SamplingParams()
    return {
        k: getattr(params, k) for k in SamplingParams.__dataclass_fields__ if getattr(params, k) != getattr(default, k)
    }
