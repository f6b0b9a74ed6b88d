"""One model on one device and on four that a CPU passes for; prints what was found as JSON. Run by test_mesh.py.

XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.llama.four_devices MODEL.gguf
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llamalab.checkpoints.checkpoint import LAYER_NAMES
from llamalab.engine import GenerateRequest, Generation, SamplingParams
from llamalab.engines.jax import JaxEngine
from llamalab.errors import ConfigError
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.mesh import device_bytes, parse_mesh, place, sharded_cache
from llamalab.llama.model import xfmr
from llamalab.llama.products import quantize_int8
from llamalab.llama.weights import LayerWeights, XfmrWeights
from tests.llama.random_weights import random_weights

CONFIG = LlamaConfig(
    dim=64, n_layers=1, n_heads=8, n_kv_heads=4, head_dim=8, ffn_dim=128, vocab_size=264, max_seq_len=64
)
BATCH, LENGTH = 4, 16
MESHES = ("tensor=4", "data=2,tensor=2")


def main(model: str) -> dict[str, Any]:
    """Everything that test_mesh.py asserts."""
    jax.config.update("jax_disable_most_optimizations", True)
    weights = random_weights(CONFIG, seed=5)
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (BATCH, 12))
    alone = _logits(weights, ids, KVCache.new(CONFIG, BATCH, LENGTH))
    alone_int8 = _logits(quantize_int8(weights), ids, KVCache.new(CONFIG, BATCH, LENGTH))
    found: dict[str, Any] = {"devices": len(jax.devices()), "spread": float(np.std(alone))}
    for text in MESHES:
        mesh = parse_mesh(text)
        spread = _placed(weights, place(mesh, CONFIG))
        cache = sharded_cache(mesh, CONFIG, BATCH, LENGTH)
        narrow = quantize_int8(spread)
        found[text] = {
            "weights": sorted(device_bytes(spread).values()),
            "cache": sorted(device_bytes(cache).values()),
            "apart": float(np.abs(_logits(spread, ids, cache) - alone).max()),
            "int8": sorted(device_bytes(narrow.layer_weights[0].w1).values()),
            "int8 apart": float(
                np.abs(_logits(narrow, ids, sharded_cache(mesh, CONFIG, BATCH, LENGTH)) - alone_int8).max()
            ),
        }
    found["refused"] = [_refusal("tensor=3"), _refusal("tensor=8")]
    found["texts"] = {str(options): _text(model, **options) for options in ({}, {"mesh": "tensor=2"})}
    return found


def _logits(weights: XfmrWeights, ids: np.ndarray, cache: KVCache) -> np.ndarray:
    """Of a prompt, then of one token more through the cache."""
    forward = jax.jit(lambda weights, ids, position, cache: xfmr(weights, CONFIG, ids, position, cache))
    first, cache = forward(weights, ids[:, :-1], jnp.int32(0), cache)
    last, _ = forward(weights, ids[:, -1:], jnp.int32(ids.shape[1] - 1), cache)
    return np.concatenate([first, last], axis=1)


def _placed(weights: XfmrWeights, put: Any) -> XfmrWeights:
    layers = tuple(
        LayerWeights(
            **{field: put(f"layers.{i}.{name}.weight", getattr(layer, field)) for field, name in LAYER_NAMES.items()}
        )
        for i, layer in enumerate(weights.layer_weights)
    )
    top = put("tok_embeddings.weight", weights.tok_embeddings), put("norm.weight", weights.norm)
    return XfmrWeights(*top, put("output.weight", weights.output), layers)


def _refusal(text: str) -> str:
    try:
        place(parse_mesh(text), CONFIG)
    except ConfigError as error:
        return str(error)
    return ""


def _text(model: str, **options: Any) -> list[int]:
    with JaxEngine(model, n_seq=2, n_ctx=64, **options) as engine:
        asked = GenerateRequest(list(range(5, 25)), SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
        (done,) = (event for event in engine.generate([asked]) if isinstance(event, Generation))
        return list(done.ids)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
