"""Draws: masks by their definitions, noise that depends on a row's own key and position alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamalab.engine import SamplingParams
from llamalab.llama.sampler import Plain, keep, penalise, recent_counts, sample, settings_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

V = 12
logits_rows = st.lists(
    st.floats(-8, 8, width=32).map(lambda x: round(x * 4) / 4), min_size=V, max_size=V
)  # quarters, so that ties happen


def masked(logits: list[float], top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> np.ndarray:
    one = jnp.asarray
    mask = _keep(one([logits], jnp.float32), one([top_k]), one([top_p], jnp.float32), one([min_p], jnp.float32))
    return np.asarray(mask)[0]


_keep = jax.jit(keep)


def probabilities(logits: list[float]) -> np.ndarray:
    p = np.exp(np.asarray(logits) - np.max(logits))
    return np.asarray(p / p.sum())


@given(logits_rows, st.integers(0, V + 3))
def test_top_k_keeps_the_k_most_probable_lower_ids_first(logits: list[float], k: int) -> None:
    best = np.argsort(-np.asarray(logits), kind="stable")[: k or V]
    assert set(np.flatnonzero(masked(logits, top_k=k))) == set(best)


@given(logits_rows, st.floats(0.01, 0.99))
@example([1.0] * V, 0.5)
def test_top_p_keeps_the_smallest_set_whose_mass_reaches_p(logits: list[float], p: float) -> None:
    kept = masked(logits, top_p=p)
    mass = probabilities(logits)
    assert mass[kept].sum() >= p - 1e-5
    assert mass[kept].sum() - mass[kept].min() < p + 1e-5  # one token less would not reach it
    if not kept.all():
        assert mass[kept].min() >= mass[~kept].max()  # most probable first


@given(logits_rows, st.floats(0.001, 1.0))
def test_min_p_keeps_what_is_at_least_that_fraction_of_the_best(logits: list[float], p: float) -> None:
    kept = masked(logits, min_p=p)
    ratio = probabilities(logits) / probabilities(logits).max()
    assert kept[ratio >= p * (1 + 1e-5)].all()
    assert not kept[ratio < p * (1 - 1e-5)].any()
    assert kept.any()


@settings(max_examples=50)
@given(logits_rows, st.integers(0, V), st.floats(0.01, 1.0), st.floats(0, 1.0))
def test_together_each_looks_at_what_the_one_before_left(
    logits: list[float], top_k: int, top_p: float, min_p: float
) -> None:
    z = np.asarray(logits, np.float64)
    order = np.argsort(-z, kind="stable")[: top_k or V]
    if top_p < 1:
        mass = np.cumsum(probabilities(list(z[order])))
        if np.abs(mass - top_p).min() < 1e-5:
            return  # decided by rounding
        order = order[: int(np.searchsorted(mass, top_p)) + 1]
    if min_p > 0:
        distance = z[order] - z.max() - np.log(min_p)
        if np.abs(distance).min() < 1e-5:
            return
        order = order[distance >= 0]
    assert set(np.flatnonzero(masked(logits, top_k, top_p, min_p))) == set(order)


def test_top_p_keeps_the_most_probable_of_a_flat_distribution() -> None:
    """The case that entropix's code got wrong: of .3 .2 .1 and a tail, p = .5 keeps the first two."""
    p = [0.3, 0.2, 0.1, *[0.4 / 9] * 9]
    assert list(np.flatnonzero(masked(list(np.log(p)), top_p=0.4999))) == [0, 1]


def test_forbidden_tokens_have_no_mass_and_are_never_kept() -> None:
    logits = [5.0, -np.inf, 1.0, *[-np.inf] * (V - 3)]
    assert list(np.flatnonzero(masked(logits))) == [0, 2]
    assert list(np.flatnonzero(masked(logits, top_k=5, top_p=0.999))) == [0, 2]


def drawn(logits: np.ndarray, params: list[SamplingParams], seeds: list[int], positions: list[int]) -> np.ndarray:
    ids = jnp.zeros((len(params), 8), jnp.int32)
    result = _sample(
        jnp.asarray(logits, jnp.float32), settings_of(params, seeds), jnp.asarray(positions), ids, None, Plain()
    )
    return np.asarray(result.token)


_sample = jax.jit(sample, static_argnames="sampler")


def test_a_draw_depends_on_its_seed_and_position_and_not_on_its_neighbours() -> None:
    rng = np.random.default_rng(0)
    logits, other = rng.normal(size=V), rng.normal(size=(3, V))
    warm = SamplingParams(temperature=1.5)

    def at(position: int, seed: int = 7) -> int:
        return int(drawn(logits[None], [warm], [seed], [position])[0])

    alone = [at(position) for position in range(40)]
    mixed = [SamplingParams(temperature=0), warm, SamplingParams(top_k=2), SamplingParams(min_p=0.2)]
    beside = [
        int(drawn(np.stack([other[0], logits, *other[1:]]), mixed, [1, 7, 2, 3], [5, position, 9, 1])[1])
        for position in range(40)
    ]
    assert beside == alone
    assert len(set(alone)) > 3  # fresh noise at each position
    assert [at(position, seed=8) for position in range(40)] != alone


def test_draws_follow_the_distribution() -> None:
    """4,000 draws at temperature 2 after top-k 3: within four standard errors of the probabilities."""
    logits = np.array([2.0, 1.0, 0.0, *[-1.0] * (V - 3)])
    n = 4000
    tokens = drawn(np.tile(logits, (n, 1)), [SamplingParams(temperature=2, top_k=3)] * n, [3] * n, list(range(n)))
    expected = probabilities(list(logits[:3] / 2))
    found = np.bincount(tokens, minlength=V) / n
    assert found[3:].sum() == 0
    assert np.abs(found[:3] - expected).max() < 4 * np.sqrt(0.25 / n)


def test_temperature_zero_takes_the_best() -> None:
    logits = np.random.default_rng(1).normal(size=(3, V))
    cold = SamplingParams(temperature=0)
    np.testing.assert_array_equal(drawn(logits, [cold] * 3, [1, 2, 3], [4, 5, 6]), logits.argmax(-1))
    np.testing.assert_array_equal(  # also beside a warm row
        drawn(logits, [cold, cold, SamplingParams()], [1, 2, 3], [4, 5, 6])[:2], logits.argmax(-1)[:2]
    )


@pytest.mark.parametrize("temperature", [1e-3, 1.2e-38, 1e-45])
def test_the_smallest_temperature_takes_the_best(temperature: float) -> None:
    """Logits divided by it would be infinite, the best and the second best alike."""
    logits = np.random.default_rng(2).normal(size=(8, V)) + 7
    cold = SamplingParams(temperature=temperature)
    np.testing.assert_array_equal(drawn(logits, [cold] * 8, list(range(8)), [3] * 8), logits.argmax(-1))


def test_penalties_are_llama_cpps() -> None:
    """Positive logits are divided, negative ones multiplied; per occurrence and once; over the last n alone."""
    params = SamplingParams(repeat_penalty=2, frequency_penalty=0.5, presence_penalty=0.25, penalty_last_n=3)
    row = settings_of([params], [0])
    ids = jnp.asarray([[4, 1, 2, 1, 9, 9, 9, 9]])
    logits = jnp.asarray([[1.0, 3.0, -1.0, 0.0, 5.0, *[0.0] * (V - 5)]])
    counts = recent_counts(ids, jnp.asarray([4]), row.penalty_last_n, logits)
    expected = np.array([1.0, 3 / 2 - 2 * 0.5 - 0.25, -1 * 2 - 0.5 - 0.25, 0.0, 5.0, *[0.0] * (V - 5)])
    np.testing.assert_allclose(penalise(logits, counts, row)[0], expected)
    everything = recent_counts(ids, jnp.asarray([4]), jnp.asarray([-1]), logits)
    np.testing.assert_array_equal(np.flatnonzero(everything[0]), [1, 2, 4])


def test_log_probabilities_are_of_the_model_and_of_the_draw() -> None:
    logits = np.log([0.5, 0.3, 0.2, *[1e-9] * (V - 3)])
    result = _sample(
        jnp.asarray(logits[None], jnp.float32),
        settings_of([SamplingParams(temperature=0.5, top_k=2)], [1]),
        jnp.asarray([3]),
        jnp.zeros((1, 8), jnp.int32),
        None,
        Plain(top=2),
    )
    token = int(result.token[0])
    squares = np.array([0.25, 0.09]) / 0.34
    assert float(result.raw[0]) == pytest.approx(logits[token], abs=1e-5)
    assert float(result.sampled[0]) == pytest.approx(np.log(squares[token]), abs=1e-5)
    assert result.top_ids[0].tolist() == [0, 1]
    np.testing.assert_allclose(result.top_logprobs[0], logits[:2], atol=1e-5)
