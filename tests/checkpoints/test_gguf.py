from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from llamalab.checkpoints.gguf import BPEVocabulary, TensorType, named_tensors, write_gguf
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.llama.config import LlamaConfig
from tests.llama.random_weights import random_weights

CONFIG = LlamaConfig(
    dim=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=32, ffn_dim=96, vocab_size=262, max_seq_len=128
)


def byte_vocabulary(size: int) -> BPEVocabulary:
    """One token per byte and one merge, then control tokens."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    control = [f"<|{i}|>" for i in range(size - len(tokens))]
    return BPEVocabulary(
        [*tokens, *control],
        ["t h"],
        control=frozenset(range(len(tokens), size)),
        bos_id=None,
        eos_id=size - 1,
        pad_id=None,
        pre="gpt-2",
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 0.0), ("F16", 1e-3), ("Q8_0", 2e-2)])
def test_tensors_come_back(tmp_path: Path, dtype: TensorType, tolerance: float) -> None:
    """The reader of the format's own library reads back what was written, norms bit for bit."""
    weights = random_weights(CONFIG)
    path = tmp_path / "m.gguf"
    write_gguf(path, weights, CONFIG, byte_vocabulary(262), name="m", dtype=dtype)
    read = {t.name: t for t in gguf.GGUFReader(path).tensors}
    expected = dict(named_tensors(weights))
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        values = gguf.quants.dequantize(read[name].data, read[name].tensor_type)
        np.testing.assert_allclose(values, array, atol=(tolerance if array.ndim == 2 else 0.0) * np.abs(array).max())
    matrices = {t.tensor_type.name for t in read.values() if len(t.shape) == 2}
    assert matrices == {dtype}


def test_rows_that_fill_no_block_stay_float(tmp_path: Path) -> None:
    """A matrix whose rows are no multiple of 32 is written as F32 and not broken."""
    config = LlamaConfig(
        dim=48, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=32, ffn_dim=96, vocab_size=262, max_seq_len=64
    )
    path = tmp_path / "m.gguf"
    write_gguf(path, random_weights(config), config, byte_vocabulary(262), name="m", dtype="Q8_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"


def test_what_is_written_is_what_loads(tmp_path: Path) -> None:
    """Shape, template, recommended sampling and control tokens arrive in the engine."""
    path = tmp_path / "m.gguf"
    weights = random_weights(CONFIG)
    write_gguf(
        path,
        weights,
        CONFIG,
        byte_vocabulary(262),
        name="m",
        chat_template="{{ 'x' }}",
        sampling={"temp": 0.25, "top_k": 7},
    )
    assert not list(tmp_path.glob("*.part"))
    with LlamaCppEngine(path) as engine:
        info = engine.info
    assert (info.name, info.context_length, info.n_vocab) == ("m", 128, 262)
    assert info.n_params == sum(array.size for _, array in named_tensors(weights))
    assert (info.chat_template, info.eos_id, info.add_bos) == ("{{ 'x' }}", 261, False)
    assert dict(info.sampling) == {"temperature": 0.25, "top_k": 7}
    assert info.special_tokens["<|3|>"] == 260
