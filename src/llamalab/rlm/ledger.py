"""The books of a budget: what its calls have used, and what is set aside for those that are running."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from llamalab.engine import Usage
from llamalab.errors import BudgetExceeded

Role: TypeAlias = Literal["root", "sub"]
"""root steers a run, sub answers its sub-questions."""

ROLES: tuple[Role, ...] = ("root", "sub")

_POLL_S = 0.05  # between two looks at a cancel flag


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may use at most. None: no limit.

    Attributes:
        max_iterations: calls of the root, those of nested runs included.
        max_sub_calls: calls of a sub model.
        max_depth: levels of nested runs below the outermost; 0: none.
        max_tokens: of all calls, prompts (cached ones too) and replies (reasoning too).
        max_seconds: of wall clock.
        max_cost: in the currency of the configured prices.
    """

    max_iterations: int | None = 20
    max_sub_calls: int | None = 50
    max_depth: int | None = 3
    max_tokens: int | None = None
    max_seconds: float | None = None
    max_cost: float | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run has used: settled calls.

    Attributes:
        iterations: calls of the root.
        sub_calls: calls of a sub model.
        tokens: of all calls.
        cost: in the currency of the prices.
        seconds: since the run began, those before it was resumed included.
        usage: tokens by role.
    """

    iterations: int = 0
    sub_calls: int = 0
    tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    usage: Mapping[Role, Usage] = field(default_factory=dict)


class Reservation:
    """What is set aside for one call. Left as a context manager without `settle` or `release`, all of it is charged.

    A call that was lost half way may have cost anything up to what was reserved, so that is what it is booked at.
    """

    __slots__ = ("_counted", "_ledger", "_open", "cost", "role", "tokens")

    def __init__(self, ledger: Ledger, tokens: int, cost: float, role: Role, *, counted: bool) -> None:
        self._ledger, self._counted, self._open = ledger, counted, True
        self.tokens, self.cost, self.role = tokens, cost, role

    def settle(self, usage: Usage, cost: float = 0.0) -> None:
        """Book what the call used; the rest is free again. Only the first `settle` or `release` counts."""
        if self._open:
            self._open = False
            self._ledger.settle(self, usage, cost)

    def settle_whole(self) -> None:
        """Book all that was reserved, as tokens of the prompt."""
        self.settle(Usage(fresh=self.tokens), self.cost)

    def release(self) -> None:
        """The call was never made: nothing is booked, and it does not count."""
        if self._open:
            self._open = False
            self._ledger.release(self, self._counted)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.settle_whole()


class Ledger:
    """The books that all views of one budget share."""

    def __init__(self, limits: Limits, spent: Spent, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._began = clock() - spent.seconds
        self._calls: dict[Role, int] = {"root": spent.iterations, "sub": spent.sub_calls}
        self._usage: dict[Role, Usage] = {role: spent.usage.get(role, Usage()) for role in ROLES}
        self._tokens, self._cost = spent.tokens, spent.cost
        self._held_tokens, self._held_cost = 0, 0.0
        self._changed = threading.Condition()

    @property
    def deadline(self) -> float | None:
        """When the time is up, as a value of the clock; None without a limit."""
        limit = self._limits.max_seconds
        return None if limit is None else self._began + limit

    def spent(self) -> Spent:
        """What has been settled so far."""
        with self._changed:
            return Spent(
                self._calls["root"],
                self._calls["sub"],
                self._tokens,
                self._cost,
                self._clock() - self._began,
                dict(self._usage),
            )

    def left(self, role: Role) -> int | None:
        """Calls of a role that are left; None without a limit."""
        limit = self._limit_of(role)[1]
        with self._changed:
            return None if limit is None else max(limit - self._calls[role], 0)

    def tokens_left(self) -> int | None:
        """Tokens neither used nor reserved; None without a limit."""
        limit = self._limits.max_tokens
        with self._changed:
            return None if limit is None else max(limit - self._tokens - self._held_tokens, 0)

    def cost_left(self) -> float | None:
        """What may still be spent and is not reserved; None without a limit."""
        limit = self._limits.max_cost
        with self._changed:
            return None if limit is None else max(limit - self._cost - self._held_cost, 0.0)

    def reserve(
        self,
        tokens: int,
        cost: float,
        role: Role,
        *,
        counted: bool,
        wait: bool,
        deadline: float | None,
        cancel: threading.Event | None,
        kept: tuple[int, float],
    ) -> Reservation:
        """See `Budget.reserve`; `kept`: tokens and cost that have to be left."""
        if tokens < 0 or not 0 <= cost < float("inf"):
            raise ValueError(f"{tokens} tokens at a cost of {cost} cannot be reserved")
        with self._changed:
            while True:
                self._check_hard(tokens + kept[0], cost + kept[1], role, counted=counted)
                refusal = self._in_the_way(tokens + kept[0], cost + kept[1])
                if refusal is None:
                    break
                if not wait or _over(deadline) or (cancel is not None and cancel.is_set()):
                    raise refusal
                self._changed.wait(_POLL_S)
            self._held_tokens += tokens
            self._held_cost += cost
            self._calls[role] += counted
        return Reservation(self, tokens, cost, role, counted=counted)

    def settle(self, held: Reservation, usage: Usage, cost: float) -> None:
        """Book a call, and free the rest of what was reserved for it."""
        with self._changed:
            self._free(held)
            self.book(held.role, usage, cost, calls=0)

    def release(self, held: Reservation, counted: bool) -> None:
        """Free what was reserved for a call that was never made."""
        with self._changed:
            self._free(held)
            self._calls[held.role] -= counted

    def book(self, role: Role, usage: Usage, cost: float, *, calls: int) -> None:
        """Add to what is used."""
        with self._changed:
            before = self._usage[role]
            self._usage[role] = Usage(
                before.fresh + usage.fresh,
                before.cached + usage.cached,
                before.output + usage.output,
                before.reasoning + usage.reasoning,
            )
            self._tokens += usage.fresh + usage.cached + usage.output
            self._cost += cost
            self._calls[role] += calls
            self._changed.notify_all()

    def _free(self, held: Reservation) -> None:
        self._held_tokens -= held.tokens
        # Sums of floats leave dust behind, which would look like a reservation that nobody holds.
        self._held_cost = max(self._held_cost - held.cost, 0.0) if self._held_tokens else 0.0
        self._changed.notify_all()

    def _check_hard(self, tokens: int, cost: float, role: Role, *, counted: bool) -> None:
        """Raise where the call would not fit even if those that are running cost nothing."""
        name, limit = self._limit_of(role)
        if counted and limit is not None and self._calls[role] >= limit:
            what = "turns of the root" if role == "root" else "sub calls"
            raise BudgetExceeded(f"All {limit} {what} are used ({name}).", limit=name)
        seconds = self._limits.max_seconds
        if seconds is not None and self._clock() - self._began >= seconds:
            raise BudgetExceeded(f"The run's {seconds:g} seconds are over (max_seconds).", limit="max_seconds")
        for amount, most, used, needed in self._amounts(tokens, cost):
            if most is not None and used + needed > most:
                raise _refusal(amount, most, used, 0, needed)

    def _in_the_way(self, tokens: int, cost: float) -> BudgetExceeded | None:
        """What does not fit because of calls that are running."""
        held = {"max_tokens": self._held_tokens, "max_cost": self._held_cost}
        for name, limit, used, needed in self._amounts(tokens, cost):
            if limit is not None and used + held[name] + needed > limit:
                return _refusal(name, limit, used, held[name], needed)
        return None

    def _amounts(self, tokens: int, cost: float) -> tuple[tuple[str, float | None, float, float], ...]:
        return (
            ("max_tokens", self._limits.max_tokens, self._tokens, tokens),
            ("max_cost", self._limits.max_cost, self._cost, cost),
        )

    def _limit_of(self, role: Role) -> tuple[str, int | None]:
        if role == "root":
            return "max_iterations", self._limits.max_iterations
        return "max_sub_calls", self._limits.max_sub_calls


def _refusal(name: str, limit: float, used: float, held: float, needed: float) -> BudgetExceeded:
    running = f", {held:,.10g} are reserved by calls that are running" if held else ""
    what = "tokens" if name == "max_tokens" else "of cost"
    return BudgetExceeded(
        f"The next call may need {needed:,.10g} {what}: {used:,.10g} of {limit:,.10g} are used{running} ({name}).",
        limit=name,
    )


def _over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline
