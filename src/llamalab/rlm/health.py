"""How each provider fares: free places, failures in a row, and the breaker that keeps calls away for a while."""

from __future__ import annotations

from dataclasses import dataclass

from llamalab.errors import LlamalabError

FAILURES = 3
"""Failures in a row after which calls go elsewhere, if they can."""

_FIRST_S, _LONGEST_S = 5.0, 60.0


@dataclass(slots=True)
class Health:
    """The state of one provider.

    Attributes:
        places: calls that it takes at the same time.
        running: calls it has now.
        failures: in a row.
        closed_until: a value of the clock before which it is not asked while another can be.
        refused: its last refusal, of a kind that does not pass; None: there was none.
    """

    places: int
    running: int = 0
    failures: int = 0
    closed_until: float = 0.0
    refused: LlamalabError | None = None

    def up(self, now: float) -> bool:
        """Whether it is to be asked rather than passed over; after a pause, one call at a time finds out."""
        if self.refused is not None:
            return False
        return self.failures < FAILURES or (now >= self.closed_until and not self.running)

    @property
    def free(self) -> bool:
        """Whether it has a place for a call."""
        return self.running < self.places

    def answered(self) -> None:
        """A call went well."""
        self.failures, self.closed_until = 0, 0.0

    def failed(self, now: float, retry_after: float | None = None) -> None:
        """A call failed in a way that may pass; `retry_after`: seconds that it asks to be left alone."""
        self.failures += 1
        if self.failures >= FAILURES:
            self.closed_until = now + min(_FIRST_S * 2.0 ** (self.failures - FAILURES), _LONGEST_S)
        if retry_after is not None and retry_after > 0:
            self.failures = max(self.failures, FAILURES)
            self.closed_until = max(self.closed_until, now + retry_after)
