"""The cases of the entropix sampler: which one a token is in, and how each draws.

Thresholds and formulas are those of two commits of xjdr-alt/entropix, the published versions.

Entropies are in bits, varentropies in bits squared.

Dimension key: B rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array

Case: TypeAlias = Literal["LELV", "HELV", "LEHV", "HEHV", "adaptive"]
CASES: tuple[Case, ...] = ("LELV", "HELV", "LEHV", "HEHV", "adaptive")
"""Low or high entropy, low or high varentropy; in the order in which they are tested. The first that fits counts."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """One published set of thresholds and coefficients. Hashable: static under `jax.jit`.

    Attributes:
        name: what the command line calls it.
        entropy: low, medium and high, bits.
        varentropy: low and high, bits squared.
        attention_entropy: low and high, bits; None: the cases do not look at it.
        attention_varentropy: low and high, bits squared; None: the cases do not look at it.
        temperature, top_k, top_p, min_p: what the cases start from.
        draws: tokens drawn in the adaptive case; the most probable of them is taken.
    """

    name: str
    entropy: tuple[float, float, float]
    varentropy: tuple[float, float]
    attention_entropy: tuple[float, float] | None
    attention_varentropy: tuple[float, float] | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    draws: int = 5


ORIGINAL = Thresholds(
    name="original",
    entropy=(0.1, 3.0, 5.0),
    varentropy=(0.1, 5.0),
    attention_entropy=None,
    attention_varentropy=None,
    temperature=0.666,
    top_k=27,
    top_p=0.90,
    min_p=0.03,
)
"""The quadrants of commit cceeb84 (October 2024), the version people mean."""

FRACTIONAL = Thresholds(
    name="fractional",
    entropy=(0.8, 1.7, 2.5),
    varentropy=(0.4, 1.2),
    attention_entropy=(1.0, 2.0),
    attention_varentropy=(0.3, 0.8),
    temperature=0.8,
    top_k=40,
    top_p=0.90,
    min_p=0.05,
)
"""Those of commit 9d41be6: all four attention tests must hold too, and the adaptive temperature follows the fraction
(1.2 H + 2) / H of the entropy H in nats."""

THRESHOLDS: Mapping[str, Thresholds] = {thresholds.name: thresholds for thresholds in (ORIGINAL, FRACTIONAL)}
"""The published sets by name."""


class Measures(NamedTuple):
    """What the cases look at, one number per row, (B,) float32.

    Attributes:
        entropy: of the next token, bits.
        varentropy: variance of the surprise -log2 p around it, bits squared.
        attention_entropy: of the last query over its valid keys, mean over the heads, bits.
        attention_varentropy: variance of that entropy over the heads, bits squared.
        agreement: mean distance |A - mean over heads of A| of the attention weights; 0 where all heads agree (so a
            distance: the name is entropix's).
        interaction: mean |score| over heads and valid keys.
    """

    entropy: Array
    varentropy: Array
    attention_entropy: Array
    attention_varentropy: Array
    agreement: Array
    interaction: Array


def case_of(measures: Measures, thresholds: Thresholds) -> Array:
    """Number of the first case in `CASES` whose tests all hold, (B,) int32."""
    entropy, varentropy = measures.entropy, measures.varentropy
    low, medium, high = thresholds.entropy
    calm, wild = varentropy < thresholds.varentropy[0], varentropy > thresholds.varentropy[1]
    tests = [(entropy < low) & calm, (entropy > high) & calm, (entropy < high) & wild, (entropy > medium) & wild]
    if thresholds.attention_entropy is not None and thresholds.attention_varentropy is not None:
        focused = measures.attention_entropy < thresholds.attention_entropy[0]
        spread = measures.attention_entropy > thresholds.attention_entropy[1]
        alike = measures.attention_varentropy < thresholds.attention_varentropy[0]
        apart = measures.attention_varentropy > thresholds.attention_varentropy[1]
        attention = [focused & alike, focused & alike, focused & apart, spread & apart]
        tests = [test & also for test, also in zip(tests, attention, strict=True)]
    numbers = [jnp.full(entropy.shape, number, jnp.int32) for number in range(len(tests))]
    return jnp.select(tests, numbers, default=jnp.int32(len(tests)))


class Manner(NamedTuple):
    """How one token of each row is drawn, (B,) each."""

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array


def manner_of(case_B: Array, measures: Measures, thresholds: Thresholds) -> Manner:
    """Temperature and truncations of each row's case. LELV draws nothing; its row holds the starting values."""
    base = Manner(
        jnp.full(case_B.shape, thresholds.temperature, jnp.float32),
        jnp.full(case_B.shape, thresholds.top_k, jnp.int32),
        jnp.full(case_B.shape, thresholds.top_p, jnp.float32),
        jnp.full(case_B.shape, thresholds.min_p, jnp.float32),
    )
    formulas = _fractional_manners if thresholds.attention_entropy is not None else _original_manners
    manners = (base, *formulas(base, measures, thresholds))
    return Manner(*(jnp.stack(column)[case_B, jnp.arange(case_B.shape[0])] for column in zip(*manners, strict=True)))


def _original_manners(base: Manner, m: Measures, t: Thresholds) -> tuple[Manner, Manner, Manner, Manner]:
    """HELV, LEHV, HEHV and adaptive of commit cceeb84."""
    unsure = m.entropy + m.varentropy
    helv = base._replace(temperature=jnp.minimum(1.5, t.temperature * (1.3 + 0.2 * m.attention_entropy)))
    lehv = base._replace(
        temperature=jnp.minimum(1.5, t.temperature * (1.2 + 0.3 * m.interaction)),
        top_k=jnp.maximum(5, (t.top_k * (1 + 0.5 * (1 - m.agreement))).astype(jnp.int32)),
    )
    hehv = base._replace(
        temperature=jnp.maximum(2.0, t.temperature * (2.0 + 0.5 * m.attention_varentropy)),
        top_p=jnp.maximum(0.5, t.top_p - 0.2 * m.attention_entropy),
    )
    attention = m.attention_entropy + m.attention_varentropy
    adaptive = Manner(
        temperature=t.temperature * (1 + 0.3 * unsure + 0.2 * attention - 0.2 * m.agreement),
        top_k=jnp.clip(jnp.round(t.top_k * (1 + 0.3 * m.interaction - 0.2 * m.agreement)), 1, 100).astype(jnp.int32),
        top_p=jnp.clip(t.top_p * (1 + 0.1 * m.attention_varentropy), 0.1, 1.0),
        min_p=jnp.clip(t.min_p * (1 - 0.5 * unsure), 0.01, 0.5),
    )
    return helv, lehv, hehv, adaptive


def _fractional_manners(base: Manner, m: Measures, t: Thresholds) -> tuple[Manner, Manner, Manner, Manner]:
    """HELV, LEHV, HEHV and adaptive of commit 9d41be6."""
    helv = base._replace(temperature=jnp.minimum(1.5, t.temperature * (0.2 + 0.3 * m.attention_entropy)))
    hehv = base._replace(
        temperature=jnp.minimum(2.0, t.temperature * (0.3 + 0.25 * m.attention_varentropy)),
        top_p=jnp.maximum(0.5, t.top_p - 0.3 * m.attention_entropy),
    )
    nats = m.entropy * np.log(2)
    adaptive = base._replace(
        temperature=jnp.clip(t.temperature * jnp.sqrt((1.2 * nats + 2.0) / (nats + 1e-6)), 0.1, 2.0),
        min_p=jnp.clip(t.min_p * (1 - 0.2 * m.varentropy), 0.01, 0.5),
    )
    return helv, base, hehv, adaptive
