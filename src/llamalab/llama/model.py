"""The Llama forward pass: prefill, decoding and training are one function.

Dimension key: B batch, T new tokens, S cache slots, D dim, H query heads, G kv heads, n either of them, K head_dim,
V vocabulary, P = K/2 pairs. C is B, or 1 where all sequences stand at the same position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import jax
import jax.numpy as jnp
from jax import Array

from llamalab.llama.attention import attend, scores_of
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.products import looked_up, project, project_each
from llamalab.llama.rope import inverse_frequencies, rotate
from llamalab.llama.weights import LayerWeights, XfmrWeights


@overload
def xfmr(
    weights: XfmrWeights,
    config: LlamaConfig,
    tokens_BT: Array,
    cur_pos: Array | int,
    cache: KVCache,
    *,
    rows_B: Array | None = None,
    scores: Literal[False] = False,
    on_block: Callable[[Array], None] | None = None,
) -> tuple[Array, KVCache]: ...


@overload
def xfmr(
    weights: XfmrWeights,
    config: LlamaConfig,
    tokens_BT: Array,
    cur_pos: Array | int,
    cache: KVCache,
    *,
    rows_B: Array,
    scores: Literal[True],
) -> tuple[Array, KVCache, Array]: ...


def xfmr(
    weights: XfmrWeights,
    config: LlamaConfig,
    tokens_BT: Array,
    cur_pos: Array | int,
    cache: KVCache,
    *,
    rows_B: Array | None = None,
    scores: bool = False,
    on_block: Callable[[Array], None] | None = None,
) -> tuple[Array, KVCache] | tuple[Array, KVCache, Array]:
    """Run `tokens_BT` at positions cur_pos ... cur_pos + T - 1 after what the cache holds.

    A prompt that is padded on the right needs nothing else: what the padding wrote lies behind the last real token,
    where nothing looks before the next real token has taken its place.

    Args:
        weights: of the model; the norms' dtype is the one it computes in.
        config: its shape.
        tokens_BT: token ids, integers.
        cur_pos: position of the first of them: one for all sequences, or one each, (B,). Slots before it are
            seen, slots after the new tokens never matter, whatever they hold. A Python int costs least: only
            the first cur_pos + T slots are then read at all.
        cache: at least cur_pos + T slots (`check_room`).
        rows_B: for each sequence the number of the token, 0 ... T - 1, whose logits are wanted; None: all.
        scores: return the attention scores of the last layer as well; needs `rows_B`.
        on_block: called with the residual stream (B, T, D) after each block.

    Returns:
        Logits in float32, (B, T, V), or (B, V) with `rows_B`; the cache with the new tokens in it; with `scores`
        the last layer's scaled scores of the wanted token over all slots, (B, H, S) in float32, -inf where it
        does not look.

    Source: Touvron et al. 2023; parts as in Meta's reference model.
    """
    positions_CT = jnp.asarray(cur_pos).reshape(-1, 1) + jnp.arange(tokens_BT.shape[1])
    angles_CTP = positions_CT[..., None].astype(jnp.float32) * inverse_frequencies(
        config.head_dim, config.rope_theta, config.rope_scaling
    )
    x_BTD = looked_up(weights.tok_embeddings, tokens_BT, weights.norm.dtype)
    queries_BTHK = x_BTD
    for i, layer in enumerate(weights.layer_weights):
        h_BTD = rms_norm(x_BTD, layer.attention_norm, config.norm_eps)
        queries_BTHK, keys_BTGK, values_BTGK = projected_heads(h_BTD, layer, config, angles_CTP)
        cache = cache.update(keys_BTGK, values_BTGK, i, cur_pos)
        mixed_BTHK = attend(queries_BTHK, cache.k[i], cache.v[i], positions_CT, cur_pos, config.sliding_window)
        x_BTD = x_BTD + project(mixed_BTHK.reshape(*x_BTD.shape[:2], -1), layer.wo)
        x_BTD = x_BTD + feed_forward(rms_norm(x_BTD, layer.ffn_norm, config.norm_eps), layer)
        if on_block is not None:
            on_block(x_BTD)

    if rows_B is None:
        return unembed(x_BTD, weights, config), cache
    each_B = jnp.arange(x_BTD.shape[0])
    logits_BV = unembed(x_BTD[each_B, rows_B], weights, config)
    if not scores:
        return logits_BV, cache
    positions_B = jnp.broadcast_to(positions_CT, tokens_BT.shape)[each_B, rows_B]
    query_BHK = queries_BTHK[each_B, rows_B]
    return logits_BV, cache, scores_of(query_BHK, cache.k[-1], positions_B, config.sliding_window)


def projected_heads(
    x_BTD: Array, layer: LayerWeights, config: LlamaConfig, angles_CTP: Array
) -> tuple[Array, Array, Array]:
    """Queries (B, T, H, K), keys and values (B, T, G, K) of each token; queries and keys turned by their position."""
    shape_BTnK = (*x_BTD.shape[:2], -1, config.head_dim)
    q, k, v = (y.reshape(shape_BTnK) for y in project_each(x_BTD, (layer.wq, layer.wk, layer.wv)))
    return rotate(q, angles_CTP), rotate(k, angles_CTP), v


def feed_forward(x_BTD: Array, layer: LayerWeights) -> Array:
    """SwiGLU. Source: Shazeer 2020, eq. 6."""
    gate, up = project_each(x_BTD, (layer.w1, layer.w3))
    return project(jax.nn.silu(gate) * up, layer.w2)


def unembed(x: Array, weights: XfmrWeights, config: LlamaConfig) -> Array:
    """Logits in float32, (..., V), of what leaves the last block, (..., D)."""
    output_VD = weights.tok_embeddings if weights.output is None else weights.output
    return project(rms_norm(x, weights.norm, config.norm_eps), output_VD, jnp.float32)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Divide by the root mean square of the last axis, in float32. Source: Zhang and Sennrich 2019, eq. 4."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)).astype(x.dtype) * weight
