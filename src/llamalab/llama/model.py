"""The Llama forward pass: prefill, decoding and training are one function.

Dimension key: B batch, T new tokens, S cache slots, D dim, H query heads, G kv heads, R = H/G query heads
per kv head, N = R*T rows, K head_dim, F ffn_dim, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.rope import inverse_frequencies, rotate
from llamalab.llama.weights import LayerWeights, XfmrWeights


def xfmr(
    weights: XfmrWeights, config: LlamaConfig, tokens_BT: Array, cur_pos: Array | int, cache: KVCache
) -> tuple[Array, KVCache]:
    """Run `tokens_BT` at positions cur_pos ... cur_pos + T - 1 after what the cache holds.

    Args:
        weights: of the model.
        config: its shape.
        tokens_BT: token ids, integers.
        cur_pos: position of the first of them; slots before it are seen, slots after it are not.
        cache: at least cur_pos + T slots.

    Returns:
        Logits (B, T, V) in float32, and the cache with the new tokens in it.

    Source: Touvron et al. 2023; parts as in Meta's reference model.
    """
    T = tokens_BT.shape[1]
    positions_T = cur_pos + jnp.arange(T)
    angles_TP = positions_T[:, None].astype(jnp.float32) * inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    visible_TS = jnp.arange(cache.length) <= positions_T[:, None]

    x_BTD = weights.tok_embeddings[tokens_BT]
    for i, layer in enumerate(weights.layer_weights):
        h_BTD = rms_norm(x_BTD, layer.attention_norm, config.norm_eps)
        attended_BTD, cache = attention(h_BTD, layer, config, angles_TP, visible_TS, i, cur_pos, cache)
        x_BTD = x_BTD + attended_BTD
        x_BTD = x_BTD + feed_forward(rms_norm(x_BTD, layer.ffn_norm, config.norm_eps), layer)
    x_BTD = rms_norm(x_BTD, weights.norm, config.norm_eps)
    output_VD = weights.tok_embeddings if weights.output is None else weights.output
    return project(x_BTD, output_VD).astype(jnp.float32), cache


def attention(
    x_BTD: Array,
    layer: LayerWeights,
    config: LlamaConfig,
    angles_TP: Array,
    visible_TS: Array,
    layer_idx: int,
    cur_pos: Array | int,
    cache: KVCache,
) -> tuple[Array, KVCache]:
    """Grouped-query attention over the cache; softmax in float32."""
    B, T, _ = x_BTD.shape
    G, K = config.n_kv_heads, config.head_dim
    q_BTHK = rotate(project(x_BTD, layer.wq).reshape(B, T, config.n_heads, K), angles_TP)
    k_BTGK = rotate(project(x_BTD, layer.wk).reshape(B, T, G, K), angles_TP)
    v_BTGK = project(x_BTD, layer.wv).reshape(B, T, G, K)
    cache = cache.update(k_BTGK, v_BTGK, layer_idx, cur_pos)
    k_BSGK, v_BSGK = cache.k[layer_idx], cache.v[layer_idx]

    # One batched product per kv head, its query heads and tokens as rows: three times as fast on XLA's CPU
    # backend as the same sum written with R and T as separate axes (forward and gradient).
    q_BGNK = q_BTHK.reshape(B, T, G, -1, K).transpose(0, 2, 3, 1, 4).reshape(B, G, -1, K)
    scores_BGNS = jnp.einsum("BGNK,BGSK->BGNS", q_BGNK, k_BSGK.transpose(0, 2, 1, 3)).astype(jnp.float32) * K**-0.5
    scores_BGRTS = jnp.where(visible_TS, scores_BGNS.reshape(B, G, -1, T, cache.length), -jnp.inf)
    share_BGNS = jax.nn.softmax(scores_BGRTS, axis=-1).astype(x_BTD.dtype).reshape(scores_BGNS.shape)
    mixed_BGNK = jnp.einsum("BGNS,BGSK->BGNK", share_BGNS, v_BSGK.transpose(0, 2, 1, 3))
    mixed_BTHK = mixed_BGNK.reshape(B, G, -1, T, K).transpose(0, 3, 1, 2, 4)
    return project(mixed_BTHK.reshape(B, T, -1), layer.wo), cache


def feed_forward(x_BTD: Array, layer: LayerWeights) -> Array:
    """SwiGLU. Source: Shazeer 2020, eq. 6."""
    return project(jax.nn.silu(project(x_BTD, layer.w1)) * project(x_BTD, layer.w3), layer.w2)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Divide by the root mean square of the last axis, in float32. Source: Zhang and Sennrich 2019, eq. 4."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)).astype(x.dtype) * weight


def project(x: Array, weight_out_in: Array) -> Array:
    """x times the transpose of a [out, in] matrix, as one product of two matrices."""
    rows = jnp.einsum("bi,oi->bo", x.reshape(-1, x.shape[-1]), weight_out_in)
    return rows.reshape(*x.shape[:-1], -1)
