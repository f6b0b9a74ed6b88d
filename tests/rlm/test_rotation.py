"""Turns by weight: exact while all can be asked, whatever was in between."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.errors import InputError
from llamalab.rlm.rotation import Rotation

weights_of = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def all_of(weights: list[int]) -> list[int]:
    return list(range(len(weights)))


def test_three_to_one_is_three_hundred_and_one_hundred() -> None:
    rotation = Rotation([3, 1])
    assert Counter(rotation.pick([0, 1]) for _ in range(400)) == {0: 300, 1: 100}


def test_five_three_one_is_exact_in_every_window_of_nine() -> None:
    rotation = Rotation([5, 3, 1])
    turns = [rotation.pick([0, 1, 2]) for _ in range(90)]
    assert all(Counter(turns[at : at + 9]) == {0: 5, 1: 3, 2: 1} for at in range(82))


def test_the_order_is_that_of_nginx() -> None:
    """The example of the commit that brought it to nginx: weights 5, 1, 1."""
    rotation = Rotation([5, 1, 1])
    assert [rotation.pick([0, 1, 2]) for _ in range(7)] == [0, 0, 1, 0, 2, 0, 0]


@given(weights_of, st.integers(0, 2**32))
def test_every_window_of_undisturbed_turns_is_exact_whatever_was_in_between(weights: list[int], seed: int) -> None:
    rotation, everybody, turns = Rotation(weights), all_of(weights), []
    random = Random(seed)
    for _ in range(3 * sum(weights)):
        some = [each for each in everybody if random.random() < 0.5]
        if some and some != everybody:
            assert rotation.pick(some) in some
        elif some:
            rotation.undo(everybody, rotation.pick(everybody))
        turns.append(rotation.pick(everybody))
    window, expected = sum(weights), dict(enumerate(weights))
    assert all(Counter(turns[at : at + window]) == expected for at in range(len(turns) - window + 1))


@given(weights_of, st.integers(0, 20))
def test_a_state_goes_on_where_it_was_taken(weights: list[int], before: int) -> None:
    first, everybody = Rotation(weights), all_of(weights)
    for _ in range(before):
        first.pick(everybody)
    second = Rotation(weights)
    second.restore(json.loads(json.dumps(first.state)))
    assert [first.pick(everybody) for _ in range(20)] == [second.pick(everybody) for _ in range(20)]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"weights": [3, 2], "credits": {}},
        {"weights": [3, 1], "credits": {"0,1": [1]}},
        {"weights": [3, 1], "credits": {"0,7": [1, 2]}},
        {"weights": [3, 1], "credits": {"": [1]}},
        {"weights": [3, 1], "credits": []},
        {"weights": 3, "credits": {}},
    ],
)
def test_a_state_of_something_else_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Rotation([3, 1]).restore(state)
