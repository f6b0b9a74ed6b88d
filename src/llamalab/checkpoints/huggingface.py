"""Hugging Face folders: config.json, safetensors in one file or in shards, tokenizer.json.

Query and key rows of a head lie there in halves (0, 2, 4, ..., 1, 3, 5, ... of Meta's order): they are put in order on
the way in and back on the way out.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llamalab.checkpoints.checkpoint import EMBEDDING, NORM, OUTPUT, Array, Checkpoint, Tensor, checked
from llamalab.checkpoints.dtypes import FloatType, in_dtype
from llamalab.checkpoints.gguf_names import recommended_sampling
from llamalab.checkpoints.huggingface_config import CONFIG, made_config, parse_config
from llamalab.checkpoints.json_file import read_json, read_json_if_there
from llamalab.checkpoints.safetensors_file import read_safetensors, write_safetensors
from llamalab.checkpoints.stored import FLOAT_TYPES, Stored, byte_size, read_values, same_bytes
from llamalab.checkpoints.tokenizer_huggingface import (
    read_chat_template,
    vocabulary_from_huggingface,
    write_huggingface_tokenizer,
)
from llamalab.checkpoints.vocabulary import check_size
from llamalab.errors import ConfigError, ModelFileError

SHARD_BYTES = 5_000_000_000
"""Larger models are written as several files of at most this size (unless one tensor alone is larger)."""

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_GENERATION = "generation_config.json"
_BUFFER = "rotary_emb.inv_freq"
"""Old files carry the rotary frequencies beside the weights; they follow from the config."""

_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
}
_WHOLE = {EMBEDDING: "model.embed_tokens.weight", NORM: "model.norm.weight", OUTPUT: "lm_head.weight"}
_IN_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def open_huggingface(folder: Path, *, rope_factor: float | None = None) -> Checkpoint:
    """Open a folder.

    Args:
        folder: with config.json, model.safetensors (or its index and shards) and tokenizer.json.
        rope_factor: takes the place of the RoPE scaling factor; 1 means no scaling.

    Raises:
        ModelFileError: no Llama, or a file missing, cut off or damaged; the message names it.
    """
    folder = folder.absolute()
    raw = read_json(folder / CONFIG)
    config, source = parse_config(raw, folder / CONFIG, rope_factor)
    stored = _stored(folder)
    # No more names than there are tensors to have them, whatever number of layers the settings claim.
    names = {ours: name for name, ours in _names(min(config.n_layers, len(stored))).items()}
    found = {names.get(name, name): tensor for name, tensor in stored.items() if not name.endswith(_BUFFER)}
    notes = _tie(found, tied=raw.get("tie_word_embeddings") is True)
    heads = {"attention.wq.weight": config.n_heads, "attention.wk.weight": config.n_kv_heads}
    tensors = {}
    for name, tensor in found.items():
        n_heads = heads.get(name.split(".", 2)[-1])
        read = partial(read_values, tensor) if n_heads is None else partial(_interleaved, tensor, n_heads)
        tensors[name] = Tensor(name, tensor.shape, tensor.dtype, read)
    tensors = checked(tensors, config, folder)  # so the vocabulary is as large as the settings say
    vocabulary = check_size(vocabulary_from_huggingface(folder), config.vocab_size, folder)
    return Checkpoint(
        path=folder,
        format="safetensors",
        name=Path(str(raw.get("_name_or_path") or "")).name or folder.name,
        config=config,
        rope_source=source,
        tensors=tensors,
        vocabulary=vocabulary,
        chat_template=read_chat_template(folder),
        notes=(*notes, *vocabulary.notes),
        sampling=_recommended(folder / _GENERATION),
    )


def write_huggingface(checkpoint: Checkpoint, folder: Path, dtype: str) -> tuple[str, ...]:
    """Write a folder that transformers loads.

    Args:
        checkpoint: of any format.
        folder: made if it is not there; files of the same names are replaced.
        dtype: of the matrices: F32, F16 or BF16. A norm that would be rounded by it stays F32.

    Returns:
        What a user should know about what was written, one sentence each.

    Raises:
        ConfigError: another dtype, or values too large for it.
        ModelFileError: a value that is not finite.
        OSError: the disk is full or the folder not writable.
    """
    kind = _float_type(dtype)
    config, names = checkpoint.config, _names(checkpoint.config.n_layers)
    heads = {"attention.wq.weight": config.n_heads, "attention.wk.weight": config.n_kv_heads}
    tensors = []
    for name, tensor in in_dtype(checkpoint, kind).tensors.items():
        n_heads = heads.get(name.split(".", 2)[-1])
        read = tensor.read if n_heads is None else partial(_in_halves, tensor.read, n_heads)
        tensors.append(dataclasses.replace(tensor, name=names[name], read=read))
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG, made_config(checkpoint, kind))
    write_huggingface_tokenizer(checkpoint.vocabulary, folder, checkpoint.chat_template)
    _write_weights(folder, tensors)
    _write_generation(folder / _GENERATION, checkpoint)
    return ()


def _float_type(dtype: str) -> FloatType:
    if dtype not in FLOAT_TYPES:
        raise ConfigError(f"safetensors cannot be written as '{dtype}'; there are {', '.join(FLOAT_TYPES)}.")
    return dtype  # type: ignore[return-value]


def _names(n_layers: int) -> dict[str, str]:
    """Meta's name of every tensor to Hugging Face's."""
    layers = {
        f"layers.{i}.{name}.weight": f"model.layers.{i}.{ours}.weight"
        for i in range(n_layers)
        for name, ours in _IN_LAYER.items()
    }
    return _WHOLE | layers


def _stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder, by its name in the files."""
    if (folder / _WEIGHTS).is_file():
        return read_safetensors(folder / _WEIGHTS)
    if not (folder / _INDEX).is_file():
        others = sorted(path.name for path in folder.glob("*.bin"))
        hint = f" There is {others[0]}; save the model as safetensors (save_pretrained)." if others else ""
        raise ModelFileError(f"{folder} is incomplete: there is neither {_WEIGHTS} nor {_INDEX}.{hint}")
    places = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(shard, str) for shard in places.values()):
        raise ModelFileError(f"{folder / _INDEX} is damaged: it has no weight_map from tensors to files.")
    shards, here = sorted(set(places.values())), {path.name for path in folder.iterdir() if path.is_file()}
    if any(Path(shard).name != shard for shard in shards):
        raise ModelFileError(f"{folder / _INDEX} names a file outside its folder.")
    missing = [shard for shard in shards if shard not in here]
    if missing:
        raise ModelFileError(
            f"{folder} is incomplete: of {len(shards)} shards {len(missing)} are missing, the first is "
            f"{missing[0][:80]}."
        )
    inside = {shard: read_safetensors(folder / shard) for shard in shards}
    for name, shard in places.items():
        if name not in inside[shard]:
            raise ModelFileError(f"{folder / shard} does not hold the tensor {name}, which the index places there.")
    return {name: inside[shard][name] for name, shard in places.items()}


def _tie(found: dict[str, Stored], *, tied: bool) -> list[str]:
    """Drop the output projection where it is the embedding; what is to be said about it."""
    if EMBEDDING not in found or OUTPUT not in found:
        return []
    if same_bytes(found[EMBEDDING], found[OUTPUT]):
        del found[OUTPUT]
    elif tied:  # as transformers 5 does
        return ["lm_head.weight is used: it differs from the embedding, to which config.json would tie it."]
    return []


def _interleaved(stored: Stored, n_heads: int) -> Array:
    """Rows of a query or key matrix from halves to Meta's order."""
    values = read_values(stored)
    return values.reshape(n_heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def _in_halves(read: Callable[[], Array], n_heads: int) -> Array:
    """Rows of a query or key matrix from Meta's order to halves."""
    values = read()
    return values.reshape(n_heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def _write_weights(folder: Path, tensors: list[Tensor]) -> None:
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        nbytes = byte_size(tensor.dtype, tensor.shape)
        if shards[-1] and filled + nbytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += nbytes
    if len(shards) == 1:
        write_safetensors(folder / _WEIGHTS, tensors)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard)
        places |= {tensor.name: file for tensor in shard}
    metadata = {
        "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "total_size": sum(byte_size(tensor.dtype, tensor.shape) for tensor in tensors),
    }
    _write_json(folder / _INDEX, {"metadata": metadata, "weight_map": places})


def _write_generation(path: Path, checkpoint: Checkpoint) -> None:
    """Add the recommended sampling to what the tokeniser's writer says there (ids of special tokens)."""
    made = read_json_if_there(path)
    given = {theirs: checkpoint.sampling[ours] for ours, theirs in _SAMPLING.items() if ours in checkpoint.sampling}
    if given:
        made.pop("_from_model_config", None)
    if given.get("temperature") == 0:
        made |= {"do_sample": False}
    elif given:
        made |= {"do_sample": True} | given
    _write_json(path, made)


def _recommended(path: Path) -> dict[str, Any]:
    """Sampling settings that generation_config.json asks for."""
    said = read_json_if_there(path)
    if said.get("do_sample") is False:
        return {"temperature": 0.0}
    return recommended_sampling({ours: said.get(theirs) for ours, theirs in _SAMPLING.items()})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
