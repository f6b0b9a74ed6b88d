"""Random weights for tests, drawn by NumPy: nothing to compile."""

from __future__ import annotations

import numpy as np

from llamalab.llama.config import LlamaConfig
from llamalab.llama.weights import LayerWeights, XfmrWeights


def random_weights(
    config: LlamaConfig, seed: int = 0, *, tied: bool = False, embedding_scale: float = 1.0
) -> XfmrWeights:
    """Normal matrices scaled by their width, norms around 1."""
    rng = np.random.default_rng(seed)
    D, F = config.dim, config.ffn_dim
    N, M = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

    def norm() -> np.ndarray:
        return rng.uniform(0.5, 1.5, D).astype(np.float32)

    layers = tuple(
        LayerWeights(
            matrix(N, D),
            matrix(M, D),
            matrix(M, D),
            matrix(D, N),
            matrix(F, D),
            matrix(D, F),
            matrix(F, D),
            norm(),
            norm(),
        )
        for _ in range(config.n_layers)
    )
    embedding = (rng.standard_normal((config.vocab_size, D)) * embedding_scale).astype(np.float32)
    return XfmrWeights(embedding, norm(), None if tied else matrix(config.vocab_size, D), layers)
