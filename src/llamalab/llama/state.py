"""A batch in progress: what is known of each row, as arrays.

Dimension key: B rows, b rows that are filled, S slots, N steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llamalab.engine import SamplingParams
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.entropix import Entropix, Trace
from llamalab.llama.entropix_cases import Measures
from llamalab.llama.sampler import Drawn, Plain, Settings, settings_of

Sampler: TypeAlias = Plain | Entropix


class Rows(NamedTuple):
    """What is known of each row but its keys and values.

    Attributes:
        ids: (B, S) prompt and response.
        length: (B,) how many of them there are; at least 1.
        limit: (B,) the length at which a row ends.
        stops: (B,) whether a stop token ends it.
        done: (B,) it has ended, or was never begun: steps leave it as it is.
        settings: how its tokens are drawn.
        drawn: its last token.
        trace: what decided that token; None without the entropix sampler.
    """

    ids: Array
    length: Array
    limit: Array
    stops: Array
    done: Array
    settings: Settings
    drawn: Drawn
    trace: Trace | None


class State(NamedTuple):
    """A batch in progress. `cache` holds the keys and values of all but each row's last token."""

    cache: KVCache
    rows: Rows
    stop_ids: Array


class Steps(NamedTuple):
    """What up to N steps drew: the fields of `Drawn` and `Trace` with a leading axis N, and how many steps were taken.

    Row b has `length` tokens after them; the draws of the steps in which it was done mean nothing.
    """

    drawn: Drawn
    trace: Trace | None
    taken: Array
    length: Array
    done: Array


def empty(
    config: LlamaConfig,
    sampler: Sampler,
    batch: int,
    slots: int,
    stop_ids: Sequence[int] = (),
    *,
    cache: KVCache | None = None,
) -> State:
    """A batch in which no row has begun; `cache` says where its keys and values lie, by default a float32 one."""
    if cache is None:
        cache = KVCache.new(config, batch, slots)
    ids_BS = np.zeros((batch, slots), np.int32)
    rows = new_rows(config, sampler, ids_BS, np.ones(batch, np.int32), [SamplingParams()] * batch, [0] * batch, slots)
    rows = rows._replace(done=jnp.ones(batch, bool))
    return State(cache, rows, jnp.asarray(np.array(sorted(stop_ids), np.int32)))


def new_rows(
    config: LlamaConfig,
    sampler: Sampler,
    ids_BS: np.ndarray[Any, Any],
    lengths: np.ndarray[Any, Any],
    params: Sequence[SamplingParams],
    seeds: Sequence[int],
    slots: int,
) -> Rows:
    """Rows before their first draw.

    Args:
        config: of the model.
        sampler: how their tokens are drawn.
        ids_BS: their prompts.
        lengths: of the prompts, (B,).
        params: of each; `max_tokens=None` goes on until the slots are full.
        seeds: of each.
        slots: tokens that prompt and response of one row may have together.
    """
    B = len(lengths)
    limits = [
        slots if p.max_tokens is None else min(slots, int(n) + p.max_tokens)
        for n, p in zip(lengths, params, strict=True)
    ]
    trace: Trace | None = None
    if isinstance(sampler, Entropix):
        measures = Measures(*(_zeros(B) for _ in Measures._fields))
        trace = Trace(measures, case=_zeros(B, dtype=jnp.int32), temperature=_zeros(B), logprob=_zeros(B))
    return Rows(
        ids=jnp.asarray(ids_BS),
        length=jnp.asarray(lengths),
        limit=jnp.asarray(np.array(limits, np.int32)),
        stops=jnp.asarray(np.array([not p.ignore_eos for p in params])),
        done=jnp.asarray(lengths >= np.array(limits)),
        settings=settings_of(params, seeds),
        drawn=new_drawn(config, sampler, B),
        trace=trace,
    )


def new_drawn(config: LlamaConfig, sampler: Sampler, batch: int) -> Drawn:
    """Nothing drawn yet, in the shape of what `sampler` reports."""
    top = 0 if sampler.top is None else min(sampler.top, config.vocab_size)
    return Drawn(
        token=_zeros(batch, dtype=jnp.int32),
        raw=_zeros(batch),
        sampled=_zeros(batch),
        top_ids=_zeros(batch, top, dtype=jnp.int32),
        top_logprobs=_zeros(batch, top),
    )


def into(where_b: Array, all_B: Array, new_b: Array) -> Array:
    """Rows of one array into another's, one by one in place; what does not fit behind the last slot is left out."""
    new_b = new_b[tuple(slice(size) for size in (new_b.shape[0], *all_B.shape[1:]))]
    for number in range(new_b.shape[0]):
        at = [where_b[number], *(jnp.int32(0) for _ in all_B.shape[1:])]
        all_B = jax.lax.dynamic_update_slice(all_B, new_b[number : number + 1].astype(all_B.dtype), at)
    return all_B


def _zeros(*shape: int, dtype: Any = jnp.float32) -> Array:
    """An array of its own each time: one that stands in two places cannot be donated."""
    return jnp.zeros(shape, dtype)
