"""Rows of logits to numbers. Oracles: the definitions in float64, and llama.cpp's own samplers."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llamalab.engines.native import api
from llamalab.engines.reduction import joined, reduce, scored, support
from llamalab.errors import EngineError
from llamalab.scored import Decoding

ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 60)), elements=st.floats(-30, 30, width=32))
SAMPLERS = st.builds(
    Decoding,
    temperature=st.floats(0.1, 4),
    top_k=st.integers(0, 20),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.01, 0.1, 0.9]),
    order=st.sampled_from(["truncate_first", "temperature_first"]),
)


def log_softmax(row: np.ndarray) -> np.ndarray:
    wide = row.astype(np.float64)
    wide -= wide.max()
    return np.asarray(wide - math.log(np.exp(wide).sum()))


@given(rows=ROWS, data=st.data())
def test_a_row_is_reduced_by_the_definitions(rows: np.ndarray, data: st.DataObject) -> None:
    tokens = np.array([data.draw(st.integers(0, rows.shape[1] - 1)) for _ in rows])
    temperature = data.draw(st.floats(0.1, 4))
    found = reduce(rows, tokens, [Decoding(temperature=temperature)])
    for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        log_p = log_softmax(row)
        assert found.raw[i] == pytest.approx(log_p[token], abs=1e-5)
        assert found.entropies[i] == pytest.approx(-(np.exp(log_p) * log_p).sum(), abs=1e-4)
        assert found.ranks[i] == 1 + (row > row[token]).sum()
        scaled = log_softmax(row.astype(np.float64) / temperature)
        assert found.decoded[0][i] == pytest.approx(scaled[token], abs=1e-4)


@given(rows=ROWS, sampler=SAMPLERS)
def test_a_samplers_distribution_sums_to_one(rows: np.ndarray, sampler: Decoding) -> None:
    """Over all tokens, those that it never gives included."""
    row = rows[0]
    every = np.arange(len(row))
    (log_p,) = reduce(np.tile(row, (len(row), 1)), every, [sampler]).decoded
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-4)
    assert np.isfinite(log_p).sum() >= 1


def kept_by_llama_cpp(row: np.ndarray, sampler: Decoding) -> set[int]:
    """What its chain of truncations leaves."""
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    if sampler.top_k:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_k(sampler.top_k))
    if sampler.top_p < 1:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_p(sampler.top_p, 1))
    if sampler.min_p:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_min_p(sampler.min_p, 1))
    data = (api.llama_token_data * len(row))(*(api.llama_token_data(i, float(z), 0) for i, z in enumerate(row)))
    array = api.llama_token_data_array(data, len(row), -1, False)
    api.llama_sampler_apply(chain, ctypes.byref(array))
    kept = {array.data[i].id for i in range(array.size)}
    api.llama_sampler_free(chain)
    return kept


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 200), sampler=SAMPLERS)
def test_truncation_keeps_what_llama_cpp_keeps(seed: int, size: int, sampler: Decoding) -> None:
    row = np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)
    assert set(np.flatnonzero(support(row, sampler)).tolist()) == kept_by_llama_cpp(row, sampler)


def test_temperature_before_or_after_truncation_keeps_other_tokens() -> None:
    row = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    before = Decoding(temperature=0.25, top_p=0.75, order="temperature_first")
    after = Decoding(temperature=0.25, top_p=0.75)
    found = reduce(np.repeat(row, 3, axis=0), np.arange(3), [before, after])
    assert np.isfinite(found.decoded[0]).tolist() == [True, False, False]
    assert np.isfinite(found.decoded[1]).tolist() == [True, True, False]
    assert found.decoded[1][:2] == pytest.approx(np.log([0.5**4 / (0.5**4 + 0.3**4), 0.3**4 / (0.5**4 + 0.3**4)]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    row = np.zeros((1, 4), np.float32)
    row[0, 2] = value
    with pytest.raises(EngineError, match="token 2 is not finite"):
        reduce(row, np.array([2]))


def test_windows_join_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    rows, tokens, samplers = rng.normal(size=(9, 30)).astype(np.float32), rng.integers(0, 30, 9), [Decoding(0.5)]
    parts = [reduce(rows[at : at + 4], tokens[at : at + 4], samplers) for at in (0, 4, 8)]
    whole = scored(joined(parts, samplers), unscored=1)
    assert whole == scored(reduce(rows, tokens, samplers), unscored=1)
    assert whole.logprobs[0] is None
    assert whole.total == math.fsum(value for value in whole.logprobs if value is not None)


def test_a_token_without_any_mass_adds_nothing_to_the_entropy() -> None:
    row = np.array([[0.5, -np.inf, -1.0, 2.0]], np.float32)
    p = np.exp(log_softmax(row[0, [0, 2, 3]]))
    found = reduce(row, np.array([3]))
    assert found.entropies[0] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-6)
