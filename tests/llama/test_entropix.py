"""The entropix sampler: measures in closed form, every case at inputs made for it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamalab.engine import SamplingParams
from llamalab.llama.entropix import Entropix, measure, sample_entropix
from llamalab.llama.entropix_cases import (
    CASES,
    FRACTIONAL,
    ORIGINAL,
    Case,
    Measures,
    Thresholds,
    case_of,
    manner_of,
)
from llamalab.llama.sampler import settings_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

V, H, S = 64, 4, 16
FLAT = np.zeros((H, S))


def measured(logits: np.ndarray, scores: np.ndarray = FLAT) -> dict[str, float]:
    values = measure(jnp.asarray(logits[None], jnp.float32), jnp.asarray(scores[None], jnp.float32))
    return {name: float(value[0]) for name, value in values._asdict().items()}


def test_uniform_logits_have_full_entropy_and_no_varentropy() -> None:
    found = measured(np.full(V, 3.0))
    assert found["entropy"] == pytest.approx(6)
    assert found["varentropy"] == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.01])
def test_two_points_have_their_textbook_values(p: float) -> None:
    """H = -p log2 p - q log2 q; the surprise takes two values log2(q/p) apart, so its variance is p q log2(q/p)^2."""
    q = 1 - p
    logits = np.full(V, -np.inf)
    logits[3], logits[40] = np.log(p), np.log(q)
    found = measured(logits)
    assert found["entropy"] == pytest.approx(-p * np.log2(p) - q * np.log2(q), rel=1e-5)
    assert found["varentropy"] == pytest.approx(p * q * np.log2(q / p) ** 2, rel=1e-4, abs=1e-9)


def test_attention_counts_valid_keys_alone() -> None:
    """Equal scores over n keys: log2 n bits in each head, whatever the size of the cache."""
    for n in (1, 3, 8):
        scores = np.full((H, S), -np.inf)
        scores[:, :n] = -2.0
        found = measured(np.zeros(V), scores)
        assert found["attention_entropy"] == pytest.approx(np.log2(n), abs=1e-6)
        assert found["attention_varentropy"] == pytest.approx(0, abs=1e-10)
        assert found["agreement"] == pytest.approx(0, abs=1e-7)
        assert found["interaction"] == pytest.approx(2)


def test_a_score_of_zero_is_a_score() -> None:
    """entropix took a score of exactly 0 for an empty slot."""
    scores = np.full((H, S), -np.inf)
    scores[:, :4] = [0.0, 0.0, 0.0, 0.0]
    assert measured(np.zeros(V), scores)["attention_entropy"] == pytest.approx(2)


def test_heads_that_differ_show_in_varentropy_and_agreement() -> None:
    """Half of the heads on one key, half spread over two: entropies 0, 0, 1, 1; distances by hand."""
    scores = np.full((H, S), -np.inf)
    scores[:, :2] = 0.0
    scores[:2, 1] = -200.0
    found = measured(np.zeros(V), scores)
    assert found["attention_entropy"] == pytest.approx(0.5)
    assert found["attention_varentropy"] == pytest.approx(0.25)
    # weights (1, 0) and (1/2, 1/2), mean (3/4, 1/4): every distance is 1/4
    assert found["agreement"] == pytest.approx(0.25)
    assert found["interaction"] == pytest.approx(2 * 200 / (4 * 2))


def row(H: float, V: float, Ha: float = 0.5, Va: float = 0.1, g: float = 0.1, i: float = 1.0) -> Measures:
    return Measures(*(jnp.asarray([x], jnp.float32) for x in (H, V, Ha, Va, g, i)))


@pytest.mark.parametrize(
    ("thresholds", "measures", "expected"),
    [
        (ORIGINAL, row(0.05, 0.05), "LELV"),
        (ORIGINAL, row(5.5, 0.05), "HELV"),
        (ORIGINAL, row(2.0, 6.0), "LEHV"),
        (ORIGINAL, row(4.0, 6.0), "LEHV"),  # tested before HEHV, though H > 3 fits that too
        (ORIGINAL, row(5.5, 6.0), "HEHV"),
        (ORIGINAL, row(2.0, 2.0), "adaptive"),
        (ORIGINAL, row(0.1, 0.05), "adaptive"),  # a threshold itself is on neither side
        (FRACTIONAL, row(0.5, 0.2, 0.5, 0.1), "LELV"),
        (FRACTIONAL, row(0.5, 0.2, 1.5, 0.1), "adaptive"),  # the logits fit, the attention does not
        (FRACTIONAL, row(3.0, 0.2, 0.5, 0.1), "HELV"),
        (FRACTIONAL, row(1.0, 2.0, 0.5, 1.0), "LEHV"),
        (FRACTIONAL, row(2.0, 2.0, 2.5, 1.0), "HEHV"),
        (FRACTIONAL, row(2.0, 2.0, 0.5, 1.0), "LEHV"),
        (FRACTIONAL, row(1.0, 0.8), "adaptive"),
    ],
)
def test_each_case_fires_where_it_should(thresholds: Thresholds, measures: Measures, expected: Case) -> None:
    assert CASES[int(case_of(measures, thresholds)[0])] == expected


def manner(thresholds: Thresholds, case: Case, measures: Measures) -> list[float]:
    found = manner_of(jnp.asarray([CASES.index(case)]), measures, thresholds)
    return [float(value[0]) for value in found]  # temperature, top_k, top_p, min_p


def test_each_case_draws_as_published() -> None:
    """Worked by hand from the formulas, at H=2, V=1, Ha=1, Va=0.5, g=0.2, I=3."""
    m = row(2.0, 1.0, 1.0, 0.5, 0.2, 3.0)

    def same(found: list[float], *expected: float) -> None:
        assert found == pytest.approx(list(expected), rel=1e-5)

    same(manner(ORIGINAL, "HELV", m), 0.666 * 1.5, 27, 0.9, 0.03)
    same(manner(ORIGINAL, "LEHV", m), 0.666 * 2.1, int(27 * 1.4), 0.9, 0.03)
    same(manner(ORIGINAL, "HEHV", m), 2.0, 27, 0.7, 0.03)
    same(manner(ORIGINAL, "adaptive", m), 0.666 * (1 + 0.9 + 0.3 - 0.04), 50, 0.9 * 1.05, 0.01)
    same(manner(FRACTIONAL, "HELV", m), 0.8 * 0.5, 40, 0.9, 0.05)
    same(manner(FRACTIONAL, "LEHV", m), 0.8, 40, 0.9, 0.05)
    same(manner(FRACTIONAL, "HEHV", m), 0.8 * 0.425, 40, 0.6, 0.05)
    nats = 2 * np.log(2)
    same(manner(FRACTIONAL, "adaptive", m), 0.8 * np.sqrt((1.2 * nats + 2) / nats), 40, 0.9, 0.04)
    same(manner(ORIGINAL, "LEHV", row(2.0, 1.0, i=30.0)), 1.5, int(27 * 1.45), 0.9, 0.03)


_sample = jax.jit(sample_entropix, static_argnames="sampler")


def draws(
    logits: np.ndarray, sampler: Entropix, positions: list[int], last: int = 0, scores: np.ndarray | None = None
) -> tuple[np.ndarray, list[str]]:
    """Tokens and cases of one row of logits for each position."""
    n = len(positions)
    rows = np.broadcast_to(logits, (n, V)) if logits.ndim == 1 else logits
    seen = np.zeros((H, S)) if scores is None else scores
    found, trace = _sample(
        jnp.asarray(rows, jnp.float32),
        jnp.broadcast_to(jnp.asarray(seen, jnp.float32), (n, H, S)),
        settings_of([SamplingParams()] * n, [5] * n),
        jnp.asarray(positions),
        jnp.full((n, 64), last, jnp.int32),
        None,
        sampler,
    )
    return np.asarray(found.token), [CASES[int(case)] for case in trace.case]


POSITIONS = list(range(1, 61))
"""One number of rows throughout: one compilation per sampler."""

UNIFORM = np.zeros(V)
SURE = np.where(np.arange(V) == 9, 40.0, 0.0)
MIDDLE = np.where(np.arange(V) < 4, 3.0, -3.0)


def test_rows_of_a_batch_decide_for_themselves() -> None:
    tokens, cases = draws(np.stack([SURE, UNIFORM, MIDDLE] * 20), Entropix(clarify=33), POSITIONS)
    assert cases == ["LELV", "HELV", "adaptive"] * 20
    assert set(tokens[0::3].tolist()) == {9}
    assert set(tokens[1::3].tolist()) == {33}
    assert set(tokens[2::3].tolist()) <= {0, 1, 2, 3}


def test_a_question_is_asked_once() -> None:
    """After the clarifying token, and where there is none, the row is drawn at a raised temperature."""
    asked, _ = draws(UNIFORM, Entropix(clarify=33), POSITIONS, last=8)
    again, _ = draws(UNIFORM, Entropix(clarify=33), POSITIONS, last=33)
    never, _ = draws(UNIFORM, Entropix(), POSITIONS, last=8)
    assert set(asked.tolist()) == {33}
    assert len(set(again.tolist())) > 5
    assert again.tolist() == never.tolist()


def test_noise_is_fresh_at_every_step() -> None:
    tokens, _ = draws(MIDDLE, Entropix(), POSITIONS)
    assert len(set(tokens.tolist())) > 1


def test_top_k_of_the_case_is_kept_to() -> None:
    """HELV keeps 27 of the 64 equally probable tokens: those of the lowest ids, and it does reach most of them."""
    tokens, _ = draws(UNIFORM, Entropix(thresholds=replace(ORIGINAL, min_p=0.0)), POSITIONS)
    assert tokens.max() < 27
    assert len(set(tokens.tolist())) > 15


def test_min_p_is_live() -> None:
    """Two tokens, nine to one: H = 0.469, V = 0.904, Ha = 4, so T = 1.47, and the second is 0.22 as probable as the
    first. min_p = 0.9 (1 - (H + V) / 2) = 0.28 rules it out, the published 0.01 does not."""
    logits = np.where(np.arange(V) == 0, np.log(9), np.where(np.arange(V) == 1, 0.0, -30.0))
    picky, _ = draws(logits, Entropix(thresholds=replace(ORIGINAL, min_p=0.9, top_p=1.0, draws=1)), POSITIONS)
    loose, cases = draws(logits, Entropix(thresholds=replace(ORIGINAL, top_p=1.0, draws=1)), POSITIONS)
    assert set(cases) == {"adaptive"}
    assert set(loose.tolist()) == {0, 1}
    assert set(picky.tolist()) == {0}


def test_the_adaptive_case_takes_the_most_probable_of_its_draws() -> None:
    """With one draw the second best token comes often; the best of five is nearly always the best."""
    logits = np.where(np.arange(V) == 0, 2.0, np.where(np.arange(V) == 1, 1.5, -6.0))
    one, _ = draws(logits, Entropix(thresholds=replace(ORIGINAL, draws=1)), POSITIONS)
    five, cases = draws(logits, Entropix(), POSITIONS)
    assert set(cases) == {"adaptive"}
    assert (five == 0).mean() > 0.85 > (one == 0).mean()


def test_log_probabilities_say_how_likely_the_best_of_the_draws_is() -> None:
    """Against all 3^5 outcomes of five draws; two of the three tokens are equally probable."""
    logits = np.where(np.arange(V) < 2, 2.0, np.where(np.arange(V) == 2, 1.0, -np.inf))
    found, trace = _sample(
        jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (len(POSITIONS), V)),
        jnp.zeros((len(POSITIONS), H, S)),
        settings_of([SamplingParams()] * len(POSITIONS), [5] * len(POSITIONS)),
        jnp.asarray(POSITIONS),
        jnp.zeros((len(POSITIONS), 64), jnp.int32),
        None,
        Entropix(replace(ORIGINAL, top_p=1.0), top=0),
    )
    assert {CASES[int(case)] for case in trace.case} == {"adaptive"}
    warm = np.exp(logits[:3] / float(trace.temperature[0]))
    warm /= warm.sum()
    expected = np.zeros(3)
    for outcome in product(range(3), repeat=5):
        best = max(outcome, key=lambda token: logits[token])  # the first of equals
        expected[best] += warm[list(outcome)].prod()
    assert set(found.token.tolist()) == {0, 1}
    for token, sampled, model in zip(found.token, found.sampled, trace.logprob, strict=True):
        assert float(sampled) == pytest.approx(np.log(expected[token]), abs=1e-5)
        assert float(model) == pytest.approx(2 - np.log(2 * np.e**2 + np.e), abs=1e-5)
