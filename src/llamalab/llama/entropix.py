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

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llamalab.llama.entropix_cases import CASES, ORIGINAL, Case, Measures, Thresholds, case_of, manner_of
from llamalab.llama.sampler import Drawn, Settings, draw, greedy, keep, report, shaped

CLARIFYING_TOKEN = 2564, b" ..."
"""Id and bytes in Llama 3's vocabulary of what entropix inserts where the model is evenly unsure."""


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


class Trace(NamedTuple):
    """What decided one token of each row, (B,) each.

    Attributes:
        measures: what the cases look at.
        case: its number in `CASES`.
        temperature: it was drawn with; 0 where it was not drawn.
        logprob: of the token under the model's own distribution, nats.
    """

    measures: Measures
    case: Array
    temperature: Array
    logprob: Array


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """What decided one token.

    Attributes:
        token: its id.
        entropy, varentropy, attention_entropy, attention_varentropy, agreement, interaction: see `Measures`.
        case: which way of drawing it was.
        temperature: it was drawn with; 0 where it was not drawn.
        logprob: of the token under the model's own distribution, nats.
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
    logprob: float


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
    token_B = token_B.astype(jnp.int32)
    drawn = report(token_B, logits_BV, warm_BV, fixed_B, sampler.top)
    if sampler.top is not None:
        more_B = _log_gain(token_B, logits_BV, jax.nn.softmax(warm_BV, axis=-1), thresholds.draws)
        drawn = drawn._replace(sampled=drawn.sampled + jnp.where(adaptive_B & ~fixed_B, more_B, 0.0))
    logprob_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BV, axis=-1), token_B[:, None], axis=1)[:, 0]
    return drawn, Trace(measures, case_B, jnp.where(fixed_B, 0.0, manner.temperature), logprob_B)


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


def token_trace(trace: Trace, token: int, at: tuple[int, ...]) -> TokenTrace:
    """One token of a trace whose arrays are on the host: `at` is its index in them."""
    measured = {name: float(values[at]) for name, values in trace.measures._asdict().items()}
    return TokenTrace(
        token=token,
        case=CASES[int(trace.case[at])],
        temperature=float(trace.temperature[at]),
        logprob=float(trace.logprob[at]),
        **measured,
    )


def _draw_keys(key_B2: Array, position_B: Array, draws: int) -> Array:
    """A key for each draw of each row, (N, B, 2)."""
    at_B2 = jax.vmap(jax.random.fold_in)(key_B2, position_B)
    return jax.vmap(lambda number: jax.vmap(jax.random.fold_in, (0, None))(at_B2, number))(jnp.arange(draws))


def _log_gain(token_B: Array, logits_BV: Array, p_BV: Array, draws: int) -> Array:
    """How much likelier a token is as the best of n draws than as a single one, nats, (B,).

    With A the mass of the tokens no more probable than it and C that of those less probable, the best of n draws is
    the token with probability p (A^n - C^n) / (A - C) = p (A^(n-1) + A^(n-2) C + ... + C^(n-1)).

    Args:
        token_B: the best of the draws.
        logits_BV: what "probable" is meant by.
        p_BV: the distribution of one draw.
        draws: n.
    """
    at_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)
    no_more_B = jnp.sum(jnp.where(logits_BV <= at_B1, p_BV, 0.0), axis=1)
    less_B = jnp.sum(jnp.where(logits_BV < at_B1, p_BV, 0.0), axis=1)
    powers = [no_more_B ** (draws - 1 - number) * less_B**number for number in range(draws)]
    return jnp.log(sum(powers[1:], start=powers[0]))
