"""Which RoPE scaling a checkpoint has, from whatever its files say of it.

Dimension key: P = head_dim / 2 pairs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeAlias

import numpy as np

from llamalab.errors import ConfigError
from llamalab.llama.config import RopeScaling

Array: TypeAlias = np.ndarray[Any, Any]

_TOLERANCE = 1e-4
"""Largest relative difference between a table and the scaling it is taken for: tables are stored in float32."""


def chosen_scaling(found: RopeScaling | None, source: str, rope_factor: float | None) -> tuple[RopeScaling | None, str]:
    """The scaling to use, and where it is from in a few words.

    Args:
        found: what the files say or imply.
        source: where they do, e.g. "config.json".
        rope_factor: takes the place of the factor; 1 means no scaling; None keeps what was found.

    Raises:
        ConfigError: a factor below 1, or not a number.
    """
    said = f"{source}: {_described(found)}"
    if rope_factor is None:
        return found, said
    if not 1 <= rope_factor < math.inf:
        raise ConfigError(f"The RoPE factor is {rope_factor:g}; it has to be a number from 1 (no scaling) upwards.")
    scaling = None if rope_factor == 1 else dataclasses.replace(found or RopeScaling(rope_factor), factor=rope_factor)
    return scaling, f"given: {_described(scaling)} ({said})"


def scaling_from_divisors(divisors_P: Array, theta: float, original_max_seq_len: int | None) -> RopeScaling | None:
    """The Llama 3 scaling that a table of divisors is.

    Args:
        divisors_P: what each pair's frequency is divided by.
        theta: base of the frequencies.
        original_max_seq_len: context of the first training stage, if the file says it.

    Returns:
        None where nothing is divided.

    Raises:
        ValueError: no Llama 3 scaling gives this table.
    """
    from llamalab.llama.rope import rope_divisors  # only here: it imports JAX, which settings alone do not need

    if not np.all(np.isfinite(divisors_P) & (divisors_P > 0)):
        raise ValueError("through values that divide nothing")
    head_dim = 2 * len(divisors_P)
    if np.allclose(divisors_P, 1, rtol=_TOLERANCE, atol=0):
        return None
    factor = float(str(np.float32(divisors_P[-1])))
    # 8,192 is Meta's; the others are for models that were trained like Llama 3 at another size.
    lengths = [*filter(None, [original_max_seq_len]), 8192, *(1 << n for n in range(4, 21))]
    candidates = [RopeScaling(factor, original_max_seq_len=length) for length in lengths]
    fitted = _fitted(divisors_P, theta, factor)
    for scaling in [*candidates, *([fitted] if fitted else [])]:
        if np.allclose(rope_divisors(head_dim, theta, scaling), divisors_P, rtol=_TOLERANCE, atol=0):
            return scaling
    raise ValueError(f"from {divisors_P[0]:g} to {divisors_P[-1]:g} by no rule of Llama 3")


def _fitted(divisors_P: Array, theta: float, factor: float) -> RopeScaling | None:
    """The scaling through the pairs between kept and divided, with `low_freq_factor` 1.

    There the kept share is a straight line in a pair's turns per token, and a line has two parameters: scalings
    whose three lengths differ by one common factor are the same scaling.
    """
    between_P = (divisors_P > 1 + _TOLERANCE) & (divisors_P < factor * (1 - _TOLERANCE))
    if factor <= 1 or between_P.sum() < 2:
        return None
    turns_P = theta ** (-np.arange(len(divisors_P)) / len(divisors_P)) / (2 * math.pi)
    kept_P = (1 / divisors_P - 1 / factor) / (1 - 1 / factor)
    slope, start = np.polyfit(turns_P[between_P], kept_P[between_P], 1)
    if slope <= 0 or start >= 0:
        return None
    return RopeScaling(factor, 1.0, 1 - 1 / float(start), max(1, round(-float(slope) / float(start))))


def _described(scaling: RopeScaling | None) -> str:
    return "no scaling" if scaling is None else f"factor {scaling.factor:g}"
