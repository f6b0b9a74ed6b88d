"""What the header of a GGUF file says, in the terms of `Info`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamalab.checkpoints.gguf_file import GgufFile, Texts, joined_tensors, read_gguf_parts
from llamalab.checkpoints.names import quantisation_of
from llamalab.checkpoints.stored import FLOAT_TYPES, Stored, looks_same, read_values
from llamalab.lab.info import (
    ExpertsInfo,
    FileInfo,
    Info,
    MlaInfo,
    RopeInfo,
    SpecialToken,
    TensorInfo,
    TokenizerInfo,
    type_counts,
)
from llamalab.lab.quantisation import contradicts, file_type_name, quantisation_from_tensors

_ROPE_TABLE = "rope_freqs.weight"
_LONG_ROPE = ("rope_factors_long.weight", "rope_factors_short.weight")
_TABLES = (_ROPE_TABLE, *_LONG_ROPE)
_LARGEST_TABLE = 65_536

_KINDS = {
    "gpt2": "BPE",
    "hybriddna": "BPE",
    "whitespace": "BPE",
    "llama": "SentencePiece",
    "bert": "WordPiece",
    "t5": "Unigram",
    "rwkv": "RWKV",
    "plamo2": "PLaMo-2",
    "gemma4": "BPE",
}
"""What `tokenizer.ggml.model` stands for."""

_PARTS = {
    "bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unknown": "unk", "seperator": "sep", "padding": "pad",
    "cls": "cls", "mask": "mask", "fim_pre": "fim_pre", "fim_suf": "fim_suf", "fim_mid": "fim_mid",
    "fim_pad": "fim_pad", "fim_rep": "fim_rep", "fim_sep": "fim_sep",
}  # fmt: skip
"""`tokenizer.ggml.NAME_token_id` (one misspelt in the format) to the part that the token plays."""

_CONTROL = 3
_SHORT = 256
_MOST_CONTROL = 10_000


def gguf_info(path: Path) -> Info:
    """Describe one file, or all parts of a split model.

    Raises:
        As `read_gguf_parts` and `joined_tensors`.
    """
    parts = read_gguf_parts(path, lazy=True)
    stored = joined_tensors(parts)
    fields = _Fields(parts[0])
    tensors = tuple(TensorInfo(n, t.shape, t.dtype, t.nbytes, t.path) for n, t in stored.items())
    embedding, output = stored.get("token_embd.weight"), stored.get("output.weight")
    copy = embedding is not None and output is not None and looks_same(embedding, output)
    weights = [t for t in tensors if t.name not in _TABLES and not (copy and t.name == "output.weight")]
    found = quantisation_from_tensors(stored)
    file_type = file_type_name(fields.plain("general.file_type"))
    tokenizer = _tokenizer(fields)
    heads = fields.per_layer("attention.head_count")
    head = _head_dim(fields, heads)
    return Info(
        path=parts[0].path,
        format="gguf",
        name=fields.text("general.name") or path.stem,
        architecture=fields.architecture,
        quantisation=found,
        file_type=file_type,
        n_params=sum(math.prod(tensor.shape) for tensor in weights),
        tensor_bytes=sum(tensor.n_bytes for tensor in tensors),
        types=type_counts(tensors),
        files=tuple(FileInfo(part.path, part.path.stat().st_size) for part in parts),
        tensors=tensors,
        context_length=fields.integer("context_length"),
        n_layers=fields.integer("block_count"),
        dim=fields.integer("embedding_length"),
        n_heads=heads,
        n_kv_heads=fields.per_layer("attention.head_count_kv") or heads,
        ffn_dim=fields.per_layer("feed_forward_length"),
        key_length=fields.integer("attention.key_length") or head,
        value_length=fields.integer("attention.value_length") or head,
        n_vocab=_n_vocab(fields, embedding, tokenizer),
        tied=None if embedding is None else copy or output is None,
        sliding_window=fields.integer("attention.sliding_window"),
        rope=_rope(fields, stored),
        experts=_experts(fields),
        mla=_mla(fields),
        tokenizer=tokenizer,
        chat_template=fields.text("tokenizer.chat_template"),
        licence=fields.text("general.license.name") or fields.text("general.license"),
        quantised_by=fields.text("general.quantized_by"),
        metadata=_metadata(fields.fields),
        warnings=tuple(_warnings(fields, parts[0].path, found, file_type, stored)),
    )


class _Fields:
    """Metadata as far as it is of the expected type: whatever is not counts as absent."""

    def __init__(self, file: GgufFile) -> None:
        self.fields = file.fields
        self.architecture = self.text("general.architecture")

    def plain(self, key: str) -> Any:
        return self.fields.get(key)

    def text(self, key: str) -> str | None:
        value = self.fields.get(key)
        return value if isinstance(value, str) else None

    def of_model(self, name: str) -> Any:
        """The value of a key that begins with the architecture."""
        return self.fields.get(f"{self.architecture}.{name}")

    def integer(self, name: str) -> int | None:
        value = self.of_model(name)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def per_layer(self, name: str) -> int | tuple[int, ...] | None:
        value = self.of_model(name)
        if isinstance(value, list) and len(set(value)) > 1 and all(type(item) is int for item in value):
            return tuple(value)
        return self.integer(name)

    def number(self, name: str) -> float | None:
        value = self.of_model(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def list_of(self, key: str) -> Sequence[Any]:
        value = self.fields.get(key)
        return value if isinstance(value, Texts | list) else ()


def _head_dim(fields: _Fields, heads: int | tuple[int, ...] | None) -> int | None:
    """Values per head where the header does not say: the width, cut into heads."""
    dim, most = fields.integer("embedding_length"), max(heads) if isinstance(heads, tuple) else heads
    return dim // most if dim and most and most > 0 else None


def _n_vocab(fields: _Fields, embedding: Stored | None, tokenizer: TokenizerInfo | None) -> int | None:
    if embedding is not None:
        return embedding.shape[0]
    return fields.integer("vocab_size") or (tokenizer.n_tokens if tokenizer else None)


def _rope(fields: _Fields, stored: Mapping[str, Stored]) -> RopeInfo | None:
    kind = fields.of_model("rope.scaling.type")
    scaling = kind if isinstance(kind, str) and kind != "none" else None
    factor = fields.number("rope.scaling.factor")
    linear = fields.number("rope.scale_linear")
    if scaling is None and linear not in (None, 1.0):
        scaling, factor = "linear", linear
    table = next((name for name in _TABLES if name in stored), None)
    if table == _ROPE_TABLE and scaling is None:
        scaling, factor = "llama3", _largest(stored[table])
    elif table is not None and scaling is None:
        scaling = "longrope"
    found = RopeInfo(
        base=fields.number("rope.freq_base"),
        scaling=scaling,
        factor=factor if scaling else None,
        original_context=fields.integer("rope.scaling.original_context_length"),
        dimensions=fields.integer("rope.dimension_count"),
        table=table,
    )
    return None if found == RopeInfo() else found


def _largest(table: Stored) -> float | None:
    """The largest divisor of a RoPE table; None if it is not one."""
    if table.dtype not in FLOAT_TYPES or math.prod(table.shape) > _LARGEST_TABLE:
        return None
    largest = float(read_values(table).astype("float32").max())
    return largest if math.isfinite(largest) else None


def _experts(fields: _Fields) -> ExpertsInfo | None:
    total = fields.integer("expert_count")
    if not total:
        return None
    return ExpertsInfo(
        total,
        fields.integer("expert_used_count"),
        fields.integer("expert_shared_count"),
        fields.integer("expert_feed_forward_length"),
    )


def _mla(fields: _Fields) -> MlaInfo | None:
    rank = fields.integer("attention.kv_lora_rank")
    if not rank:
        return None
    return MlaInfo(rank, fields.integer("attention.q_lora_rank"), fields.integer("rope.dimension_count"))


def _tokenizer(fields: _Fields) -> TokenizerInfo | None:
    model = fields.text("tokenizer.ggml.model")
    if model is None or model in ("none", "no_vocab"):
        return None
    tokens = fields.list_of("tokenizer.ggml.tokens")
    special = {}
    for name, part in _PARTS.items():
        id = fields.plain(f"tokenizer.ggml.{name}_token_id")
        if isinstance(id, int) and not isinstance(id, bool):
            special[part] = SpecialToken(id, _text_of(tokens, id))
    types = fields.list_of("tokenizer.ggml.token_type")
    control = [id for id, kind in enumerate(types) if kind == _CONTROL and id < len(tokens)]
    add_bos = fields.plain("tokenizer.ggml.add_bos_token")
    return TokenizerInfo(
        kind=_KINDS.get(model, model),
        pre=fields.text("tokenizer.ggml.pre"),
        n_tokens=len(tokens),
        n_merges=len(fields.list_of("tokenizer.ggml.merges")) or None,
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        special=special,
        control={id: str(tokens[id]) for id in control[:_MOST_CONTROL]},
    )


def _text_of(tokens: Sequence[Any], id: int) -> str | None:
    return str(tokens[id]) if 0 <= id < len(tokens) else None


def _metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is not long, as JSON can say it; of a long array the number of items."""
    return {key: _short(value) for key, value in fields.items() if key != "tokenizer.chat_template"}


def _short(value: Any) -> Any:
    if isinstance(value, Texts | list):
        return [_short(item) for item in value] if len(value) <= _SHORT else {"items": len(value)}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _warnings(
    fields: _Fields, path: Path, found: str | None, file_type: str | None, stored: Mapping[str, Stored]
) -> list[str]:
    sources = (("general.file_type", file_type), ("The file name", quantisation_of(path.name)))
    said = [(source, contradicts(name, found, stored.values())) for source, name in sources]
    warnings = [f"{source} says {what}." for source, what in said if what]
    if fields.architecture is None:
        warnings.append("The file names no architecture (general.architecture).")
    kind = fields.text("general.type")
    if kind not in (None, "model"):
        warnings.append(f"The file is of the type '{kind}', not a model.")
    if not stored:
        warnings.append("The file holds a vocabulary and no weights.")
    return warnings
