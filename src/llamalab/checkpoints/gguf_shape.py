"""The shape of a Llama as metadata of a GGUF file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamalab.llama.config import LlamaConfig

if TYPE_CHECKING:
    import gguf


def add_shape(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
    """Add the keys of the architecture to a GGUF file in the making."""
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_scaling is not None:
        writer.add_rope_scaling_orig_ctx_len(config.rope_scaling.original_max_seq_len)
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
