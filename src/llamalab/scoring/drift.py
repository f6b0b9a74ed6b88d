"""How far fast scores lie from strict ones, for this model on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from llamalab.engine import Engine
from llamalab.errors import LlamalabError
from llamalab.scored import Scored, ScoreRequest

_RESPONSES = 4
"""So many are scored strictly too."""


def drift(engine: Engine, requests: Sequence[ScoreRequest], fast: Sequence[Scored | LlamalabError]) -> float | None:
    """Largest |difference| of a token's log probability over the first responses, nats; None where there are none.

    Args:
        engine: that scored them.
        requests: in the order of `fast`.
        fast: what fast mode said.
    """
    pairs = [(request, score) for request, score in zip(requests, fast, strict=True) if isinstance(score, Scored)]
    pairs = pairs[:_RESPONSES]
    strict = engine.score([request for request, _ in pairs], mode="strict") if pairs else []
    moves = [
        abs(a - b)
        for (_, one), other in zip(pairs, strict, strict=True)
        for a, b in zip(one.logprobs, other.logprobs, strict=True)
        if a is not None and b is not None
    ]
    return max(moves, default=None)
