"""The budget of a tree of runs: what is used and what is reserved never goes beyond it."""

from __future__ import annotations

import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.engine import Usage
from llamalab.errors import BudgetExceeded
from llamalab.rlm.budget import Budget, Limits, Spent

NONE = Limits(None, None, None, None, None, None)


def limited(**limits: float) -> Budget:
    return Budget(Limits(**{"max_iterations": None, "max_sub_calls": None, **limits}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("role", "name"), [("root", "max_iterations"), ("sub", "max_sub_calls")])
def test_calls_are_counted_by_role(role: str, name: str) -> None:
    budget = limited(**{name: 2})
    for _ in range(2):
        budget.reserve(1, role=role).settle(Usage())  # type: ignore[arg-type]
    with pytest.raises(BudgetExceeded, match=rf"All 2 .*\({name}\)") as caught:
        budget.reserve(1, role=role)  # type: ignore[arg-type]
    assert caught.value.limit == name
    budget.reserve(1, role="sub" if role == "root" else "root")


def test_what_is_reserved_counts_until_it_is_settled() -> None:
    budget = limited(max_tokens=100)
    held = budget.reserve(80)
    with pytest.raises(BudgetExceeded, match=r"0 of 100 are used, 80 are reserved.*\(max_tokens\)"):
        budget.reserve(30)
    held.settle(Usage(fresh=30, cached=10, output=20, reasoning=5))
    assert budget.spent.tokens == 60
    assert budget.tokens_left == 40
    budget.reserve(40)


def test_money_is_held_like_tokens() -> None:
    budget = limited(max_cost=0.3)
    for _ in range(3):
        budget.reserve(5, 0.1 - 1e-12).settle(Usage(fresh=5), 0.1 - 1e-12)
    with pytest.raises(BudgetExceeded) as caught:
        budget.reserve(5, 0.001)
    assert caught.value.limit == "max_cost"


def test_time_is_up_when_it_is_up() -> None:
    now = [100.0]
    budget = Budget(Limits(max_seconds=5), clock=lambda: now[0])
    budget.reserve(1).settle(Usage())
    now[0] = 105.0
    with pytest.raises(BudgetExceeded, match="5 seconds are over") as caught:
        budget.reserve(1)
    assert (caught.value.limit, budget.deadline) == ("max_seconds", 105.0)


def test_a_lost_call_is_charged_in_full() -> None:
    budget = limited(max_tokens=100)
    with pytest.raises(KeyboardInterrupt), budget.reserve(70, 0.5, "sub"):
        raise KeyboardInterrupt
    assert (budget.spent.tokens, budget.spent.cost, budget.spent.sub_calls) == (70, 0.5, 1)


def test_a_call_that_was_never_made_costs_nothing() -> None:
    budget = limited(max_tokens=100)
    with budget.reserve(70, 0.5, "sub") as held:
        held.release()
    assert (budget.spent.tokens, budget.spent.cost, budget.spent.sub_calls) == (0, 0.0, 0)


def test_only_the_first_settlement_counts() -> None:
    budget = limited(max_tokens=100)
    held = budget.reserve(70)
    held.settle(Usage(output=3))
    held.settle(Usage(output=3))
    held.release()
    assert (budget.spent.tokens, budget.tokens_left) == (3, 97)


def test_depth_is_of_the_branch_and_everything_else_of_the_tree() -> None:
    budget = Budget(Limits(max_depth=2, max_tokens=100))
    inner = budget.nested().nested()
    assert (inner.depth, inner.may_nest, budget.depth, budget.may_nest) == (2, False, 0, True)
    with pytest.raises(BudgetExceeded, match=r"nested 3 deep.*max_depth is 2") as caught:
        inner.nested()
    assert caught.value.limit == "max_depth"
    inner.reserve(60).settle(Usage(fresh=60))
    assert budget.tokens_left == 40


def test_a_run_goes_on_with_what_it_had_used() -> None:
    first = limited(max_tokens=100, max_iterations=3)
    first.reserve(60).settle(Usage(fresh=50, output=10), 0.25)
    first.charge("sub", Usage(fresh=5))
    second = Budget(first.limits, spent=first.spent)
    assert (second.tokens_left, second.iterations_left, second.spent.cost) == (35, 2, 0.25)
    assert second.spent.usage == {"root": Usage(50, 0, 10), "sub": Usage(5)}


def test_waiting_ends_when_others_have_used_less_than_they_might() -> None:
    budget = limited(max_tokens=100)
    held = budget.reserve(90, wait=True)
    threading.Timer(0.05, held.settle, [Usage(output=20)]).start()
    budget.reserve(80, wait=True).settle(Usage(output=80))
    assert budget.spent.tokens == 100


def test_nobody_waits_for_what_cannot_fit() -> None:
    budget = limited(max_tokens=100)
    budget.reserve(50, wait=True)
    with pytest.raises(BudgetExceeded):
        budget.reserve(101, wait=True)


def test_what_is_kept_for_the_answer_is_refused_to_others_and_not_waited_for() -> None:
    budget = limited(max_tokens=100, max_cost=1.0)
    others = budget.keeping(50, 0.5)
    held = others.reserve(40, wait=True)
    with pytest.raises(BudgetExceeded):
        others.reserve(60, wait=True)
    with pytest.raises(BudgetExceeded):
        others.reserve(1, 0.6, wait=True)
    assert (others.tokens_left, others.cost_left, budget.tokens_left) == (10, 0.5, 60)
    held.settle(Usage(output=40))
    budget.reserve(60, 1.0)


@pytest.mark.parametrize("why", ["deadline", "cancel"])
def test_waiting_has_an_end(why: str) -> None:
    budget, cancel = limited(max_tokens=100), threading.Event()
    budget.reserve(90, wait=True)
    if why == "cancel":
        cancel.set()
    deadline = time.monotonic() + (60 if why == "cancel" else 0.02)
    with pytest.raises(BudgetExceeded):
        budget.reserve(80, wait=True, cancel=cancel, deadline=deadline)


def test_parallel_calls_cannot_overshoot_together() -> None:
    """Sixteen threads, each call using anything up to what it reserved."""
    budget = limited(max_tokens=2000, max_cost=3.0, max_sub_calls=150)
    seen, errors = [], []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        try:
            while True:
                need = draw.randint(1, 60)
                with budget.reserve(need, need / 500, "sub", wait=draw.random() < 0.5) as held:
                    time.sleep(draw.random() / 2000)
                    used = draw.randint(0, need)
                    held.settle(Usage(output=used), used / 500)
                seen.append(budget.spent)
        except BudgetExceeded as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 16
    assert len(seen) > 50
    assert max(each.tokens for each in seen) <= 2000
    assert max(each.cost for each in seen) <= 3.0 + 1e-9
    assert budget.spent.sub_calls <= 150


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=30), st.integers(0, 300))
def test_no_order_of_reservations_goes_beyond_the_limit(calls: list[tuple[int, int]], limit: int) -> None:
    budget, open_, reserved, used = limited(max_tokens=limit), [], 0, 0
    for need, take in calls:
        try:
            open_.append((budget.reserve(need), need, min(take, need)))
            reserved += need
        except BudgetExceeded:
            assert reserved + used + need > limit
        if open_ and take % 2:
            held, need, taken = open_.pop(0)
            held.settle(Usage(fresh=taken))
            reserved, used = reserved - need, used + taken
        assert reserved + used <= limit
        assert budget.spent.tokens == used


def test_without_limits_nothing_is_refused() -> None:
    budget = Budget(NONE, spent=Spent())
    budget.reserve(10**15, 1e9).settle(Usage(fresh=10**15), 1e9)
    assert (budget.tokens_left, budget.deadline, budget.may_nest) == (None, None, True)
