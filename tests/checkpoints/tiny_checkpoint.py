"""Random checkpoints in memory, a few kilobytes, for tests of readers and writers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import pre_tokenizers

from llamalab.checkpoints.checkpoint import Checkpoint, Tensor, tensor_shapes
from llamalab.checkpoints.stored import numpy_type
from llamalab.checkpoints.vocabulary import Vocabulary
from llamalab.llama.config import LlamaConfig, RopeScaling

N_TOKENS = 262

PLAIN = LlamaConfig(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, vocab_size=N_TOKENS, max_seq_len=512
)
SCALED = LlamaConfig(
    dim=64,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=32,
    ffn_dim=128,
    vocab_size=N_TOKENS,
    max_seq_len=131_072,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(32.0),
)


def vocabulary(n_tokens: int = N_TOKENS) -> Vocabulary:
    """One token per byte and one merge, then control tokens."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    control = ["<|bos|>", "<|eos|>", *(f"<|{i}|>" for i in range(n_tokens - len(tokens) - 2))]
    bos = len(tokens)
    return Vocabulary(
        kind="bpe",
        tokens=[*tokens, *control],
        types=["normal"] * len(tokens) + ["control"] * len(control),
        merges=["t h"],
        pre="gpt-2",
        bos_id=bos,
        eos_id=bos + 1,
        stop_ids=frozenset({bos + 1}),
        add_bos=True,
    )


def checkpoint(
    config: LlamaConfig = PLAIN, *, dtype: str = "F32", norm_dtype: str | None = None, tied: bool = False, seed: int = 0
) -> Checkpoint:
    """Random weights; every value is one that the dtype holds."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config, tied=tied).items():
        kind = dtype if len(shape) > 1 else norm_dtype or dtype
        drawn = rng.standard_normal(shape) / shape[-1] ** 0.5 if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        values = drawn.astype(np.float32).astype(numpy_type(kind))
        tensors[name] = Tensor(name, shape, kind, lambda values=values: values)
    return Checkpoint(
        path=Path("memory"),
        format="gguf",
        name="tiny",
        config=config,
        rope_source="made",
        tensors=tensors,
        vocabulary=vocabulary(config.vocab_size),
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
        sampling={"temperature": 0.5, "top_k": 7},
    )


def bits(of: Checkpoint) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor."""
    values = {name: tensor.read() for name, tensor in of.tensors.items()}
    return {name: (str(array.dtype), array.tobytes()) for name, array in values.items()}
