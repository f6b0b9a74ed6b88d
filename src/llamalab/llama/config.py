"""The shape of a Llama."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Everything about a Llama that is not a weight. Hashable, so it can be static under `jax.jit`.

    Attributes:
        dim: width of the residual stream.
        n_layers: transformer blocks.
        n_heads: query heads.
        n_kv_heads: key and value heads; each serves n_heads / n_kv_heads query heads.
        head_dim: width of one head.
        ffn_dim: hidden width of the SwiGLU block.
        vocab_size: rows of the embedding.
        max_seq_len: longest sequence the model is meant for, tokens.
        rope_theta: base of the rotary frequencies.
        norm_eps: added to the mean square under the root in RMSNorm.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    max_seq_len: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
