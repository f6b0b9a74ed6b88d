"""Generation: batches, loops, limits, and that nothing is compiled twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamalab.engine import SamplingParams
from llamalab.errors import ContextOverflow, InputError
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.entropix import Entropix
from llamalab.llama.entropix_cases import FRACTIONAL
from llamalab.llama.generate import bucket, prefill, run, start, stream
from llamalab.llama.model import xfmr
from llamalab.llama.sampler import Plain
from llamalab.llama.state import Sampler, State, Steps, empty
from tests.llama.compilations import compilations
from tests.llama.random_weights import random_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = LlamaConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, vocab_size=96, max_seq_len=128
)
WEIGHTS = jax.tree.map(jnp.asarray, random_weights(CONFIG, 3, embedding_scale=2.0))
SLOTS = 64
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 96, n).tolist() for n in (3, 21, 1, 30)]
PLAIN = Plain()
GREEDY = SamplingParams(temperature=0, max_tokens=12)
WARM = SamplingParams(temperature=1.3, top_p=0.95, min_p=0.02, max_tokens=12)


def begun(
    prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], sampler: Sampler = PLAIN, **more: Any
) -> State:
    seeds = more.pop("seeds", range(len(prompts)))
    more = {"stop_ids": [-1]} | more
    return start(WEIGHTS, CONFIG, sampler, prompts, params, list(seeds), slots=SLOTS, **more)


def ran(state: State, sampler: Sampler = PLAIN, steps: int = 16, live: np.ndarray | None = None) -> tuple[State, Steps]:
    alive = np.ones(state.rows.ids.shape[0], bool) if live is None else live
    return run(WEIGHTS, CONFIG, sampler, state, alive, steps, most=16)


def responses(state: State, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    ids, lengths = np.asarray(state.rows.ids), np.asarray(state.rows.length)
    return [ids[b, len(prompt) : lengths[b]].tolist() for b, prompt in enumerate(prompts)]


def by_definition(prompt: Sequence[int], count: int) -> list[int]:
    """Greedy tokens with no cache kept: the whole text anew for each."""
    ids = list(prompt)
    for _ in range(count):
        padded = jnp.asarray([ids + [0] * (SLOTS - len(ids))])
        logits, _ = _whole(padded)
        ids.append(int(np.asarray(logits)[0, len(ids) - 1].argmax()))
    return ids[len(prompt) :]


@jax.jit
def _whole(tokens: jax.Array) -> tuple[jax.Array, KVCache]:
    return xfmr(WEIGHTS, CONFIG, tokens, 0, KVCache.new(CONFIG, 1, SLOTS))


def test_greedy_tokens_are_those_of_full_forward_passes() -> None:
    state, _ = ran(begun(PROMPTS, [GREEDY] * 4))
    for found, prompt in zip(responses(state, PROMPTS), PROMPTS, strict=True):
        assert found == by_definition(prompt, 12)


def test_a_ragged_batch_gives_what_its_rows_give_alone() -> None:
    params = [GREEDY, WARM, replace(WARM, top_k=7), replace(GREEDY, repeat_penalty=1.5)]
    together = responses(ran(begun(PROMPTS, params))[0], PROMPTS)
    for number, (prompt, wanted) in enumerate(zip(PROMPTS, params, strict=True)):
        alone, _ = ran(begun([prompt], [wanted], seeds=[number]))
        assert responses(alone, [prompt]) == [together[number]]


@pytest.mark.parametrize("sampler", [Plain(top=3), Entropix(FRACTIONAL, clarify=5)])
def test_the_loop_on_the_device_and_its_twin_give_equal_tokens(sampler: Sampler) -> None:
    params = [GREEDY, WARM, replace(WARM, max_tokens=5), replace(WARM, frequency_penalty=0.5)]
    device, steps = ran(begun(PROMPTS, params, sampler), sampler)
    twin = begun(PROMPTS, params, sampler)
    drawn, count = [], 0
    for state in stream(WEIGHTS, CONFIG, sampler, twin):
        twin, count = state, count + 1
        drawn.append(np.asarray(state.rows.drawn.token))
    assert count == int(steps.taken) == 11
    assert responses(device, PROMPTS) == responses(twin, PROMPTS)
    assert [len(r) for r in responses(device, PROMPTS)] == [12, 12, 5, 12]
    np.testing.assert_array_equal(np.asarray(steps.drawn.token)[:count], drawn)


def test_the_loop_in_pieces_gives_the_same_as_in_one() -> None:
    whole, _ = ran(begun(PROMPTS, [WARM] * 4))
    pieces = begun(PROMPTS, [WARM] * 4)
    for steps in (1, 4, 2, 16):
        pieces, _ = ran(pieces, steps=steps)
    assert responses(pieces, PROMPTS) == responses(whole, PROMPTS)


def test_a_prompt_in_chunks_gives_what_it_gives_at_once() -> None:
    prompts = [*PROMPTS[:3], RNG.integers(0, 96, 50).tolist()]
    at_once, _ = ran(begun(prompts, [GREEDY] * 4))
    chunked, _ = ran(begun(prompts, [GREEDY] * 4, chunk=16))
    assert responses(chunked, prompts) == responses(at_once, prompts)


def test_a_row_is_filled_while_others_are_in_the_middle() -> None:
    """As a scheduler does it: two rows run, one of them ends and makes room, two prompts come together."""
    alone = responses(ran(begun(PROMPTS, [WARM] * 4))[0], PROMPTS)
    state = empty(CONFIG, Plain(), 4, SLOTS, [-1])
    state = prefill(WEIGHTS, CONFIG, Plain(), state, [2], [PROMPTS[1]], [WARM], [1])
    state, _ = ran(state, steps=4)
    state = prefill(WEIGHTS, CONFIG, Plain(), state, [1, 0], [PROMPTS[0], PROMPTS[2]], [WARM] * 2, [0, 2])
    state, _ = ran(state, steps=16)
    prompts = [PROMPTS[2], PROMPTS[0], PROMPTS[1]]  # the fourth row was never begun
    assert responses(state, prompts) == [alone[2], alone[0], alone[1]]


def test_stop_tokens_end_a_row_and_are_part_of_it() -> None:
    plain = responses(ran(begun(PROMPTS, [GREEDY] * 4))[0], PROMPTS)[0]
    stop = plain[4]
    params = [GREEDY, replace(GREEDY, ignore_eos=True)]
    same = [PROMPTS[0]] * 4
    state, _ = ran(begun(same, params * 2, stop_ids=[stop]))
    stopped, went_on, *_ = responses(state, same)
    assert stopped == plain[: plain.index(stop) + 1]
    assert went_on == plain


def test_rows_that_are_no_longer_wanted_stand_still() -> None:
    state, _ = ran(begun(PROMPTS, [GREEDY] * 4), steps=3)
    state, _ = ran(state, live=np.array([True, False, True, True]))
    assert [len(r) for r in responses(state, PROMPTS)] == [12, 4, 12, 12]


def test_a_row_ends_where_its_slots_end() -> None:
    prompts = [*PROMPTS[:3], RNG.integers(0, 96, SLOTS - 3).tolist()]
    state, _ = ran(begun(prompts, [SamplingParams(temperature=0)] * 4))
    assert responses(state, prompts)[3] == by_definition(prompts[3], 3)


def test_a_constraint_is_kept_to() -> None:
    """Only odd tokens allowed, in the prefill and in a step; beside it a row without constraint."""
    allowed = np.ones((4, 96), bool)
    allowed[0] = np.arange(96) % 2 == 1
    state = empty(CONFIG, Plain(), 4, SLOTS, [-1])
    state = prefill(
        WEIGHTS, CONFIG, Plain(), state, [0, 1], [PROMPTS[0]] * 2, [WARM] * 2, [4, 4], allowed_bV=allowed[:2]
    )
    for _ in range(6):
        state, _ = run(WEIGHTS, CONFIG, Plain(), state, np.ones(4, bool), 1, allowed, most=16)
    odd, free = responses(state, [PROMPTS[0]] * 2)
    assert len(odd) == 7
    assert all(token % 2 for token in odd)
    assert not all(token % 2 for token in free)


def test_what_does_not_fit_is_refused_beforehand() -> None:
    with pytest.raises(ContextOverflow, match="Prompt 1 has 64 tokens, the cache 64") as caught:
        begun([PROMPTS[0], [1] * SLOTS], [GREEDY] * 2)
    assert (caught.value.needed, caught.value.available) == (65, 64)
    with pytest.raises(InputError, match="Prompt 0"):
        begun([[]], [GREEDY])


def test_after_warm_up_nothing_is_compiled() -> None:
    """Other prompts, lengths within the bucket, seeds, settings and numbers of steps: all of it is data."""

    def once(lengths: Sequence[int], params: SamplingParams, steps: int, seed: int) -> None:
        state = empty(CONFIG, Plain(), 4, SLOTS, [-1])
        for row, length in enumerate(lengths):
            prompt = np.random.default_rng(seed).integers(0, 96, length).tolist()
            state = prefill(WEIGHTS, CONFIG, Plain(), state, [row], [prompt], [params], [seed + row])
        state, _ = ran(state, steps=steps)
        jax.block_until_ready(state)

    once([3, 20], GREEDY, 4, 0)
    with compilations() as seen:
        once([16, 32], replace(WARM, top_k=5, repeat_penalty=1.2), 9, 7)
        once([1, 17], SamplingParams(max_tokens=3, seed=3), 16, 8)
    assert seen == []
    with compilations() as seen:
        jax.jit(lambda x: x - 1)(np.ones(7)).block_until_ready()
    assert seen != []  # the counter does count


def test_buckets_are_powers_of_two() -> None:
    assert [bucket(n) for n in (1, 16, 17, 64, 65, 512)] == [16, 16, 32, 64, 128, 512]
