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

    Rounded to float32 after every operation, as the reference models do: at position 2,000 the last bit of a
    frequency is 1e-4 radians, and the official logits have the official bits.

    Source: Su et al. 2021, eq. 15; `apply_scaling` of Meta's reference model.
    """
    one, exponents_P = np.float32(1), np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain_P = one / (theta ** exponents_P.astype(np.float64)).astype(np.float32)
    if scaling is None:
        return jnp.asarray(plain_P)
    factor, low, high = map(np.float32, (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor))
    turns_P = np.float32(scaling.original_max_seq_len) / (np.float32(2 * math.pi) / plain_P)
    kept_P = np.clip((turns_P - low) / (high - low), np.float32(0), one)
    return jnp.asarray((one - kept_P) * plain_P / factor + kept_P * plain_P)


def rope_divisors(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """What scaling divides each pair's frequency by, float64, shape (P,): the `rope_freqs` of a GGUF file."""
    plain_P = np.asarray(theta ** (-np.arange(0, head_dim, 2) / head_dim))
    if scaling is None:
        return np.ones_like(plain_P)
    turns_P = scaling.original_max_seq_len * plain_P / (2 * math.pi)
    kept_P = (turns_P - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept_P = np.clip(kept_P, 0.0, 1.0)
    return np.asarray(1 / (kept_P + (1 - kept_P) / scaling.factor))


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
