"""Requests that share prefixes in awkward places, and the promise of strict scores."""

from __future__ import annotations

import numpy as np

from llamalab.engine import Engine
from llamalab.scored import Decoding, Scored, ScoreRequest

SAMPLERS = (Decoding(0.5), Decoding(0.7, top_k=20, top_p=0.9))


def conversations() -> list[ScoreRequest]:
    """Prompts with a beginning in common, several responses to each, one the beginning of another; odd lengths."""
    rng = np.random.default_rng(3)

    def ids(count: int) -> list[int]:
        return rng.integers(0, 300, count).tolist()

    system, found = ids(37), []
    for length in (1, 18, 90):
        prompt, response = system + ids(length), ids(61)
        found += [ScoreRequest(prompt, response[:n], SAMPLERS) for n in (1, 15, 16, 17, 61)]
        found += [ScoreRequest(prompt, ids(33), SAMPLERS)]
    return [*found, ScoreRequest(ids(300), ids(200), SAMPLERS), ScoreRequest([], ids(5), SAMPLERS)]


def same_bits_however_they_are_asked_for(engine: Engine) -> list[Scored]:
    """Cold and alone, warm, together, in other orders and groups."""
    requests = conversations()
    alone = [engine.score([request])[0] for request in requests]
    assert engine.score(requests) == alone
    assert engine.score(requests) == alone
    order = np.random.default_rng(4).permutation(len(requests)).tolist()
    assert engine.score([requests[i] for i in order]) == [alone[i] for i in order]
    for begin in range(0, len(order), 4):
        group = order[begin : begin + 4]
        assert engine.score([requests[i] for i in group]) == [alone[i] for i in group]
    return alone
