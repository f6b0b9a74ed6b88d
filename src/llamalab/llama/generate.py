"""Generation: prompts of different lengths in one batch, one step function for every loop.

`step` forwards each row's last token and draws the next one. The loop on the device (`run`) and its twin in Python
(`stream`) both call it, so they give equal tokens. `prefill` reads prompts into rows of a state, alone or while other
rows are in the middle of their responses.

Everything a row knows stands in `State`, as arrays: nothing recompiles for another prompt, length, seed or setting.
Prompts are padded to powers of two, so a handful of shapes serves all of them.

Dimension key: B rows of a state, b rows that are filled, T tokens, S slots, V vocabulary, N steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llamalab.engine import SamplingParams
from llamalab.errors import ContextOverflow, InputError
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.entropix import Entropix, Trace, sample_entropix
from llamalab.llama.model import xfmr
from llamalab.llama.products import COMPILER_OPTIONS
from llamalab.llama.sampler import sample
from llamalab.llama.state import Rows, Sampler, State, Steps, empty, into, new_rows
from llamalab.llama.weights import XfmrWeights

SMALLEST_BUCKET = 16
"""Tokens to which the shortest prompts are padded."""


def step(
    weights: XfmrWeights, config: LlamaConfig, sampler: Sampler, state: State, allowed_BV: Array | None = None
) -> State:
    """Forward the last token of each row and draw its next one.

    Args:
        weights: of the model.
        config: its shape.
        sampler: how tokens are drawn.
        state: the batch.
        allowed_BV: tokens that a constraint allows in this step; None: all.
    """
    rows = state.rows
    last_B = rows.length - 1
    tokens_B1 = jnp.take_along_axis(rows.ids, last_B[:, None], axis=1)
    first_B = jnp.zeros_like(last_B)
    looks = isinstance(sampler, Entropix)
    logits_BV, cache, scores = _forward(weights, config, looks, tokens_B1, last_B, state.cache, first_B)
    return State(cache, _advance(sampler, rows, logits_BV, scores, allowed_BV, state.stop_ids), state.stop_ids)


@partial(
    jax.jit,
    static_argnames=("config", "sampler", "most"),
    donate_argnames=("state",),
    compiler_options=COMPILER_OPTIONS,
)
def run(
    weights: XfmrWeights,
    config: LlamaConfig,
    sampler: Sampler,
    state: State,
    live_B: Array,
    steps: Array | int,
    allowed_BV: Array | None = None,
    *,
    most: int,
) -> tuple[State, Steps]:
    """Up to `steps` steps on the device, fewer if all rows end before.

    Args:
        weights, config, sampler: as for `step`.
        state: the batch; its memory is used again for the result.
        live_B: rows that go on; the others are done from now on, whatever `state` says.
        steps: how many, at most `most`. Not static: another number compiles nothing.
        allowed_BV: as for `step`; only sensible with a single step.
        most: room in the record; static.
    """
    state = state._replace(rows=state.rows._replace(done=state.rows.done | ~live_B))
    record = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), (state.rows.drawn, state.rows.trace))

    def going(carry: tuple[Array, State, Any]) -> Array:
        number, state, _ = carry
        return (number < steps) & ~jnp.all(state.rows.done)

    def body(carry: tuple[Array, State, Any]) -> tuple[Array, State, Any]:
        number, state, record = carry
        state = step(weights, config, sampler, state, allowed_BV)
        now = state.rows.drawn, state.rows.trace
        return number + 1, state, jax.tree.map(lambda all_NB, new_B: all_NB.at[number].set(new_B), record, now)

    taken, state, (drawn, trace) = jax.lax.while_loop(going, body, (jnp.int32(0), state, record))
    return state, Steps(drawn, trace, taken, state.rows.length, state.rows.done)


def stream(weights: XfmrWeights, config: LlamaConfig, sampler: Sampler, state: State) -> Iterator[State]:
    """The twin of `run` in Python: the state after each step, until all rows are done.

    Each state's arrays are used again for the next: take what you need before you ask on.
    """
    while not bool(jnp.all(state.rows.done)):
        state = _jitted_step(weights, config, sampler, state)
        yield state


def start(
    weights: XfmrWeights,
    config: LlamaConfig,
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    seeds: Sequence[int],
    *,
    slots: int,
    stop_ids: Sequence[int] = (),
    chunk: int = 512,
    dtype: Any = jnp.float32,
) -> State:
    """A batch with its prompts read and the first token of each response drawn.

    Args:
        weights, config, sampler: as for `step`.
        prompts: token ids, at least one each; of any lengths.
        params: of each row; `max_tokens=None` goes on until the slots are full.
        seeds: of each row.
        slots: tokens that prompt and response of one row may have together.
        stop_ids: tokens that end a row.
        chunk: most tokens computed at once; a power of two.
        dtype: of the cache.

    Raises:
        InputError: an empty prompt.
        ContextOverflow: a prompt that leaves no slot for a token.
    """
    for number, (prompt, wanted) in enumerate(zip(prompts, params, strict=True)):
        if not len(prompt):
            raise InputError(f"Prompt {number}: a prompt needs at least one token.")
        if len(prompt) + (wanted.max_tokens != 0) > slots:
            raise ContextOverflow(
                f"Prompt {number} has {len(prompt)} tokens, the cache {slots}, and the response needs at least one.",
                needed=len(prompt) + 1,
                available=slots,
            )
    cache = KVCache.new(config, len(prompts), slots, dtype)
    state = empty(config, sampler, len(prompts), slots, stop_ids, cache=cache)
    for number, prompt in enumerate(prompts):
        state = prefill(
            weights, config, sampler, state, [number], [prompt], [params[number]], [seeds[number]], chunk=chunk
        )
    return state


def prefill(
    weights: XfmrWeights,
    config: LlamaConfig,
    sampler: Sampler,
    state: State,
    where: Sequence[int],
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    seeds: Sequence[int],
    *,
    chunk: int = 512,
    allowed_bV: np.ndarray[Any, Any] | None = None,
) -> State:
    """Read prompts into rows of a batch and draw the first token of each response.

    The prompts are padded to one power of two and computed in chunks, with a cache of their own that is then copied
    into the batch: what they cost does not depend on how many slots the batch has.

    Args:
        weights, config, sampler: as for `step`.
        state: the batch; its memory is used again for the result.
        where: rows to fill; all different.
        prompts: one for each of them. Longer than `chunk` only if it is alone.
        params, seeds: as for `start`.
        chunk: most tokens of a prompt computed at once; a power of two.
        allowed_bV: tokens that a constraint allows for the first token; None: all.
    """
    slots = state.rows.ids.shape[1]
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    room = bucket(int(lengths.max()))
    if room > chunk and len(prompts) > 1:
        raise ValueError("prompts longer than a chunk are read one at a time")
    ids_bS = np.zeros((len(prompts), slots), np.int32)
    for row, prompt in zip(ids_bS, prompts, strict=True):
        row[: len(prompt)] = prompt
    padded_bT = np.zeros((len(prompts), room), np.int32)
    width = min(room, slots)
    padded_bT[:, :width] = ids_bS[:, :width]
    rows = new_rows(config, sampler, ids_bS, lengths, params, seeds, slots)
    part = KVCache.new(config, len(prompts), room, state.cache.k[0].dtype)
    at = 0
    while int(lengths.max()) - at > chunk:
        part = fill(weights, config, padded_bT[:, at : at + chunk], np.int32(at), part)
        at += chunk
    rest = bucket(int(lengths.max()) - at)
    last_b = lengths - 1 - at
    tokens_bT, looks = padded_bT[:, at : at + rest], isinstance(sampler, Entropix)
    logits_bV, part, scores = _read(weights, config, tokens_bT, np.int32(at), part, last_b, looks, slots, whole=not at)
    rows_at = np.asarray(where, np.int32)
    cache = _insert(state.cache, part, rows_at)
    rows = _admit(sampler, state.rows, rows, rows_at, logits_bV, scores, allowed_bV, state.stop_ids)
    return State(cache, rows, state.stop_ids)


@partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def fill(weights: XfmrWeights, config: LlamaConfig, tokens_bT: Array, cur_pos: Array, cache: KVCache) -> KVCache:
    """Keys and values of a chunk. No logits: what is not returned is not computed."""
    rows_b = jnp.zeros(tokens_bT.shape[0], jnp.int32)
    _, cache = xfmr(weights, config, tokens_bT, cur_pos, cache, rows_B=rows_b)
    return cache


def bucket(length: int) -> int:
    """The power of two to which so many tokens are padded."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


@partial(jax.jit, static_argnames=("config", "looks", "slots", "whole"), donate_argnames=("cache",))
def _read(
    weights: XfmrWeights,
    config: LlamaConfig,
    tokens_bT: Array,
    cur_pos: Array,
    cache: KVCache,
    last_b: Array,
    looks: bool,
    slots: int,
    *,
    whole: bool,
) -> tuple[Array, KVCache, Array | None]:
    """The last chunk of prompts, or `whole` ones: logits at their last tokens, and the scores where they are needed.

    The scores are padded to `slots`, so that what follows is the same program for prompts of every length.
    """
    logits_bV, cache, scores = _forward(weights, config, looks, tokens_bT, 0 if whole else cur_pos, cache, last_b)
    if scores is not None:
        scores = scores[..., :slots]
        scores = jnp.pad(scores, ((0, 0), (0, 0), (0, slots - scores.shape[-1])), constant_values=-jnp.inf)
    return logits_bV, cache, scores


@partial(jax.jit, donate_argnames=("cache",))
def _insert(cache: KVCache, part: KVCache, where_b: Array) -> KVCache:
    """Keys and values of some rows into the batch."""
    inserted: KVCache = jax.tree.map(partial(into, where_b), cache, part)
    return inserted


@partial(jax.jit, static_argnames=("sampler",), donate_argnames=("all_rows",))
def _admit(
    sampler: Sampler,
    all_rows: Rows,
    rows: Rows,
    where_b: Array,
    logits_bV: Array,
    scores_bHS: Array | None,
    allowed_bV: Array | None,
    stop_ids: Array,
) -> Rows:
    """The first token of some rows, and these rows into the batch."""
    rows = _advance(sampler, rows, logits_bV, scores_bHS, allowed_bV, stop_ids)
    admitted: Rows = jax.tree.map(partial(into, where_b), all_rows, rows)
    return admitted


_jitted_step = jax.jit(
    step, static_argnames=("config", "sampler"), donate_argnames=("state",), compiler_options=COMPILER_OPTIONS
)


def _forward(
    weights: XfmrWeights,
    config: LlamaConfig,
    looks: bool,
    tokens_BT: Array,
    cur_pos: Array | int,
    cache: KVCache,
    rows_B: Array,
) -> tuple[Array, KVCache, Array | None]:
    """Logits at one row of each sequence, and the attention scores there if somebody looks at them."""
    if looks:
        logits_BV, cache, scores_BHS = xfmr(weights, config, tokens_BT, cur_pos, cache, rows_B=rows_B, scores=True)
        return logits_BV, cache, scores_BHS
    logits_BV, cache = xfmr(weights, config, tokens_BT, cur_pos, cache, rows_B=rows_B)
    return logits_BV, cache, None


def _advance(
    sampler: Sampler,
    rows: Rows,
    logits_BV: Array,
    scores_BHS: Array | None,
    allowed_BV: Array | None,
    stop_ids: Array,
) -> Rows:
    """Draw a token for each row that is not done, and see whether it was the last."""
    trace: Trace | None = None
    if isinstance(sampler, Entropix):
        assert scores_BHS is not None
        drawn, trace = sample_entropix(logits_BV, scores_BHS, rows.settings, rows.length, rows.ids, allowed_BV, sampler)
    else:
        drawn = sample(logits_BV, rows.settings, rows.length, rows.ids, allowed_BV, sampler)
    slots_S = jnp.arange(rows.ids.shape[1])
    here_BS = (slots_S == rows.length[:, None]) & ~rows.done[:, None]
    ids_BS = jnp.where(here_BS, drawn.token[:, None], rows.ids)
    length_B = jnp.where(rows.done, rows.length, rows.length + 1)
    stopped_B = rows.stops & jnp.any(drawn.token[:, None] == stop_ids, axis=-1)
    done_B = rows.done | stopped_B | (length_B >= rows.limit)
    return rows._replace(ids=ids_BS, length=length_B, done=done_B, drawn=drawn, trace=trace)
