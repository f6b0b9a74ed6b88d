"""Opening a GGUF file as a checkpoint: one file or several parts, float or quantised."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from llamalab.checkpoints.checkpoint import EMBEDDING, OUTPUT, Checkpoint, Tensor, checked
from llamalab.checkpoints.ggml_types import GGML_TYPES
from llamalab.checkpoints.gguf_file import GgufFile, joined_tensors, read_gguf_parts
from llamalab.checkpoints.gguf_names import ROPE_TABLE, SAMPLING_KEYS, gguf_names, recommended_sampling
from llamalab.checkpoints.scaling import chosen_scaling, scaling_from_divisors
from llamalab.checkpoints.stored import FLOAT_TYPES, Stored, read_values, same_bytes
from llamalab.checkpoints.tokenizer_gguf import vocabulary_from_gguf
from llamalab.checkpoints.vocabulary import check_size
from llamalab.errors import ModelFileError
from llamalab.llama.config import LlamaConfig, RopeScaling

ARCHITECTURE = "llama"

_MOST_LAYERS = 10_000
_LONG_CONTEXT = 8192
_LLAMA_3_THETA, _LLAMA_3_TOKENS = 500_000.0, 128_256

_NEUTRAL: Mapping[str, Any] = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.scale": 0,
    "rope.scale_linear": 1,
    "logit_scale": 1,
    "embedding_scale": 1,
    "residual_scale": 1,
}
"""Settings of ggml that change what is computed, with the value that does not."""


def open_gguf(path: Path, *, rope_factor: float | None = None) -> Checkpoint:
    """Open one file, or any part of a split model.

    Args:
        path: of the file.
        rope_factor: takes the place of the RoPE scaling factor; 1 means no scaling.

    Raises:
        ModelNotFound: no such file.
        ModelFileError: no Llama, damaged, incomplete, without weights, or of a type that cannot be read.
    """
    parts = read_gguf_parts(path)
    first = parts[0]
    settings = _Settings(first)
    _check_kind(settings)
    stored = joined_tensors(parts)
    if not stored:
        raise ModelFileError(f"{first.path} holds a vocabulary only, no weights.")
    config, source, notes = _config(settings, stored, rope_factor)
    vocabulary = check_size(vocabulary_from_gguf(first.fields, first.path), config.vocab_size, first.path)
    # No more names than there are tensors to have them, whatever number of layers the settings claim.
    names = {ours: name for name, ours in gguf_names(min(config.n_layers, len(stored))).items()}
    found = {names.get(name, name): tensor for name, tensor in stored.items() if name != ROPE_TABLE}
    if OUTPUT in found and EMBEDDING in found and same_bytes(found[OUTPUT], found[EMBEDDING]):
        del found[OUTPUT]
    tensors = checked({name: _tensor(name, tensor) for name, tensor in found.items()}, config, first.path)
    return Checkpoint(
        path=first.path,
        format="gguf",
        name=settings.text("general.name") or first.path.stem,
        config=config,
        rope_source=source,
        tensors=tensors,
        vocabulary=vocabulary,
        chat_template=settings.text("tokenizer.chat_template"),
        notes=(*notes, *vocabulary.notes),
        sampling=_recommended(first.fields),
    )


class _Settings:
    """Metadata with its types checked; `name` without the architecture in front."""

    def __init__(self, file: GgufFile) -> None:
        self.path = file.path
        self.fields = file.fields

    def text(self, key: str) -> str | None:
        value = self.fields.get(key)
        return value if isinstance(value, str) else None

    def get(self, name: str) -> Any:
        return self.fields.get(f"{ARCHITECTURE}.{name}")

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer; an array of equal ones counts as one."""
        value = self.get(name)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ModelFileError(f"{self.path}: {ARCHITECTURE}.{name} differs between layers; a Llama's are alike.")
            value = value[0]
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(name, value, "a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.get(name)
        if value is None:
            value = default
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.wrong(name, value, "a positive number")
        return float(value)

    def wrong(self, name: str, value: object, wanted: str) -> ModelFileError:
        key = f"{ARCHITECTURE}.{name}"
        if value is None:
            return ModelFileError(f"{self.path} lacks {key} in its metadata.")
        return ModelFileError(f"{self.path}: {key} is {str(value)[:60]}, not {wanted}.")


def _check_kind(settings: _Settings) -> None:
    path = settings.path
    architecture = settings.text("general.architecture")
    if architecture is None:
        raise ModelFileError(f"{path} names no architecture (general.architecture): this is no model file.")
    kind = settings.text("general.type") or "model"
    if kind != "model":
        raise ModelFileError(f"{path} is of the type '{kind}', not a model.")
    if architecture != ARCHITECTURE:
        raise ModelFileError(
            f"{path} is of the architecture '{architecture}'; only Llamas ('{ARCHITECTURE}') are read here. "
            "The llama_cpp engine may run it."
        )
    experts = settings.get("expert_count")
    if experts:
        raise ModelFileError(f"{path} is a mixture of {experts} experts; only dense Llamas are read here.")
    for name, neutral in _NEUTRAL.items():
        value = settings.get(name)
        if value is not None and value != neutral:
            raise ModelFileError(f"{path} sets {ARCHITECTURE}.{name} to {value}, which this Llama does not have.")


def _config(
    settings: _Settings, stored: Mapping[str, Stored], rope_factor: float | None
) -> tuple[LlamaConfig, str, list[str]]:
    """The shape, where the RoPE scaling is from, and notes."""
    path = settings.path
    if "token_embd.weight" not in stored:
        raise ModelFileError(f"{path} is incomplete: the tensor token_embd.weight is missing.")
    dim, n_heads = settings.integer("embedding_length"), settings.integer("attention.head_count")
    if dim % n_heads and settings.get("attention.key_length") is None:
        raise ModelFileError(f"{path}: a width of {dim} cannot be cut into {n_heads} heads.")
    head_dim = settings.integer("attention.key_length", dim // n_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if settings.integer(name, head_dim) != head_dim:
            raise ModelFileError(
                f"{path}: {ARCHITECTURE}.{name} is {settings.get(name)} with heads of {head_dim}; a Llama's are equal."
            )
    n_kv_heads = settings.integer("attention.head_count_kv", n_heads)
    if n_heads % n_kv_heads or head_dim % 2:
        raise ModelFileError(f"{path}: {n_heads} heads of {head_dim}, {n_kv_heads} for keys: no Llama has that.")
    n_layers = settings.integer("block_count")
    if n_layers > _MOST_LAYERS:
        raise ModelFileError(f"{path} is damaged: it says that it has {n_layers} layers.")
    theta = settings.number("rope.freq_base", 10_000.0)
    context = settings.integer("context_length")
    scaling, source, notes = _scaling(settings, stored.get(ROPE_TABLE), theta, head_dim, context, rope_factor)
    window = settings.get("attention.sliding_window")
    config = LlamaConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=settings.integer("feed_forward_length"),
        vocab_size=stored["token_embd.weight"].shape[0],
        max_seq_len=context,
        rope_theta=theta,
        norm_eps=settings.number("attention.layer_norm_rms_epsilon"),
        rope_scaling=scaling,
        sliding_window=settings.integer("attention.sliding_window") if window and window < context else None,
    )
    return config, source, notes


def _scaling(
    settings: _Settings,
    table: Stored | None,
    theta: float,
    head_dim: int,
    context: int,
    rope_factor: float | None,
) -> tuple[RopeScaling | None, str, list[str]]:
    """RoPE scaling, where it is from, and notes."""
    path = settings.path
    kind = settings.get("rope.scaling.type")
    if kind not in (None, "none") and settings.get("rope.scaling.factor") != 1:
        raise ModelFileError(
            f"{path} asks for RoPE scaling of the type '{kind}'; Llama 3's (a table {ROPE_TABLE}) or none can be read."
        )
    if table is None:
        notes = []
        llama_3 = theta == _LLAMA_3_THETA and settings.get("vocab_size") in (None, _LLAMA_3_TOKENS)
        if llama_3 and context > _LONG_CONTEXT and rope_factor is None:
            notes.append(
                f"The file has no {ROPE_TABLE}, which Llama 3.1 and later need beyond {_LONG_CONTEXT:,} tokens; if it "
                "is one of them, give --rope-factor (8 for 3.1 and 3.3, 32 for 3.2)."
            )
        return *chosen_scaling(None, "metadata", rope_factor), notes
    if table.shape != (head_dim // 2,) or table.dtype not in FLOAT_TYPES:
        raise ModelFileError(
            f"{path}: the tensor {ROPE_TABLE} has the shape {list(table.shape)} ({table.dtype}); heads of {head_dim} "
            f"ask for [{head_dim // 2}]."
        )
    length = settings.get("rope.scaling.original_context_length")
    try:
        found = scaling_from_divisors(
            read_values(table).astype(np.float64), theta, length if isinstance(length, int) and length > 0 else None
        )
    except ValueError as error:
        raise ModelFileError(f"{path}: {ROPE_TABLE} is no Llama 3 scaling: it goes {error}.") from None
    return *chosen_scaling(found, "rope_freqs", rope_factor), []


def _tensor(name: str, stored: Stored) -> Tensor:
    if stored.dtype not in FLOAT_TYPES:
        probe = np.zeros(GGML_TYPES[stored.dtype].bytes, np.uint8)
        try:
            gguf.quants.dequantize(probe, gguf.GGMLQuantizationType[stored.dtype])
        except (NotImplementedError, KeyError):  # gguf-py cannot, or has not heard of the type
            raise ModelFileError(
                f"{stored.path}: the tensor {name} is of the type {stored.dtype}, which cannot be read here."
            ) from None
    return Tensor(name, stored.shape, stored.dtype, partial(read_values, stored))


def _recommended(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings that the file asks for."""
    said = {setting: fields.get(f"general.sampling.{key}") for setting, (key, _) in SAMPLING_KEYS.items()}
    return recommended_sampling(said)
