"""The entropix sampler: how sure the model is decides how the next token is drawn.

Two numbers of the logits (entropy and its variance) and four of the last layer's attention sort every token into one of
five cases, and each case draws in its own way. The mathematics is that of xjdr-alt/entropix as written in two published
versions; what its code did otherwise is corrected here (docs/entropix.md lists each point): attention statistics look
at the valid keys of one row's last query alone, top-p keeps the most probable tokens, min-p has an effect, noise is
fresh at every step, and each row of a batch decides for itself.

Entropies are in bits, varentropies in bits squared.

Dimension key: B rows, V vocabulary, H heads, S slots, N draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llamalab.llama.sampler import Drawn, Settings, draw, greedy, keep, report, shaped

Case: TypeAlias = Literal["LELV", "HELV", "LEHV", "HEHV", "adaptive"]
CASES: tuple[Case, ...] = ("LELV", "HELV", "LEHV", "HEHV", "adaptive")
"""Low or high entropy, low or high varentropy; in the order in which they are tested. The first that fits counts."""

CLARIFYING_TOKEN = 2564, b" ..."
"""Id and bytes in Llama 3's vocabulary of what entropix inserts where the model is evenly unsure."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """One published set of thresholds and coefficients. Hashable: static under `jax.jit`.

    Attributes:
        name: what the command line calls it.
        entropy: low, medium and high, bits.
        varentropy: low and high, bits squared.
        attention_entropy: low and high, bits; None: the cases do not look at it.
        attention_varentropy: low and high, bits squared; None: the cases do not look at it.
        temperature, top_k, top_p, min_p: what the cases start from.
        draws: tokens drawn in the adaptive case; the most probable of them is taken.
    """

    name: str
    entropy: tuple[float, float, float]
    varentropy: tuple[float, float]
    attention_entropy: tuple[float, float] | None
    attention_varentropy: tuple[float, float] | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    draws: int = 5


ORIGINAL = Thresholds(
    name="original",
    entropy=(0.1, 3.0, 5.0),
    varentropy=(0.1, 5.0),
    attention_entropy=None,
    attention_varentropy=None,
    temperature=0.666,
    top_k=27,
    top_p=0.90,
    min_p=0.03,
)
"""The quadrants of commit cceeb84 (October 2024), the version people mean."""

FRACTIONAL = Thresholds(
    name="fractional",
    entropy=(0.8, 1.7, 2.5),
    varentropy=(0.4, 1.2),
    attention_entropy=(1.0, 2.0),
    attention_varentropy=(0.3, 0.8),
    temperature=0.8,
    top_k=40,
    top_p=0.90,
    min_p=0.05,
)
"""Those of commit 9d41be6: all four attention tests must hold too, and the adaptive temperature follows the fraction
(1.2 H + 2) / H of the entropy H in nats."""

THRESHOLDS: Mapping[str, Thresholds] = {thresholds.name: thresholds for thresholds in (ORIGINAL, FRACTIONAL)}
"""The published sets by name."""


@dataclass(frozen=True, slots=True)
class Entropix:
    """Draw by entropy and attention. Hashable: static under `jax.jit`.

    The request's temperature, top-k, top-p and min-p have no effect: the cases set them. Its penalties, constraint and
    seed count.

    Attributes:
        thresholds: which published set.
        clarify: token inserted where entropy is high and varentropy low, unless it was the last one; None draws
            there with a raised temperature instead.
        top: see `llamalab.llama.sampler.Plain`.
    """

    thresholds: Thresholds = ORIGINAL
    clarify: int | None = None
    top: int | None = None


class Measures(NamedTuple):
    """What the cases look at, one number per row, (B,) float32.

    Attributes:
        entropy: of the next token, bits.
        varentropy: variance of the surprise -log2 p around it, bits squared.
        attention_entropy: of the last query over its valid keys, mean over the heads, bits.
        attention_varentropy: variance of that entropy over the heads, bits squared.
        agreement: mean distance |A - mean over heads of A| of the attention weights; 0 where all heads agree (so a
            distance: the name is entropix's).
        interaction: mean |score| over heads and valid keys.
    """

    entropy: Array
    varentropy: Array
    attention_entropy: Array
    attention_varentropy: Array
    agreement: Array
    interaction: Array


class Trace(NamedTuple):
    """What decided one token of each row: the measures, the number of the case in `CASES`, and the temperature."""

    measures: Measures
    case: Array
    temperature: Array


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """What decided one token.

    Attributes:
        token: its id.
        entropy, varentropy, attention_entropy, attention_varentropy, agreement, interaction: see `Measures`.
        case: which way of drawing it was.
        temperature: it was drawn with; 0 where it was not drawn.
    """

    token: int
    entropy: float
    varentropy: float
    attention_entropy: float
    attention_varentropy: float
    agreement: float
    interaction: float
    case: Case
    temperature: float


def sample_entropix(
    logits_BV: Array,
    scores_BHS: Array,
    settings: Settings,
    position_B: Array,
    ids_BS: Array,
    allowed_BV: Array | None,
    sampler: Entropix,
) -> tuple[Drawn, Trace]:
    """Draw the token at `position_B` of each row, each row in the case that its own measures say.

    Args:
        logits_BV: the model's, float32.
        scores_BHS: the last layer's scaled scores of each row's last query, float32; -inf where it sees no key.
        settings, position_B, ids_BS, allowed_BV: see `llamalab.llama.sampler.sample`.
        sampler: thresholds, clarifying token, what to report.
    """
    thresholds = sampler.thresholds
    measures = measure(logits_BV, scores_BHS)
    shaped_BV = shaped(logits_BV, settings, position_B, ids_BS, allowed_BV)
    last_B = jnp.take_along_axis(ids_BS, jnp.maximum(position_B - 1, 0)[:, None], axis=1)[:, 0]
    case_B = case_of(measures, thresholds)
    manner = manner_of(case_B, measures, thresholds)

    warm_BV = shaped_BV / manner.temperature[:, None]
    kept_BV = keep(warm_BV, manner.top_k, manner.top_p, manner.min_p, of_all=True)
    warm_BV = jnp.where(kept_BV, warm_BV, -jnp.inf)
    drawn_NB = jax.vmap(lambda keys_B2: draw(warm_BV, keys_B2))(_draw_keys(settings.key, position_B, thresholds.draws))
    # The published score adds the same bracket to every draw, so the best of them is the most probable one.
    chance_NB = jnp.take_along_axis(logits_BV, drawn_NB.T, axis=1).T
    best_B = jnp.take_along_axis(drawn_NB, jnp.argmax(chance_NB, axis=0)[None], axis=0)[0]

    adaptive_B = case_B == CASES.index("adaptive")
    flowing_B = case_B == CASES.index("LELV")
    token_B = jnp.where(flowing_B, greedy(shaped_BV), jnp.where(adaptive_B, best_B, drawn_NB[0]))
    fixed_B = flowing_B
    if sampler.clarify is not None:
        asks_B = (case_B == CASES.index("HELV")) & (last_B != sampler.clarify)
        if allowed_BV is not None:
            asks_B &= allowed_BV[:, sampler.clarify]
        token_B = jnp.where(asks_B, sampler.clarify, token_B)
        fixed_B |= asks_B
    drawn = report(token_B.astype(jnp.int32), logits_BV, warm_BV, fixed_B, sampler.top)
    return drawn, Trace(measures, case_B, jnp.where(fixed_B, 0.0, manner.temperature))


def measure(logits_BV: Array, scores_BHS: Array) -> Measures:
    """The six numbers of each row.

    Args:
        logits_BV: of the next token.
        scores_BHS: of the last query, -inf at keys that are not valid.
    """
    log_p_BV = jax.nn.log_softmax(logits_BV, axis=-1) / np.log(2)
    p_BV = jnp.exp2(log_p_BV)
    surprise_BV = jnp.where(p_BV > 0, -log_p_BV, 0.0)
    entropy_B = jnp.sum(p_BV * surprise_BV, axis=-1)
    varentropy_B = jnp.sum(p_BV * (surprise_BV - entropy_B[:, None]) ** 2, axis=-1)

    valid_BHS = scores_BHS > -jnp.inf
    log_A_BHS = jax.nn.log_softmax(scores_BHS, axis=-1) / np.log(2)
    A_BHS = jnp.exp2(log_A_BHS)
    head_entropy_BH = jnp.sum(jnp.where(A_BHS > 0, -A_BHS * log_A_BHS, 0.0), axis=-1)
    n_B = jnp.sum(valid_BHS, axis=(1, 2))
    distance_BHS = jnp.abs(A_BHS - jnp.mean(A_BHS, axis=1, keepdims=True))
    return Measures(
        entropy=entropy_B,
        varentropy=varentropy_B,
        attention_entropy=jnp.mean(head_entropy_BH, axis=-1),
        attention_varentropy=jnp.var(head_entropy_BH, axis=-1),
        agreement=jnp.sum(distance_BHS, axis=(1, 2)) / n_B,
        interaction=jnp.sum(jnp.where(valid_BHS, jnp.abs(scores_BHS), 0.0), axis=(1, 2)) / n_B,
    )


def case_of(measures: Measures, thresholds: Thresholds) -> Array:
    """Number of the first case in `CASES` whose tests all hold, (B,) int32."""
    entropy, varentropy = measures.entropy, measures.varentropy
    low, medium, high = thresholds.entropy
    calm, wild = varentropy < thresholds.varentropy[0], varentropy > thresholds.varentropy[1]
    tests = [(entropy < low) & calm, (entropy > high) & calm, (entropy < high) & wild, (entropy > medium) & wild]
    if thresholds.attention_entropy is not None and thresholds.attention_varentropy is not None:
        focused = measures.attention_entropy < thresholds.attention_entropy[0]
        spread = measures.attention_entropy > thresholds.attention_entropy[1]
        alike = measures.attention_varentropy < thresholds.attention_varentropy[0]
        apart = measures.attention_varentropy > thresholds.attention_varentropy[1]
        attention = [focused & alike, focused & alike, focused & apart, spread & apart]
        tests = [test & also for test, also in zip(tests, attention, strict=True)]
    numbers = [jnp.full(entropy.shape, number, jnp.int32) for number in range(len(tests))]
    return jnp.select(tests, numbers, default=jnp.int32(len(tests)))


class Manner(NamedTuple):
    """How one token of each row is drawn, (B,) each."""

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array


def manner_of(case_B: Array, measures: Measures, thresholds: Thresholds) -> Manner:
    """Temperature and truncations of each row's case. LELV draws nothing; its row holds the starting values."""
    base = Manner(
        jnp.full(case_B.shape, thresholds.temperature, jnp.float32),
        jnp.full(case_B.shape, thresholds.top_k, jnp.int32),
        jnp.full(case_B.shape, thresholds.top_p, jnp.float32),
        jnp.full(case_B.shape, thresholds.min_p, jnp.float32),
    )
    formulas = _fractional_manners if thresholds.attention_entropy is not None else _original_manners
    manners = (base, *formulas(base, measures, thresholds))
    return Manner(*(jnp.stack(column)[case_B, jnp.arange(case_B.shape[0])] for column in zip(*manners, strict=True)))


def _original_manners(base: Manner, m: Measures, t: Thresholds) -> tuple[Manner, Manner, Manner, Manner]:
    """HELV, LEHV, HEHV and adaptive of commit cceeb84."""
    unsure = m.entropy + m.varentropy
    helv = base._replace(temperature=jnp.minimum(1.5, t.temperature * (1.3 + 0.2 * m.attention_entropy)))
    lehv = base._replace(
        temperature=jnp.minimum(1.5, t.temperature * (1.2 + 0.3 * m.interaction)),
        top_k=jnp.maximum(5, (t.top_k * (1 + 0.5 * (1 - m.agreement))).astype(jnp.int32)),
    )
    hehv = base._replace(
        temperature=jnp.maximum(2.0, t.temperature * (2.0 + 0.5 * m.attention_varentropy)),
        top_p=jnp.maximum(0.5, t.top_p - 0.2 * m.attention_entropy),
    )
    attention = m.attention_entropy + m.attention_varentropy
    adaptive = Manner(
        temperature=t.temperature * (1 + 0.3 * unsure + 0.2 * attention - 0.2 * m.agreement),
        top_k=jnp.clip(jnp.round(t.top_k * (1 + 0.3 * m.interaction - 0.2 * m.agreement)), 1, 100).astype(jnp.int32),
        top_p=jnp.clip(t.top_p * (1 + 0.1 * m.attention_varentropy), 0.1, 1.0),
        min_p=jnp.clip(t.min_p * (1 - 0.5 * unsure), 0.01, 0.5),
    )
    return helv, lehv, hehv, adaptive


def _fractional_manners(base: Manner, m: Measures, t: Thresholds) -> tuple[Manner, Manner, Manner, Manner]:
    """HELV, LEHV, HEHV and adaptive of commit 9d41be6."""
    helv = base._replace(temperature=jnp.minimum(1.5, t.temperature * (0.2 + 0.3 * m.attention_entropy)))
    hehv = base._replace(
        temperature=jnp.minimum(2.0, t.temperature * (0.3 + 0.25 * m.attention_varentropy)),
        top_p=jnp.maximum(0.5, t.top_p - 0.3 * m.attention_entropy),
    )
    nats = m.entropy * np.log(2)
    adaptive = base._replace(
        temperature=jnp.clip(t.temperature * jnp.sqrt((1.2 * nats + 2.0) / (nats + 1e-6)), 0.1, 2.0),
        min_p=jnp.clip(t.min_p * (1 - 0.2 * m.varentropy), 0.01, 0.5),
    )
    return helv, base, hehv, adaptive


def token_trace(trace: Trace, token: int, at: tuple[int, ...]) -> TokenTrace:
    """One token of a trace whose arrays are on the host: `at` is its index in them."""
    measured = {name: float(values[at]) for name, values in trace.measures._asdict().items()}
    case = CASES[int(trace.case[at])]
    return TokenTrace(token=token, case=case, temperature=float(trace.temperature[at]), **measured)


def _draw_keys(key_B2: Array, position_B: Array, draws: int) -> Array:
    """A key for each draw of each row, (N, B, 2)."""
    at_B2 = jax.vmap(jax.random.fold_in)(key_B2, position_B)
    return jax.vmap(lambda number: jax.vmap(jax.random.fold_in, (0, None))(at_B2, number))(jnp.arange(draws))
