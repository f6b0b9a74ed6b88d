"""Grouped-query attention over the cache.

Dimension key: B batch, T new tokens, S cache slots, H query heads, G kv heads, R = H/G query heads per kv head,
N = R*T rows, K head_dim. C is B, or 1 where all sequences stand at the same position.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from llamalab.llama.products import exact, fused_attention, on_cpu


def attend(
    q_BTHK: Array, k_BGSK: Array, v_BGSK: Array, positions_CT: Array, cur_pos: Array | int, window: int | None
) -> Array:
    """What T tokens gather from the cache, (B, T, H, K) in the dtype of `q_BTHK`; softmax in float32.

    Args:
        q_BTHK: queries of the new tokens, turned.
        k_BGSK: keys of all slots, the new tokens' included.
        v_BGSK: values of all slots.
        positions_CT: of the new tokens.
        cur_pos: position of the first; a Python int lets slots after the last new token be left out altogether.
        window: a token looks at itself and the window - 1 before it; None: at all before it.
    """
    B, T, _, K = q_BTHK.shape
    G = k_BGSK.shape[1]
    if isinstance(cur_pos, int):  # every slot that is read has been written
        k_BGSK, v_BGSK = k_BGSK[:, :, : cur_pos + T], v_BGSK[:, :, : cur_pos + T]
    else:
        # Zero times what an unwritten slot holds is zero only if that is finite.
        written_C1S1 = (jnp.arange(v_BGSK.shape[2]) <= positions_CT[:, -1:])[:, None, :, None]
        v_BGSK = jnp.where(written_C1S1, v_BGSK, 0)
        if on_cpu():  # which would else write new keys twice, for the product and for the cache, and copy all for it
            k_BGSK = jnp.where(written_C1S1, k_BGSK, 0)
    k_BGSK, v_BGSK = k_BGSK.astype(q_BTHK.dtype), v_BGSK.astype(q_BTHK.dtype)
    if fused_attention(q_BTHK, cur_pos):
        k_BTGK, v_BTGK = k_BGSK.swapaxes(1, 2), v_BGSK.swapaxes(1, 2)
        local = None if window is None else (window - 1, 0)
        fused_BTHK: Array = jax.nn.dot_product_attention(
            q_BTHK, k_BTGK, v_BTGK, is_causal=True, local_window_size=local, implementation="cudnn"
        )
        return fused_BTHK
    S, precision = k_BGSK.shape[2], exact(q_BTHK.dtype)
    visible_CTS = visible(positions_CT, S, window)

    # One batched product per kv head, its query heads and tokens as rows: three times as fast on XLA's CPU
    # backend as the same sum written with R and T as separate axes (forward and gradient).
    q_BGNK = q_BTHK.reshape(B, T, G, -1, K).transpose(0, 2, 3, 1, 4).reshape(B, G, -1, K)
    scores_BGNS = jnp.einsum("BGNK,BGSK->BGNS", q_BGNK, k_BGSK, precision=precision).astype(jnp.float32) * K**-0.5
    scores_BGRTS = jnp.where(visible_CTS[:, None, None], scores_BGNS.reshape(B, G, -1, T, S), -jnp.inf)
    share_BGNS = jax.nn.softmax(scores_BGRTS, axis=-1).astype(q_BTHK.dtype).reshape(scores_BGNS.shape)
    mixed_BGNK = jnp.einsum("BGNS,BGSK->BGNK", share_BGNS, v_BGSK, precision=precision)
    mixed_BTGRK = mixed_BGNK.reshape(B, G, -1, T, K).transpose(0, 3, 1, 2, 4)
    return mixed_BTGRK.reshape(q_BTHK.shape)


def scores_of(q_BHK: Array, k_BGSK: Array, positions_B: Array, window: int | None) -> Array:
    """Scaled scores of one query per sequence over all slots, (B, H, S) in float32, -inf where it does not look."""
    B, H, K = q_BHK.shape
    q_BGRK = q_BHK.reshape(B, k_BGSK.shape[1], -1, K)
    scores_BGRS = jnp.einsum("BGRK,BGSK->BGRS", q_BGRK, k_BGSK.astype(q_BHK.dtype), precision=exact(q_BHK.dtype))
    visible_B1S = visible(positions_B[:, None], k_BGSK.shape[2], window)
    return jnp.where(visible_B1S, scores_BGRS.astype(jnp.float32).reshape(B, H, -1) * K**-0.5, -jnp.inf)


def visible(positions_CT: Array, slots: int, window: int | None) -> Array:
    """Which slots a token at each position looks at, bool (C, T, S)."""
    distance_CTS = positions_CT[..., None] - jnp.arange(slots)
    return (distance_CTS >= 0) & (distance_CTS < window) if window is not None else distance_CTS >= 0
