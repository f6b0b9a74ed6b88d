"""Writing a Llama as a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import gguf
import numpy as np

from llamalab.llama.config import LlamaConfig
from llamalab.llama.weights import XfmrWeights

TensorType: TypeAlias = Literal["F32", "F16", "Q8_0"]

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


@dataclass(frozen=True, slots=True)
class BPEVocabulary:
    """A byte-level BPE vocabulary.

    Attributes:
        tokens: in GPT-2's byte alphabet, by id; control tokens as they read.
        merges: "left right", in order.
        control: ids of control tokens.
        bos_id: beginning of sequence, None where there is none.
        eos_id: end of the response.
        pad_id: padding, None where there is none.
        pre: name of the runtime's pre-tokeniser.
    """

    tokens: Sequence[str]
    merges: Sequence[str]
    control: frozenset[int]
    bos_id: int | None
    eos_id: int
    pad_id: int | None
    pre: str


def write_gguf(
    path: Path,
    weights: XfmrWeights,
    config: LlamaConfig,
    vocabulary: BPEVocabulary,
    *,
    name: str,
    dtype: TensorType = "F32",
    chat_template: str | None = None,
    sampling: Mapping[str, float] | None = None,
    general: Mapping[str, str] | None = None,
) -> None:
    """Write `path`, whole or not at all.

    Args:
        path: of the file.
        weights: query and key rows in Meta's interleaved order, which is GGUF's.
        config: the shape.
        vocabulary: of the tokeniser.
        name: of the model.
        dtype: of the matrices; norms stay F32, and so do matrices whose rows are no multiple of a block.
        chat_template: Jinja source.
        sampling: recommended settings by the names of the `general.sampling` keys, e.g. {"temp": 0.0}.
        general: more `general` keys, e.g. {"license": "mit"}.
    """
    temporary = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(temporary, "llama")
    writer.add_name(name)
    for key, text in (general or {}).items():
        writer.add_string(f"general.{key}", text)
    for key, value in (sampling or {}).items():
        add = writer.add_int32 if isinstance(value, int) else writer.add_float32
        add(f"general.sampling.{key}", value)
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    _add_vocabulary(writer, vocabulary)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for tensor, array in named_tensors(weights):
        _add_tensor(writer, tensor, array, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(path)


def named_tensors(weights: XfmrWeights) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Each tensor under its GGUF name, as float32."""
    yield "token_embd.weight", np.asarray(weights.tok_embeddings, np.float32)
    for i, layer in enumerate(weights.layer_weights):
        for name, array in (
            ("attn_norm", layer.attention_norm),
            ("attn_q", layer.wq),
            ("attn_k", layer.wk),
            ("attn_v", layer.wv),
            ("attn_output", layer.wo),
            ("ffn_norm", layer.ffn_norm),
            ("ffn_gate", layer.w1),
            ("ffn_down", layer.w2),
            ("ffn_up", layer.w3),
        ):
            yield f"blk.{i}.{name}.weight", np.asarray(array, np.float32)
    yield "output_norm.weight", np.asarray(weights.norm, np.float32)
    if weights.output is not None:
        yield "output.weight", np.asarray(weights.output, np.float32)


def _add_shape(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
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


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: BPEVocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if i in vocabulary.control else gguf.TokenType.NORMAL
            for i in range(len(vocabulary.tokens))
        ]
    )
    if vocabulary.bos_id is not None:
        writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_eos_token_id(vocabulary.eos_id)
    if vocabulary.pad_id is not None:
        writer.add_pad_token_id(vocabulary.pad_id)
    writer.add_add_bos_token(vocabulary.bos_id is not None)


def _add_tensor(writer: gguf.GGUFWriter, name: str, array: np.ndarray[Any, Any], dtype: TensorType) -> None:
    kind = gguf.GGMLQuantizationType[dtype]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if array.ndim == 1 or dtype == "F32" or array.shape[-1] % block:
        writer.add_tensor(name, array)
    else:
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
