"""What the headers of a Hugging Face folder say, of any architecture, in the terms of `Info`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamalab.checkpoints.huggingface_config import CONFIG
from llamalab.checkpoints.json_file import read_json
from llamalab.checkpoints.safetensors_file import Entry, read_entries
from llamalab.checkpoints.stored import FLOAT_TYPES, Stored, looks_same
from llamalab.errors import ModelFileError
from llamalab.lab.info import (
    ExpertsInfo,
    FileInfo,
    Info,
    MlaInfo,
    RopeInfo,
    TensorInfo,
    common_type,
    type_counts,
)
from llamalab.lab.info_tokenizer import folder_chat_template, folder_tokenizer

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_BUFFER = "rotary_emb.inv_freq"
"""Old files carry the rotary frequencies beside the weights."""

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
_OUTPUT = "lm_head.weight"
_WIDTH = ("hidden_size", "n_embd", "d_model")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_TEXT = ("text_config", "llm_config")
"""Where models that see or hear keep the settings of their text model."""


def huggingface_info(folder: Path) -> Info:
    """Describe a folder with a config.json and safetensors.

    Raises:
        ModelFileError: config.json, the index or a file of weights is missing, cut off or damaged.
    """
    config = read_json(folder / CONFIG)
    text = next((part for key in _TEXT if isinstance(part := config.get(key), dict)), {})
    said = _Said({**config, **text})
    files = _shards(folder)
    entries: dict[str, tuple[Path, Entry]] = {}
    for file in files:
        for name, entry in read_entries(file).items():
            entries.setdefault(name, (file, entry))
    tensors = tuple(TensorInfo(n, e.shape, e.dtype, e.nbytes, f) for n, (f, e) in entries.items())
    embedding = next((name for name in entries if name.endswith(_EMBEDDINGS)), None)
    output = next((name for name in entries if name.endswith(_OUTPUT)), None)
    copy = embedding is not None and output is not None and _copies(entries[embedding], entries[output])
    counted = tuple(t for t in tensors if not t.name.endswith(_BUFFER) and not (copy and t.name == output))
    method = _method(config)
    heads, dim = said.integer("num_attention_heads", "n_head", "num_heads"), said.integer(*_WIDTH)
    head = said.integer("head_dim") or (dim // heads if dim and heads else None)
    tokenizer, warnings = folder_tokenizer(folder, said.integer("vocab_size"))
    if method is not None:
        warnings.append(f"The weights are quantised ({method}): packed values are counted as they are stored.")
    return Info(
        path=folder,
        format="safetensors",
        name=Path(str(config.get("_name_or_path") or "")).name or folder.name,
        architecture=_architecture(config),
        quantisation=method or common_type(counted),
        n_params=sum(math.prod(tensor.shape) for tensor in counted),
        tensor_bytes=sum(tensor.n_bytes for tensor in tensors),
        types=type_counts(tensors),
        files=tuple(FileInfo(file, file.stat().st_size) for file in files),
        tensors=tensors,
        context_length=said.integer(*_CONTEXT),
        n_layers=said.integer("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        dim=dim,
        n_heads=heads,
        n_kv_heads=said.integer("num_key_value_heads", "num_kv_heads", "n_head_kv") or heads,
        ffn_dim=said.integer("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
        key_length=head,
        value_length=said.integer("v_head_dim") or head,
        n_vocab=entries[embedding][1].shape[0] if embedding else said.integer("vocab_size"),
        tied=(copy or output is None) if embedding else None,
        sliding_window=said.integer("sliding_window") if said.values.get("use_sliding_window", True) else None,
        rope=_rope(said),
        experts=_experts(said),
        mla=_mla(said),
        tokenizer=tokenizer,
        chat_template=folder_chat_template(folder, warnings),
        metadata=config,
        warnings=tuple(warnings),
    )


class _Said:
    """Settings as far as they are of the expected type, under whichever of several names they have."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def integer(self, *names: str) -> int | None:
        found = (self.values.get(name) for name in names)
        return next((value for value in found if type(value) is int and 0 <= value < 2**63), None)

    def number(self, *names: str) -> float | None:
        found = (self.values.get(name) for name in names)
        return next((float(v) for v in found if isinstance(v, int | float) and abs(v) < 1e300), None)


def _architecture(config: Mapping[str, Any]) -> str | None:
    listed = config.get("architectures")
    first = listed[0] if isinstance(listed, list) and listed else config.get("model_type")
    return first if isinstance(first, str) else None


def _shards(folder: Path) -> list[Path]:
    """The files of weights: those that the index names, or all there are."""
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if not (folder / _INDEX).is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelFileError(f"{folder} is incomplete: there is neither {_WHOLE} nor {_INDEX}.")
        return files
    places = read_json(folder / _INDEX).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) and all(map(_is_name, places.values())) else set()
    if not names:
        raise ModelFileError(f"{folder / _INDEX} is damaged: it has no weight_map from tensors to files.")
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ModelFileError(
            f"{folder} is incomplete: of {len(names)} shards {len(missing)} are missing, the first is {missing[0]}."
        )
    return [folder / name for name in sorted(names)]


def _is_name(value: object) -> bool:
    """Whether it names a file in the folder itself."""
    return isinstance(value, str) and "\0" not in value and Path(value).name == value


def _copies(one: tuple[Path, Entry], other: tuple[Path, Entry]) -> bool:
    stored = [Stored(f, e.offset, e.dtype, e.shape) for f, e in (one, other) if e.dtype in FLOAT_TYPES and e.nbytes]
    return len(stored) == 2 and looks_same(*stored)


def _method(config: Mapping[str, Any]) -> str | None:
    """The method by which the weights are quantised, e.g. "gptq, 4 bits"."""
    said = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(said, dict):
        return None
    bits = said.get("bits") or (4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else None)
    method = str(said.get("quant_method") or "quantised")
    return f"{method}, {bits} bits" if isinstance(bits, int) else method


def _rope(said: _Said) -> RopeInfo | None:
    parameters = said.values.get("rope_parameters") or said.values.get("rope_scaling")
    own = parameters if isinstance(parameters, dict) else {}
    given = _Said({**said.values, **own})
    kind = own.get("rope_type") or own.get("type")
    scaling = kind if isinstance(kind, str) and kind != "default" else None
    found = RopeInfo(
        base=given.number("rope_theta", "rotary_emb_base"),
        scaling=scaling,
        factor=_Said(own).number("factor") if scaling else None,
        original_context=given.integer("original_max_position_embeddings") if scaling else None,
    )
    return None if found == RopeInfo() else found


def _experts(said: _Said) -> ExpertsInfo | None:
    total = said.integer("num_local_experts", "num_experts", "n_routed_experts")
    if not total:
        return None
    return ExpertsInfo(
        total,
        said.integer("num_experts_per_tok", "num_experts_per_token", "experts_per_token"),
        said.integer("n_shared_experts", "num_shared_experts"),
        said.integer("moe_intermediate_size"),
    )


def _mla(said: _Said) -> MlaInfo | None:
    rank = said.integer("kv_lora_rank")
    return MlaInfo(rank, said.integer("q_lora_rank"), said.integer("qk_rope_head_dim")) if rank else None
