"""Writing a Llama as a GGUF file, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import gguf
import numpy as np

from llamalab.checkpoints.checkpoint import LAYER_NAMES, Checkpoint, Tensor
from llamalab.checkpoints.dtypes import FloatType, values_in
from llamalab.checkpoints.gguf_names import ROPE_TABLE, SAMPLING_KEYS, gguf_names
from llamalab.checkpoints.gguf_shape import add_shape
from llamalab.checkpoints.stored import FLOAT_TYPES, byte_size
from llamalab.checkpoints.tokenizer_gguf import write_gguf_vocabulary
from llamalab.checkpoints.vocabulary import Vocabulary
from llamalab.errors import ConfigError
from llamalab.llama.config import LlamaConfig
from llamalab.llama.rope import rope_divisors
from llamalab.llama.weights import LayerWeights, XfmrWeights

Array: TypeAlias = np.ndarray[Any, Any]
TensorType: TypeAlias = Literal["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]
TENSOR_TYPES: tuple[TensorType, ...] = get_args(TensorType)
"""What matrices can be written as."""

_STEP = 8 << 20
"""Values quantised at once."""


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


def write_gguf_checkpoint(checkpoint: Checkpoint, path: Path, dtype: TensorType) -> tuple[str, ...]:
    """Write `path`, whole or not at all; llama.cpp loads it.

    Args:
        checkpoint: of any format.
        path: of the file; replaced if it exists.
        dtype: of the matrices; norms stay F32, and so do matrices whose rows are no multiple of a block.

    Returns:
        What the file cannot say, one sentence each.

    Raises:
        ConfigError: a dtype that cannot be written, or values too large for it.
        ModelFileError: a value that is not finite, or a tokeniser that llama.cpp does not have.
        OSError: the disk is full or the folder not writable.
    """
    names = gguf_names(checkpoint.config.n_layers)
    given = checkpoint.sampling
    sampling = {key: given[setting] for setting, (key, _) in SAMPLING_KEYS.items() if setting in given}
    notes = _write(
        path,
        [(names[name], tensor) for name, tensor in checkpoint.tensors.items()],
        checkpoint.config,
        name=checkpoint.name,
        dtype=dtype,
        vocabulary=checkpoint.vocabulary,
        chat_template=checkpoint.chat_template,
        sampling=sampling,
    )
    if checkpoint.config.sliding_window is not None:
        notes += (f"llama.cpp does not apply the sliding window of {checkpoint.config.sliding_window} tokens.",)
    return notes


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
    """Write `path` from weights in memory, whole or not at all.

    Args:
        path: of the file.
        weights: query and key rows in Meta's interleaved order, which is GGUF's.
        config: the shape.
        vocabulary: of the tokeniser.
        name: of the model.
        dtype: as in `write_gguf_checkpoint`.
        chat_template: Jinja source.
        sampling: recommended settings by the names of the `general.sampling` keys, e.g. {"temp": 0.0}.
        general: more `general` keys, e.g. {"license": "mit"}.
    """
    tensors = [
        (tensor, Tensor(tensor, array.shape, "F32", lambda array=array: np.asarray(array, np.float32)))  # type: ignore[misc]
        for tensor, array in _named(weights)
    ]
    _write(
        path,
        tensors,
        config,
        name=name,
        dtype=dtype,
        vocabulary=_as_vocabulary(vocabulary),
        chat_template=chat_template,
        sampling=sampling or {},
        general=general or {},
    )


def named_tensors(weights: XfmrWeights) -> Iterator[tuple[str, Array]]:
    """Each tensor under its GGUF name, as float32."""
    return ((name, np.asarray(array, np.float32)) for name, array in _named(weights))


def _named(weights: XfmrWeights) -> Iterator[tuple[str, Any]]:
    whole = {"tok_embeddings": weights.tok_embeddings, "norm": weights.norm, "output": weights.output}
    arrays = {f"{name}.weight": array for name, array in whole.items() if array is not None}
    for i, layer in enumerate(weights.layer_weights):
        for field in LayerWeights._fields:
            arrays[f"layers.{i}.{LAYER_NAMES[field]}.weight"] = getattr(layer, field)
    return ((ours, arrays[name]) for name, ours in gguf_names(len(weights.layer_weights)).items() if name in arrays)


def _write(
    path: Path,
    tensors: Sequence[tuple[str, Tensor]],
    config: LlamaConfig,
    *,
    name: str,
    dtype: TensorType,
    vocabulary: Vocabulary,
    chat_template: str | None,
    sampling: Mapping[str, float],
    general: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    if dtype not in TENSOR_TYPES:
        raise ConfigError(f"A GGUF file cannot be written as '{dtype}'; there are {', '.join(TENSOR_TYPES)}.")
    if config.rope_scaling is not None:
        tensors = [*tensors, (ROPE_TABLE, _rope_table(config))]
    temporary = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(temporary, "llama")
    try:
        writer.add_name(name)
        for key, text in (general or {}).items():
            writer.add_string(f"general.{key}", text)
        for key, value in sampling.items():
            add = writer.add_int32 if isinstance(value, int) else writer.add_float32
            add(f"general.sampling.{key}", value)
        writer.add_file_type(_file_type(dtype))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_shape(writer, config)
        notes = write_gguf_vocabulary(writer, vocabulary)
        if chat_template is not None:
            writer.add_chat_template(chat_template)
        for label, tensor in tensors:
            kind = _stored_type(tensor, dtype)
            row = byte_size(kind, tensor.shape[-1:])
            size = byte_size(kind, tensor.shape)
            writer.add_tensor_info(
                label, (*tensor.shape[:-1], row), np.dtype(np.uint8), size, gguf.GGMLQuantizationType[kind]
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in tensors:
            writer.write_tensor_data(_stored_bytes(tensor, _stored_type(tensor, dtype), path))
        writer.close()
        temporary.replace(path)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)
    return notes


def _file_type(dtype: TensorType) -> gguf.LlamaFileType:
    return gguf.LlamaFileType["ALL_F32" if dtype == "F32" else f"MOSTLY_{dtype}"]


def _stored_type(tensor: Tensor, dtype: TensorType) -> TensorType:
    """`dtype` for matrices whose rows are whole blocks, F32 for everything else: llama.cpp wants its norms so."""
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
    return "F32" if len(tensor.shape) == 1 or tensor.shape[-1] % block else dtype


def _stored_bytes(tensor: Tensor, dtype: TensorType, path: Path) -> Array:
    """A tensor's bytes as they stand in the file."""
    if dtype in FLOAT_TYPES:
        float_type: FloatType = dtype  # type: ignore[assignment]
        return np.ascontiguousarray(values_in(tensor, float_type, path)).view(np.uint8)
    values = values_in(tensor, "F32", path)
    packed = np.empty((values.shape[0], byte_size(dtype, values.shape[-1:])), np.uint8)
    step = max(1, _STEP // values.shape[-1])
    for start in range(0, len(values), step):
        rows = np.ascontiguousarray(values[start : start + step])
        packed[start : start + step] = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[dtype])
    return packed


def _rope_table(config: LlamaConfig) -> Tensor:
    divisors = rope_divisors(config.head_dim, config.rope_theta, config.rope_scaling).astype(np.float32)
    return Tensor(ROPE_TABLE, divisors.shape, "F32", lambda: divisors)


def _as_vocabulary(vocabulary: BPEVocabulary) -> Vocabulary:
    return Vocabulary(
        kind="bpe",
        tokens=vocabulary.tokens,
        types=["control" if i in vocabulary.control else "normal" for i in range(len(vocabulary.tokens))],
        merges=vocabulary.merges,
        pre=vocabulary.pre,
        bos_id=vocabulary.bos_id,
        eos_id=vocabulary.eos_id,
        pad_id=vocabulary.pad_id,
        stop_ids=frozenset({vocabulary.eos_id}),
        add_bos=vocabulary.bos_id is not None,
    )
