"""What one run may use: turns, sub calls, depth, tokens, seconds and money, over the whole tree of nested runs.

What a call may cost at most is reserved before it and settled after it, so calls in parallel cannot overshoot together:
at any time what was used and what is reserved stay within the limits.

    with budget.reserve(tokens, cost, "sub") as held:
        reply = model.chat(messages, params)
        held.settle(reply.usage, price.cost(reply.usage))
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from llamalab.engine import Usage
from llamalab.errors import BudgetExceeded
from llamalab.rlm.ledger import ROLES, Ledger, Limits, Reservation, Role, Spent

__all__ = ["ROLES", "Budget", "Limits", "Reservation", "Role", "Spent"]


class Budget:
    """The budget of a run and of all runs nested in it. Safe from several threads.

    Args:
        limits: what may be used; None: the defaults.
        spent: what had been used before, of a run that is resumed.
        clock: seconds, monotonic.

    Attributes:
        limits: as given.
        depth: of the run that holds this view: 0 for the outermost.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        spent: Spent | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self.depth = 0
        self._kept = (0, 0.0)
        self._ledger = Ledger(self.limits, spent or Spent(), clock)

    @property
    def spent(self) -> Spent:
        """What has been settled so far."""
        return self._ledger.spent()

    @property
    def deadline(self) -> float | None:
        """When the time is up, as a value of the clock; None without a limit."""
        return self._ledger.deadline

    @property
    def iterations_left(self) -> int | None:
        """Calls of the root that are left; None without a limit."""
        return self._ledger.left("root")

    @property
    def sub_calls_left(self) -> int | None:
        """Sub calls that are left; None without a limit."""
        return self._ledger.left("sub")

    @property
    def tokens_left(self) -> int | None:
        """Tokens neither used, reserved nor kept back; None without a limit."""
        left = self._ledger.tokens_left()
        return None if left is None else max(left - self._kept[0], 0)

    @property
    def cost_left(self) -> float | None:
        """What may still be spent, of what is neither reserved nor kept back; None without a limit."""
        left = self._ledger.cost_left()
        return None if left is None else max(left - self._kept[1], 0.0)

    @property
    def may_nest(self) -> bool:
        """Whether `nested` is allowed here."""
        return self.limits.max_depth is None or self.depth < self.limits.max_depth

    def nested(self) -> Budget:
        """The same budget as a run nested in this one sees it: one level deeper.

        Raises:
            BudgetExceeded: it would be too deep.
        """
        if not self.may_nest:
            raise BudgetExceeded(
                f"A run nested {self.depth + 1} deep is not allowed: max_depth is {self.limits.max_depth}.",
                limit="max_depth",
            )
        return self._view(self.depth + 1, self._kept)

    def keeping(self, tokens: int, cost: float = 0.0) -> Budget:
        """The same budget for calls that have to leave so much of it: for an answer that is to follow them."""
        return self._view(self.depth, (self._kept[0] + tokens, self._kept[1] + cost))

    def _view(self, depth: int, kept: tuple[int, float]) -> Budget:
        view = object.__new__(Budget)
        view.limits, view.depth, view._kept, view._ledger = self.limits, depth, kept, self._ledger
        return view

    def reserve(
        self,
        tokens: int,
        cost: float = 0.0,
        role: Role = "root",
        *,
        counted: bool = True,
        wait: bool = False,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> Reservation:
        """Set aside what one call may use at most.

        Args:
            tokens: prompt and longest reply.
            cost: of these.
            role: of the model that is asked.
            counted: the call counts as an iteration or a sub call; a second try of the same call does not.
            wait: where only calls that are still running stand in the way, wait for them to be settled.
            deadline: until when to wait, a value of `time.monotonic()`.
            cancel: ends the waiting.

        Raises:
            BudgetExceeded: it does not fit, with the limit's name.
        """
        return self._ledger.reserve(
            tokens, cost, role, counted=counted, wait=wait, deadline=deadline, cancel=cancel, kept=self._kept
        )

    def charge(self, role: Role, usage: Usage, cost: float = 0.0, *, counted: bool = True) -> None:
        """Book a call that was made without a reservation, e.g. one that a journal tells of. Never refuses."""
        self._ledger.book(role, usage, cost, calls=1 if counted else 0)
