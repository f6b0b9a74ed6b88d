"""Rotary position embedding, in Meta's interleaved order.

Dimension key: B batch, T tokens, H heads, K head_dim, P = K/2 pairs.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from llamalab.llama.config import RopeScaling


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Array:
    """Radians by which each pair turns per position, float32, shape (P,).

    Unscaled: theta ** (-2i / head_dim). Llama 3's scaling divides by `factor` where the wavelength is longer than the
    first training stage could learn, and blends the two in between.

    Source: Su et al. 2021, eq. 15; `apply_scaling` of Meta's reference model.
    """
    return jnp.asarray(_inverse_frequencies(head_dim, theta) / rope_divisors(head_dim, theta, scaling), jnp.float32)


def rope_divisors(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """What scaling divides each pair's frequency by, float64, shape (P,): the `rope_freqs` of a GGUF file."""
    plain_P = _inverse_frequencies(head_dim, theta)
    if scaling is None:
        return np.ones_like(plain_P)
    turns_P = scaling.original_max_seq_len * plain_P / (2 * math.pi)
    kept_P = (turns_P - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept_P = np.clip(kept_P, 0.0, 1.0)
    return np.asarray(1 / (kept_P + (1 - kept_P) / scaling.factor))


def _inverse_frequencies(head_dim: int, theta: float) -> np.ndarray:
    return np.asarray(theta ** (-np.arange(0, head_dim, 2) / head_dim))


def rotate(x_BTHK: Array, angles_TP: Array) -> Array:
    """Rotate each pair (x[2i], x[2i+1]) by its angle.

    Args:
        x_BTHK: queries or keys, any float dtype.
        angles_TP: position times inverse frequency, radians, float32; (B, T, P) where sequences differ.

    Returns:
        Same shape and dtype as `x_BTHK`; computed in float32.

    Source: Su et al. 2021, eq. 34; order of pairs as in Meta's reference model.
    """
    x_BTHP2 = x_BTHK.astype(jnp.float32).reshape(*x_BTHK.shape[:-1], -1, 2)
    cos, sin = jnp.cos(angles_TP)[..., None, :], jnp.sin(angles_TP)[..., None, :]
    even, odd = x_BTHP2[..., 0], x_BTHP2[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x_BTHK.shape).astype(x_BTHK.dtype)
