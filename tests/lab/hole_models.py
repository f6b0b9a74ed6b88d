"""Headers of models of several architectures, their weights a hole: what llama.cpp lays out, it need not load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf

from llamalab.lab.memory_copies import write_hole

Tensors = dict[str, tuple[int, ...]]
VOCAB, CONTEXT = 512, 8192
_LAST_NORM = {"lfm2": "token_embd_norm"}


def write(
    path: Path,
    architecture: str,
    blocks: list[Tensors],
    dim: int,
    fields: Mapping[str, object],
    *,
    type: str = "F32",
    vocab: int = VOCAB,
) -> Path:
    """A header with these blocks, an embedding that is the output too, and `fields` under the architecture's name."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(dim)
    writer.add_block_count(len(blocks))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("none")
    for name, value in fields.items():
        key = f"{architecture}.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, int(str(value)))
    shapes = {"token_embd": (vocab, dim), _LAST_NORM.get(architecture, "output_norm"): (dim,)}
    for i, block in enumerate(blocks):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    full = {n if n.endswith((".bias", "ssm_a", "ssm_d")) else f"{n}.weight": shape for n, shape in shapes.items()}
    write_hole(writer, path, {n: (shape, type if len(shape) > 1 else "F32") for n, shape in full.items()})
    return path


def attention(dim: int, heads: int, kv: int, head: int) -> Tensors:
    return {
        "attn_norm": (dim,),
        "attn_q": (heads * head, dim),
        "attn_k": (kv * head, dim),
        "attn_v": (kv * head, dim),
        "attn_output": (dim, heads * head),
    }


def feed_forward(dim: int, ffn: int) -> Tensors:
    return {"ffn_norm": (dim,), "ffn_gate": (ffn, dim), "ffn_up": (ffn, dim), "ffn_down": (dim, ffn)}


def llama(
    path: Path,
    *,
    layers: int = 3,
    dim: int = 256,
    heads: int = 8,
    kv: int = 2,
    head: int = 32,
    ffn: int = 512,
    **kind: Any,
) -> Path:
    fields = {"attention.head_count": heads, "attention.head_count_kv": kv, "feed_forward_length": ffn}
    fields |= {"attention.key_length": head, "attention.value_length": head, "rope.dimension_count": head}
    return write(
        path, "llama", [attention(dim, heads, kv, head) | feed_forward(dim, ffn)] * layers, dim, fields, **kind
    )


def openelm(path: Path) -> Path:
    """Heads and feed-forward widths differ between layers."""
    dim, head, heads, kv, ffn = 256, 64, [4, 8, 12], [1, 2, 3], [256, 512, 768]
    blocks: list[Tensors] = [
        {
            "attn_norm": (dim,),
            "attn_qkv": ((h + 2 * k) * head, dim),
            "attn_q_norm": (head,),
            "attn_k_norm": (head,),
            "attn_output": (dim, h * head),
            **feed_forward(dim, f),
        }
        for h, k, f in zip(heads, kv, ffn, strict=True)
    ]
    fields = {"attention.head_count": heads, "attention.head_count_kv": kv, "feed_forward_length": ffn}
    return write(path, "openelm", blocks, dim, fields | {"attention.key_length": head, "attention.value_length": head})


def gemma2(path: Path) -> Path:
    """Every other layer has a sliding window."""
    dim, heads, kv, head, ffn = 256, 4, 2, 64, 512
    norms: Tensors = {"post_attention_norm": (dim,), "post_ffw_norm": (dim,)}
    blocks = [attention(dim, heads, kv, head) | feed_forward(dim, ffn) | norms] * 4
    fields = {"attention.head_count": heads, "attention.head_count_kv": kv, "feed_forward_length": ffn}
    fields |= {"attention.key_length": head, "attention.value_length": head, "attention.sliding_window": 512}
    return write(path, "gemma2", blocks, dim, fields)


def gemma3(path: Path) -> Path:
    """One layer in six sees everything."""
    dim, heads, kv, head, ffn = 256, 4, 1, 64, 512
    norms: Tensors = {"post_attention_norm": (dim,), "post_ffw_norm": (dim,)}
    norms |= {"attn_q_norm": (head,), "attn_k_norm": (head,)}
    blocks = [attention(dim, heads, kv, head) | feed_forward(dim, ffn) | norms] * 7
    fields = {"attention.head_count": heads, "attention.head_count_kv": kv, "feed_forward_length": ffn}
    fields |= {"attention.key_length": head, "attention.value_length": head, "attention.sliding_window": 1024}
    return write(path, "gemma3", blocks, dim, fields)


def deepseek2(path: Path) -> Path:
    """Multi-head latent attention: one latent for each token, no values."""
    dim, heads, rope, nope, value, q_rank, kv_rank, ffn = 256, 4, 32, 64, 64, 96, 128, 512
    block: Tensors = {
        "attn_norm": (dim,),
        "attn_q_a_norm": (q_rank,),
        "attn_kv_a_norm": (kv_rank,),
        "attn_q_a": (q_rank, dim),
        "attn_q_b": (heads * (nope + rope), q_rank),
        "attn_kv_a_mqa": (kv_rank + rope, dim),
        "attn_k_b": (heads, kv_rank, nope),
        "attn_v_b": (heads, value, kv_rank),
        "attn_output": (dim, heads * value),
        **feed_forward(dim, ffn),
    }
    fields: dict[str, object] = {
        "attention.head_count": heads,
        "attention.head_count_kv": 1,
        "attention.key_length": kv_rank + rope,
        "attention.value_length": kv_rank,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": value,
        "attention.q_lora_rank": q_rank,
        "attention.kv_lora_rank": kv_rank,
        "rope.dimension_count": rope,
        "feed_forward_length": ffn,
        "leading_dense_block_count": 3,
        "expert_feed_forward_length": 64,
        "expert_shared_count": 1,
    }
    return write(path, "deepseek2", [block] * 3, dim, fields)


def mamba(path: Path) -> Path:
    """No attention: a state for each sequence, whatever its length."""
    dim, inner, state, rank = 256, 512, 16, 16
    block: Tensors = {
        "attn_norm": (dim,),
        "ssm_in": (2 * inner, dim),
        "ssm_conv1d": (inner, 4),
        "ssm_conv1d.bias": (inner,),
        "ssm_x": (rank + 2 * state, inner),
        "ssm_dt": (inner, rank),
        "ssm_dt.bias": (inner,),
        "ssm_a": (inner, state),
        "ssm_d": (inner,),
        "ssm_out": (dim, inner),
    }
    fields = {"ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": rank}
    fields |= {"attention.head_count": 0, "feed_forward_length": 0}
    return write(path, "mamba", [block] * 3, dim, fields)


def lfm2(path: Path) -> Path:
    """Short convolutions, and attention in every third layer."""
    dim, heads, head, ffn, kv = 256, 4, 64, 512, [0, 0, 2, 0, 0, 2]
    convolution: Tensors = {
        "attn_norm": (dim,),
        "shortconv.conv": (dim, 3),
        "shortconv.in_proj": (3 * dim, dim),
        "shortconv.out_proj": (dim, dim),
    }
    norms: Tensors = {"attn_q_norm": (head,), "attn_k_norm": (head,)}
    blocks = [(attention(dim, heads, n, head) | norms if n else convolution) | feed_forward(dim, ffn) for n in kv]
    fields = {"attention.head_count": heads, "attention.head_count_kv": kv, "feed_forward_length": ffn}
    return write(path, "lfm2", blocks, dim, fields | {"shortconv.l_cache": 3})


MODELS: Mapping[str, Callable[[Path], Path]] = {
    "llama": llama,
    "openelm": openelm,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "deepseek2": deepseek2,
    "mamba": mamba,
    "lfm2": lfm2,
}
