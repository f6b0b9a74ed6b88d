"""The shape of a Llama."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3's stretching of the slow rotary frequencies.

    Attributes:
        factor: by which the slowest are divided (8 for 3.1 and 3.3, 32 for 3.2 1B and 3B).
        low_freq_factor: wavelengths above original_max_seq_len / low_freq_factor are divided by `factor`.
        high_freq_factor: wavelengths below original_max_seq_len / high_freq_factor stay; between, a blend.
        original_max_seq_len: context of the first training stage, tokens.

    Source: `apply_scaling` of Meta's reference model; `rope_type: llama3` of Hugging Face.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192


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
        rope_scaling: Llama 3's scaling of the frequencies; None for none.
        sliding_window: a token sees itself and the sliding_window - 1 tokens before it; None: all before it.
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
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
