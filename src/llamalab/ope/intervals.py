"""Standard errors and intervals from influence functions, with rows of one prompt as one cluster.

Dimension key: n rows, G prompts with rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from llamalab.errors import ConfigError, InputError
from llamalab.ope.study import FloatArray, IntArray

FEW_PROMPTS = 30
"""Below this many prompts: the CR2 variance and Satterthwaite's degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Variance:
    """Of an estimate.

    Attributes:
        value: the variance.
        df: degrees of freedom of its own estimate.
    """

    value: float
    df: float


def cluster_variance(influence: FloatArray, prompt: IntArray, mass: FloatArray | None = None) -> Variance:
    """Variance of a mean of influences, with prompts as clusters.

    With T_g the sum over prompt g: G/(G-1) sum T_g^2 / n^2 and G-1 degrees of freedom. With fewer than `FEW_PROMPTS`
    prompts, each T_g^2 is divided by 1 - h_g, h_g the share of the mass that the prompt holds (which is CR2 for a
    weighted mean), and the degrees of freedom follow Satterthwaite.

    Args:
        influence: (n,), mean zero.
        prompt: (n,) codes.
        mass: (n,) what each row weighs in the estimate; None: all the same.

    Raises:
        InputError: fewer than two prompts.

    Source: Liang and Zeger 1986; Bell and McCaffrey 2002; Pustejovsky and Tipton 2018.
    """
    present, code = np.unique(prompt, return_inverse=True)
    n, size = len(prompt), len(present)
    if size < 2:
        raise InputError("All responses belong to one prompt, so nothing says how much prompts differ. Add prompts.")
    squares = np.square(np.bincount(code, weights=influence - influence.mean()))
    if size >= FEW_PROMPTS:
        return Variance(float(size / (size - 1) * squares.sum() / n**2), float(size - 1))
    mass_G = np.bincount(code, weights=mass)
    share = mass_G / mass_G.sum()
    room = np.maximum(1 - share, 1e-12)  # of a prompt that holds everything: its T_g is 0 too
    # How the residuals of a weighted mean covary between prompts, after the CR2 correction.
    spread = np.diag(share / room) - np.outer(share, share) / np.sqrt(np.outer(room, room))
    df = np.trace(spread) ** 2 / np.square(spread).sum()
    return Variance(float((squares / room).sum() / n**2), float(min(max(df, 1.0), size - 1)))


def pooled_df(parts: tuple[Variance, ...]) -> float:
    """Degrees of freedom of a sum of parts that are estimated from different numbers of prompts, at most the largest.

    Source: Welch 1947, Satterthwaite 1946.
    """
    most, largest = max(part.df for part in parts), max(part.value for part in parts)
    if largest == 0:
        return most
    shares = [part.value / largest for part in parts]
    below = sum(share**2 / part.df for share, part in zip(shares, parts, strict=True))
    return min(most, sum(shares) ** 2 / below)


def t_interval(value: float, se: float, df: float, level: float = 0.95) -> tuple[float, float]:
    """value -+ t se.

    Raises:
        ConfigError: a level that is no probability.
    """
    if not 0 < level < 1:
        raise ConfigError(f"The level of an interval lies between 0 and 1, and is not {level:g}.")
    half = float(stdtrit(df, 0.5 + level / 2)) * se
    return value - half, value + half
