"""Rotary position embedding, in Meta's interleaved order.

Dimension key: B batch, T tokens, H heads, K head_dim, P = K/2 pairs.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def inverse_frequencies(head_dim: int, theta: float) -> Array:
    """Radians by which each pair turns per position: theta ** (-2i / head_dim), float32, shape (P,).

    Source: Su et al. 2021, eq. 15.
    """
    return theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def rotate(x_BTHK: Array, angles_TP: Array) -> Array:
    """Rotate each pair (x[2i], x[2i+1]) by its angle.

    Args:
        x_BTHK: queries or keys, any float dtype.
        angles_TP: position times inverse frequency, radians, float32.

    Returns:
        Same shape and dtype as `x_BTHK`; computed in float32.

    Source: Su et al. 2021, eq. 34; order of pairs as in Meta's reference model.
    """
    x_BTHP2 = x_BTHK.astype(jnp.float32).reshape(*x_BTHK.shape[:-1], -1, 2)
    cos, sin = jnp.cos(angles_TP)[:, None, :], jnp.sin(angles_TP)[:, None, :]
    even, odd = x_BTHP2[..., 0], x_BTHP2[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x_BTHK.shape).astype(x_BTHK.dtype)
