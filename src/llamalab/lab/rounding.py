"""How far the rounding of float32 alone moves a model's logits.

Two runtimes that are both right compute the angles of RoPE by different operations: Meta's code and transformers raise
to a power, llama.cpp multiplies its way from pair to pair. The last bits differ, and where attention is very sharp
(scores of a thousand and more) the last bits of an angle decide what is looked at. At such rows no two float32
computations agree, and a tolerance alone would call that a mistake.

Dimension key: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from llamalab.checkpoints.checkpoint import open_checkpoint
from llamalab.engine import LogitsEngine
from llamalab.engines.machine import available_memory

Array: TypeAlias = np.ndarray[Any, Any]
Bars: TypeAlias = Callable[[Sequence[int]], Array]
"""Token ids to how far rounding moves the logits of each position, (T,)."""

Place: TypeAlias = tuple[int, int]
"""Number of a prompt, and a position in it."""

_LAST_PLACE = 2.0**-23
_ROWS = 0.05
"""Where a larger part of the rows lies outside the tolerance, rounding is not asked: it strikes single rows."""
_QUIET, _QUIET_ROWS = 0.1, 0.75
"""Nor where fewer rows than that keep to a tenth of their tolerance: another model differs everywhere."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """Rows of logits outside the tolerance, and in how many of them rounding moves the logits as far.

    Attributes:
        rows: outside the tolerance.
        explained: of these, where the tolerance and what rounding does to that row cover the difference.
        largest: the largest |delta logit| that rounding makes in any of them.
    """

    rows: int
    explained: int
    largest: float

    @property
    def explains(self) -> bool:
        """Of all rows."""
        return self.explained == self.rows


def explain(
    bars: Bars, excess: Mapping[Place, float], prompts: Sequence[Sequence[int]], shares: Sequence[float]
) -> Rounding | None:
    """Whether rounding explains the rows outside the tolerance; None where this does not look like rounding at all.

    Args:
        bars: what rounding does to each row of a prompt.
        excess: how far beyond the tolerance a row lies, for rows outside it.
        prompts: token ids.
        shares: of every row that was compared, how much of its tolerance the difference takes.
    """
    if not excess or len(excess) > max(1, _ROWS * len(shares)) or not np.isfinite([*excess.values()]).all():
        return None
    if np.mean(np.asarray(shares) <= _QUIET) < _QUIET_ROWS:
        return None
    of = {number: bars(prompts[number]) for number in {number for number, _ in excess}}
    moves = {place: float(of[place[0]][place[1]]) for place in excess}
    # Twice: each of the two engines rounds by itself.
    explained = sum(beyond <= 2 * moves[place] for place, beyond in excess.items())
    return Rounding(len(excess), explained, max(moves.values()))


def rounding_of(engines: Sequence[LogitsEngine]) -> Bars | None:
    """What measures rounding for the model that the engines run; None where it cannot be measured.

    The JAX Llama computes the logits in float32 with the base of RoPE as it is and moved up and down, so that the
    frequency of pair i moves by i units in its last place: what computing it by i multiplications may lose.
    """
    try:
        import jax  # noqa: F401
    except ImportError:
        return None
    paths = [Path(engine.info.path) for engine in engines if engine.info.path is not None]
    if not paths:
        return None
    checkpoint = open_checkpoint(paths[0])
    free = available_memory()
    if free is not None and 5 * checkpoint.n_params > free:
        return None
    from llamalab.checkpoints.load import load_weights
    from llamalab.engines.jax_logits import LogitsReader

    config = checkpoint.config
    step = config.head_dim / 2 * _LAST_PLACE
    readers: list[LogitsReader] = []

    def bars(ids: Sequence[int]) -> Array:
        if not readers:
            weights = load_weights(checkpoint)
            for change in (0.0, step, -step):
                moved = replace(config, rope_theta=config.rope_theta * (1 + change))
                readers.append(LogitsReader(weights, moved, "float32", 512))
        tokens_T = np.array(ids, np.int32)
        plain_TV, *moved_TV = (reader.rows(tokens_T, 0, len(ids)) for reader in readers)
        return np.asarray(np.max([np.abs(logits_TV - plain_TV).max(axis=1) for logits_TV in moved_TV], axis=0))

    return bars
