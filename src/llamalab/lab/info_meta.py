"""What the headers of a Meta folder say, in the terms of `Info`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamalab.checkpoints.json_file import read_json
from llamalab.checkpoints.meta_params import PARAMS, SIDECAR, read_params
from llamalab.checkpoints.pth import Place, layout
from llamalab.checkpoints.stored import FLOAT_TYPES, Stored, looks_same
from llamalab.errors import ModelFileError
from llamalab.lab.info import FileInfo, Info, RopeInfo, TensorInfo, common_type, type_counts
from llamalab.lab.info_tokenizer import folder_chat_template, folder_tokenizer
from llamalab.llama.config import LlamaConfig

_SHARD = re.compile(r"consolidated\.(\d+)\.pth")
_ROPE_TABLE = "rope.freqs"
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_EMBEDDING, _OUTPUT = "tok_embeddings.weight", "output.weight"


def meta_info(folder: Path) -> Info:
    """Describe a folder with a params.json and consolidated.NN.pth.

    What is no plain Llama (a mixture of experts, a vision model) is described as far as params.json goes.

    Raises:
        ModelFileError: params.json or a file of weights is missing, cut off or damaged.
    """
    raw = read_json(folder / PARAMS)
    config, warnings = _config(folder)
    files = _files(folder)
    pieces: dict[str, list[Place]] = {}
    for shard in map(layout, files):
        for name, place in shard.items():
            pieces.setdefault(name, []).append(place)
    dim, heads = _integer(raw, "dim"), _integer(raw, "n_heads")
    kv_heads = _integer(raw, "n_kv_heads") or heads
    tensors = tuple(_tensor(name, found, dim, kv_heads) for name, found in pieces.items())
    copy = _copies(pieces)
    counted = tuple(t for t in tensors if not t.name.endswith(_ROPE_TABLE) and not (copy and t.name == _OUTPUT))
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    n_vocab = next(iter(shapes.get(_EMBEDDING, ())), None)
    tokenizer, wrong = folder_tokenizer(folder, n_vocab)
    head = _integer(raw, "head_dim") or (dim // heads if dim and heads else None)
    own = read_json(folder / SIDECAR) if (folder / SIDECAR).is_file() else {}
    template = own.get("chat_template")
    called = own.get("name")
    return Info(
        path=folder,
        format="meta",
        name=called if isinstance(called, str) else folder.parent.name if folder.name == "original" else folder.name,
        architecture="llama",
        quantisation=common_type(counted),
        n_params=sum(math.prod(tensor.shape) for tensor in counted),
        tensor_bytes=sum(tensor.n_bytes for tensor in tensors),
        types=type_counts(tensors),
        files=tuple(FileInfo(file, file.stat().st_size) for file in files),
        tensors=tensors,
        context_length=config.max_seq_len if config else None,
        n_layers=_integer(raw, "n_layers"),
        dim=dim,
        n_heads=heads,
        n_kv_heads=kv_heads,
        ffn_dim=config.ffn_dim if config else next(iter(shapes.get("layers.0.feed_forward.w1.weight", ())), None),
        key_length=head,
        value_length=head,
        n_vocab=n_vocab,
        tied=copy if _EMBEDDING in shapes else None,
        sliding_window=_integer(raw, "sliding_window"),
        rope=_rope(config) if config else None,
        tokenizer=tokenizer,
        chat_template=template if isinstance(template, str) else folder_chat_template(folder, warnings),
        metadata=raw,
        warnings=(*warnings, *wrong),
    )


def _config(folder: Path) -> tuple[LlamaConfig | None, list[str]]:
    """The shape and what had to be inferred; None and why, for what is no plain Llama."""
    try:
        params = read_params(folder, None)
    except ModelFileError as error:
        return None, [str(error)]
    return params.config, list(params.notes)


def _files(folder: Path) -> list[Path]:
    numbered = {int(match[1]): file for file in folder.glob("*.pth") if (match := _SHARD.fullmatch(file.name))}
    missing = next((number for number in range(max(1, len(numbered))) if number not in numbered), None)
    if missing is not None:
        raise ModelFileError(f"{folder} is incomplete: there is no consolidated.{missing:02d}.pth.")
    return [numbered[number] for number in sorted(numbered)]


def _integer(raw: Mapping[str, Any], key: str) -> int | None:
    value = raw.get(key)
    return value if type(value) is int and 0 < value < 2**63 else None


def _tensor(name: str, pieces: Sequence[Place], dim: int | None, kv_heads: int | None) -> TensorInfo:
    """A tensor put together from its pieces in the shards, side by side as Meta's code cuts them."""
    first = pieces[0]
    shape = list(first.shape)
    if len(shape) > 1:
        repeats, rest = divmod(len(pieces), kv_heads or len(pieces))
        if name.endswith(("attention.wk.weight", "attention.wv.weight")) and repeats > 1 and not rest:
            pieces = pieces[::repeats]  # more shards than heads of keys: neighbours hold the same head
        across = name.endswith(("attention.wo.weight", "feed_forward.w2.weight"))
        axis = 1 if across or (name == _EMBEDDING and dim is not None and shape[-1] != dim) else 0
        shape[axis] = sum(piece.shape[axis] for piece in pieces if len(piece.shape) == len(shape))
    return TensorInfo(name, tuple(shape), first.dtype, math.prod(shape) * _ITEM_BYTES[first.dtype], first.path)


def _copies(pieces: Mapping[str, Sequence[Place]]) -> bool:
    """Whether the output projection is the embedding, or a copy of it."""
    embedding, output = pieces.get(_EMBEDDING), pieces.get(_OUTPUT)
    if embedding is None or output is None or embedding == output:
        return embedding is not None
    one, other = embedding[0], output[0]
    if one.strides != other.strides or one.dtype not in FLOAT_TYPES or 0 in one.shape:
        return False
    return looks_same(*(Stored(place.path, place.offset, place.dtype, place.shape) for place in (one, other)))


def _rope(config: LlamaConfig) -> RopeInfo:
    scaling = config.rope_scaling
    return RopeInfo(
        base=config.rope_theta,
        scaling="llama3" if scaling else None,
        factor=scaling.factor if scaling else None,
        original_context=scaling.original_max_seq_len if scaling else None,
        dimensions=config.head_dim,
    )
