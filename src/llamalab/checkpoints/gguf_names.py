"""What ggml calls the tensors of a Llama and the settings that its file recommends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamalab.checkpoints.checkpoint import EMBEDDING, NORM, OUTPUT

ROPE_TABLE = "rope_freqs.weight"
"""Divisors of the rotary frequencies, no weight."""

SAMPLING_KEYS: Mapping[str, tuple[str, type[Any]]] = {
    "temperature": ("temp", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "penalty_last_n": ("penalty_last_n", int),
    "repeat_penalty": ("penalty_repeat", float),
}
"""Recommended sampling: our name of a setting to that of its `general.sampling` key, and its type."""

_MOST = 2**31
"""Integers of a GGUF's settings have 32 bits."""

_WHOLE = {EMBEDDING: "token_embd.weight", NORM: "output_norm.weight", OUTPUT: "output.weight"}
_IN_LAYER = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}


def gguf_names(n_layers: int) -> dict[str, str]:
    """Meta's name of every tensor to ggml's."""
    layers = {
        f"layers.{i}.{name}.weight": f"blk.{i}.{ours}.weight"
        for i in range(n_layers)
        for name, ours in _IN_LAYER.items()
    }
    return _WHOLE | layers


def recommended_sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by our names, each of its type; what is no number, or none that a GGUF can hold, is left out."""
    found = {}
    for setting, (_, kind) in SAMPLING_KEYS.items():
        value = values.get(setting)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST:
            found[setting] = kind(value)
    return found
