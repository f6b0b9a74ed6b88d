"""Tiny random models whose logits the references have computed: tests/golden/llama/logits.npz.

NumPy only: the script that asks the references has no JAX, and both sides draw the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llamalab.checkpoints.checkpoint import EMBEDDING, tensor_shapes
from llamalab.llama.config import LlamaConfig, RopeScaling

GREEDY = 200
"""Tokens that transformers goes on with, greedily, after the first `PROMPT` tokens of the text."""

PROMPT = 16


@dataclass(frozen=True)
class GoldenModel:
    """One model and the text it is run on.

    `length` tokens; logits over the whole vocabulary are kept at `rows`, those of two tokens at every position.
    """

    name: str
    config: LlamaConfig
    tied: bool
    length: int
    meta: bool = True  # Meta's model has neither a sliding window nor a free head size
    greedy: bool = False

    @property
    def rows(self) -> list[int]:
        return sorted({0, 1, self.length // 3, self.length // 2, self.length - 2, self.length - 1})

    def tokens(self) -> np.ndarray[Any, Any]:
        return np.random.Generator(np.random.PCG64(99)).integers(0, self.config.vocab_size, self.length)

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """By Meta's name: normal matrices scaled by their width, norms around 1, q/k rows interleaved."""
        rng = np.random.Generator(np.random.PCG64(7))
        drawn = {}
        for name, shape in tensor_shapes(self.config, tied=self.tied).items():
            if len(shape) == 1:
                value = rng.uniform(0.5, 1.5, shape)
            else:
                scale = (0.3 if self.tied else 0.1) if name == EMBEDDING else shape[1] ** -0.5
                # Sharper attention than chance gives, so that positions matter.
                value = rng.standard_normal(shape) * scale * (2.0 if name.endswith(("wq.weight", "wk.weight")) else 1.0)
            drawn[name] = value.astype(np.float32)
        return drawn


def _config(**changes: Any) -> LlamaConfig:
    shape: dict[str, Any] = {
        "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "ffn_dim": 192, "vocab_size": 96,
        "max_seq_len": 2048, "rope_theta": 500_000.0,
    }  # fmt: skip
    return LlamaConfig(**shape | changes)


MODELS = (
    GoldenModel("llama-3.1", _config(rope_scaling=RopeScaling(8.0)), tied=False, length=2048),
    GoldenModel("llama-3.2", _config(rope_scaling=RopeScaling(32.0)), tied=True, length=2048, greedy=True),
    GoldenModel("llama-3", _config(), tied=False, length=256),
    GoldenModel("llama-2", _config(n_kv_heads=4, rope_theta=10_000.0, norm_eps=1e-6), tied=False, length=256),
    GoldenModel(
        "mistral",
        _config(head_dim=24, rope_theta=10_000.0, sliding_window=32),
        tied=False,
        length=160,
        meta=False,
    ),
)

ROPES = {
    # Name: head size, theta, scaling of a published model.
    "llama-2-7b": (128, 10_000.0, None),
    "llama-3-8b": (128, 500_000.0, None),
    "llama-3.1-8b": (128, 500_000.0, RopeScaling(8.0)),
    "llama-3.2-1b": (64, 500_000.0, RopeScaling(32.0)),
    "llama-3.2-3b": (128, 500_000.0, RopeScaling(32.0)),
}
