"""Whose turn it is: smooth weighted round robin, over those of N that can be asked at all.

Every set of those that can be asked has credits of its own. So, however often somebody was passed over in between, the
turns that are given while all can be asked are those of an undisturbed round: any window of as many of them as the
weights sum to has each exactly as often as it weighs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llamalab.errors import InputError


class Rotation:
    """Gives turns by weight. Not safe from several threads: whoever holds it locks.

    Args:
        weights: of each, above 0.

    Source: the weighted balancing of nginx (ngx_http_upstream_round_robin): each turn, everybody gains his weight, and
    who has most gives the sum of all weights back.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = tuple(weights)
        self._credits: dict[tuple[int, ...], list[int]] = {}

    def pick(self, eligible: Sequence[int]) -> int:
        """Whose turn it is among `eligible`, indices in ascending order, at least one."""
        key = tuple(eligible)
        credits = self._credits.setdefault(key, [0] * len(key))
        for place, index in enumerate(key):
            credits[place] += self._weights[index]
        best = max(range(len(key)), key=lambda place: (credits[place], -place))
        credits[best] -= self._sum(key)
        return key[best]

    def undo(self, eligible: Sequence[int], picked: int) -> None:
        """Take a turn back that came to nothing: as if it had not been given."""
        key = tuple(eligible)
        credits = self._credits[key]
        credits[key.index(picked)] += self._sum(key)
        for place, index in enumerate(key):
            credits[place] -= self._weights[index]

    @property
    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON."""
        return {
            "weights": list(self._weights),
            "credits": {",".join(map(str, key)): list(credits) for key, credits in sorted(self._credits.items())},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            InputError: it is of other weights, or no such state.
        """
        try:
            if list(state["weights"]) != list(self._weights):
                raise InputError("The round robin was left off with other providers or weights than these.")
            found = {tuple(map(int, key.split(","))): list(map(int, row)) for key, row in state["credits"].items()}
            if any(
                len(key) != len(row) or max(key) >= len(self._weights) or min(key) < 0 for key, row in found.items()
            ):
                raise ValueError("credits of others")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"This is no state of a round robin ({type(error).__name__}: {error}).") from None
        self._credits = found

    def _sum(self, key: tuple[int, ...]) -> int:
        return sum(self._weights[index] for index in key)
