"""Drawing the next token of each row of logits, by the same settings as the llama.cpp engine.

The order is llama.cpp's: constraint, penalties, top-k, top-p, min-p, temperature, draw. So the truncations look at the
distribution before temperature. Everything here is a pure function of arrays: settings are data, one number per row, so
that rows of different settings share one compiled step.

Dimension key: B rows, V vocabulary, S slots of a row's history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llamalab.engine import SamplingParams


@dataclass(frozen=True, slots=True)
class Plain:
    """Draw as the request's `SamplingParams` say. Hashable: static under `jax.jit`.

    Attributes:
        top: how many of the most probable tokens to report with each draw; None reports no log probabilities at all.
    """

    top: int | None = None


class Settings(NamedTuple):
    """`SamplingParams` of B rows, each field an array (B,); `key` holds each row's random key, (B, 2) uint32."""

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    repeat_penalty: Array
    frequency_penalty: Array
    presence_penalty: Array
    penalty_last_n: Array
    key: Array


class Drawn(NamedTuple):
    """One token per row and what is to be said of it.

    Attributes:
        token: (B,) int32.
        raw: (B,) log softmax of the model's logits at the token, nats; 0 where not asked for.
        sampled: (B,) under the distribution it was drawn from, nats; 0 where drawn greedily or not asked for.
        top_ids: (B, n) the most probable tokens by the model's logits, best first.
        top_logprobs: (B, n) theirs, nats.
    """

    token: Array
    raw: Array
    sampled: Array
    top_ids: Array
    top_logprobs: Array


def settings_of(params: Sequence[SamplingParams], seeds: Sequence[int]) -> Settings:
    """One row of settings for each request, on the host.

    Args:
        params: of each request; its own `seed` is not looked at.
        seeds: from 0 to 2**32 - 1, one per request.
    """

    def numbers(name: str, dtype: type = np.float32) -> Array:
        return jnp.asarray(np.array([getattr(p, name) for p in params], dtype))

    keys = np.array([[0, seed] for seed in seeds], np.uint32).reshape(-1, 2)
    return Settings(
        temperature=numbers("temperature"),
        top_k=numbers("top_k", np.int32),
        top_p=numbers("top_p"),
        min_p=numbers("min_p"),
        repeat_penalty=numbers("repeat_penalty"),
        frequency_penalty=numbers("frequency_penalty"),
        presence_penalty=numbers("presence_penalty"),
        penalty_last_n=numbers("penalty_last_n", np.int32),
        key=jnp.asarray(keys),
    )


def sample(
    logits_BV: Array, settings: Settings, position_B: Array, ids_BS: Array, allowed_BV: Array | None, sampler: Plain
) -> Drawn:
    """Draw the token at `position_B` of each row.

    Args:
        logits_BV: the model's, float32.
        settings: of the rows.
        position_B: where the token will stand; with the row's key it decides the noise, so a row draws the same
            whatever stands beside it.
        ids_BS: each row's tokens so far, for the penalties.
        allowed_BV: tokens that a constraint allows; None: all.
        sampler: what to report.
    """
    shaped_BV = shaped(logits_BV, settings, position_B, ids_BS, allowed_BV)
    kept_BV = jnp.where(keep(shaped_BV, settings.top_k, settings.top_p, settings.min_p), shaped_BV, -jnp.inf)
    greedy_B = settings.temperature == 0
    warm_BV = warmed(kept_BV, jnp.where(greedy_B, 1.0, settings.temperature))
    keys_B2 = jax.vmap(jax.random.fold_in)(settings.key, position_B)
    token_B = jax.lax.cond(
        jnp.all(greedy_B),
        lambda: greedy(shaped_BV),
        lambda: jnp.where(greedy_B, greedy(shaped_BV), draw(warm_BV, keys_B2)),
    )
    return report(token_B, logits_BV, warm_BV, greedy_B, sampler.top)


def shaped(logits_BV: Array, settings: Settings, position_B: Array, ids_BS: Array, allowed_BV: Array | None) -> Array:
    """Logits under constraint and penalties: what truncation and temperature begin with."""
    if allowed_BV is not None:
        logits_BV = jnp.where(allowed_BV, logits_BV, -jnp.inf)
    penalised_B = (
        (settings.repeat_penalty != 1) | (settings.frequency_penalty != 0) | (settings.presence_penalty != 0)
    ) & (settings.penalty_last_n != 0)
    penalised_BV: Array = jax.lax.cond(
        jnp.any(penalised_B),
        lambda: penalise(logits_BV, recent_counts(ids_BS, position_B, settings.penalty_last_n, logits_BV), settings),
        lambda: logits_BV,
    )
    return penalised_BV


def greedy(logits_BV: Array) -> Array:
    """The most probable token of each row, (B,) int32; of equals the lowest id."""
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def warmed(logits_BV: Array, temperature_B: Array) -> Array:
    """Logits over temperature, shifted so that the best is 0: the smallest temperature overflows nothing."""
    shifted_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    return shifted_BV / jnp.maximum(temperature_B, np.finfo(np.float32).tiny)[:, None]


def draw(logits_BV: Array, keys_B2: Array) -> Array:
    """One token per row from softmax(logits), (B,) int32.

    Source: the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, section 2).
    """
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[-1:], jnp.float32))(keys_B2)
    return greedy(logits_BV + noise_BV)


def keep(logits_BV: Array, top_k_B: Array, top_p_B: Array, min_p_B: Array, *, of_all: bool = False) -> Array:
    """Which tokens the truncations leave, (B, V) bool: of equally probable ones those of the lowest ids.

    Args:
        logits_BV: -inf for what is excluded already.
        top_k_B: keep the k most probable tokens; 0 keeps all.
        top_p_B: of these keep the smallest set, most probable first, whose mass reaches p; 1 keeps all.
        min_p_B: of these keep tokens at least this fraction as probable as the best; 0 keeps all.
        of_all: the mass that top-p counts is that of the whole distribution, not of the k tokens left.

    Returns:
        At least one token per row. A set that contains a token contains every more probable one.

    Source: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p).
    """
    V = logits_BV.shape[-1]
    cut = jnp.any((top_k_B > 0) & (top_k_B < V)) | jnp.any(top_p_B < 1)
    kept_BV: Array = jax.lax.cond(
        cut,
        lambda: _most_probable(logits_BV, top_k_B, top_p_B, of_all=of_all),
        lambda: jnp.ones(logits_BV.shape, bool),
    )
    best_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    probable_BV = logits_BV >= best_B1 + jnp.log(min_p_B)[:, None]
    left_BV: Array = kept_BV & (probable_BV | (min_p_B <= 0)[:, None]) & (logits_BV > -jnp.inf)
    return left_BV


def penalise(logits_BV: Array, counts_BV: Array, settings: Settings) -> Array:
    """Logits with the penalties of recent tokens.

    Args:
        logits_BV: of the model.
        counts_BV: how often each token occurred among the recent ones.
        settings: `repeat_penalty` divides positive and multiplies negative logits (Keskar et al. 2019, section 4.1);
            `frequency_penalty` is taken off per occurrence, `presence_penalty` once.
    """
    repeat_B1 = settings.repeat_penalty[:, None]
    scaled_BV = jnp.where(logits_BV > 0, logits_BV / repeat_B1, logits_BV * repeat_B1)
    lowered_BV = scaled_BV - counts_BV * settings.frequency_penalty[:, None] - settings.presence_penalty[:, None]
    return jnp.where(counts_BV > 0, lowered_BV, logits_BV)


def recent_counts(ids_BS: Array, length_B: Array, last_n_B: Array, like_BV: Array) -> Array:
    """How often each token occurs among the last n of the first `length_B` ids of a row, (B, V) float32.

    A negative n looks at all of them.
    """
    slots_S = jnp.arange(ids_BS.shape[1])
    first_B = jnp.where(last_n_B < 0, 0, length_B - last_n_B)
    recent_BS = (slots_S < length_B[:, None]) & (slots_S >= first_B[:, None])
    rows_B1 = jnp.arange(ids_BS.shape[0])[:, None]
    return jnp.zeros(like_BV.shape, jnp.float32).at[rows_B1, ids_BS].add(recent_BS.astype(jnp.float32))


def report(token_B: Array, logits_BV: Array, drawn_from_BV: Array, greedy_B: Array, top: int | None) -> Drawn:
    """The draw with its log probabilities, as far as they are asked for.

    Args:
        token_B: what was drawn.
        logits_BV: the model's own.
        drawn_from_BV: logits of the distribution it was drawn from.
        greedy_B: rows where nothing was drawn, but the best taken.
        top: see `Plain`.
    """
    B = token_B.shape[0]
    if top is None:
        none_B, none_B0 = jnp.zeros(B), jnp.zeros((B, 0))
        return Drawn(token_B, none_B, none_B, none_B0.astype(jnp.int32), none_B0)
    raw_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    at_B1 = token_B[:, None]
    raw_B = jnp.take_along_axis(raw_BV, at_B1, axis=-1)[:, 0]
    sampled_B = jnp.take_along_axis(jax.nn.log_softmax(drawn_from_BV, axis=-1), at_B1, axis=-1)[:, 0]
    top_logprobs, top_ids = jax.lax.top_k(raw_BV, min(top, raw_BV.shape[-1]))
    return Drawn(token_B, raw_B, jnp.where(greedy_B, 0.0, sampled_B), top_ids, top_logprobs)


def _most_probable(logits_BV: Array, top_k_B: Array, top_p_B: Array, *, of_all: bool) -> Array:
    """What top-k and top-p leave, by one sort.

    Both keep a prefix of the tokens in falling order. So the last one kept says it all, and no mask has to travel back
    through the permutation.
    """
    V = logits_BV.shape[-1]
    ids_BV = jnp.broadcast_to(jnp.arange(V), logits_BV.shape)
    negated_BV, order_BV = jax.lax.sort((-logits_BV, ids_BV), num_keys=1, is_stable=True)
    sorted_BV = -negated_BV
    k_B1 = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, V), V)[:, None]
    among_BV = jnp.arange(V) < k_B1
    mass_BV = jax.nn.softmax(sorted_BV if of_all else jnp.where(among_BV, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(mass_BV, axis=-1) - mass_BV
    kept_BV = among_BV & ((before_BV < top_p_B[:, None]) | (top_p_B >= 1)[:, None])
    last_B1 = jnp.maximum(jnp.sum(kept_BV, axis=-1, keepdims=True), 1) - 1
    value_B1 = jnp.take_along_axis(sorted_BV, last_B1, axis=-1)
    id_B1 = jnp.take_along_axis(order_BV, last_B1, axis=-1)
    return (logits_BV > value_B1) | ((logits_BV == value_B1) & (jnp.arange(V) <= id_B1))
