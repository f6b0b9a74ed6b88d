"""Meta's folders: `params.json`, `consolidated.NN.pth` (one file, or one per GPU of Meta's), `tokenizer.model`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llamalab.checkpoints.checkpoint import EMBEDDING, OUTPUT, Array, Checkpoint, Tensor, checked, tensor_shapes
from llamalab.checkpoints.dtypes import FloatType, default_dtype, in_dtype
from llamalab.checkpoints.meta_params import PARAMS, read_params, refuse_unsayable, write_params
from llamalab.checkpoints.pth import Place, layout
from llamalab.checkpoints.pth_writer import write_pth
from llamalab.checkpoints.stored import FLOAT_TYPES
from llamalab.checkpoints.tokenizer_huggingface import read_chat_template
from llamalab.checkpoints.tokenizer_meta import vocabulary_from_meta, write_meta_tokenizer
from llamalab.errors import ConfigError, ModelFileError
from llamalab.llama.config import LlamaConfig

_SHARD = re.compile(r"consolidated\.(\d+)\.pth")
_ROPE_TABLE = "rope.freqs"
"""Llama 2's files hold the inverse frequencies too; they follow from the config."""

_ROWS_AT_ONCE = 8192


def open_meta(path: Path, *, rope_factor: float | None = None) -> Checkpoint:
    """Open a folder in Meta's format.

    Args:
        path: the folder.
        rope_factor: takes the place of the factor of the RoPE scaling, which Meta's files do not say; 1: no scaling.

    Raises:
        ModelFileError: incomplete, damaged, or not a plain Llama (quantised, vision, LoRA, mixture of experts).
    """
    path = path.absolute()
    within = path.name == "original"  # of a repository of the hub, whose other files lie above
    params = read_params(path, rope_factor)
    shards = [layout(file) for file in _shard_files(path)]
    config = params.config
    if config.vocab_size == -1:
        config = replace(config, vocab_size=_rows_of_embedding(path, shards, config.dim))
    found = _joined(path, shards, config)
    notes = [*params.notes]
    if OUTPUT in found and EMBEDDING in found and _same(found[OUTPUT], found[EMBEDDING]):
        del found[OUTPUT]
        notes.append("The output projection equals the embedding: one copy is kept.")
    tensors = checked({name: Tensor(name, j.shape, j.dtype, j.read) for name, j in found.items()}, config, path)
    vocabulary = vocabulary_from_meta(path)
    _check_vocabulary(path, len(vocabulary.tokens), config.vocab_size, exact="tokenizer.json" not in vocabulary.files)
    return Checkpoint(
        path=path,
        format="meta",
        name=params.name or (path.parent.name if within else path.name),
        config=config,
        rope_source=params.rope_source,
        tensors=tensors,
        vocabulary=vocabulary,
        chat_template=params.chat_template
        or read_chat_template(path)
        or (read_chat_template(path.parent) if within else None),
        notes=(*notes, *vocabulary.notes),
        sampling=params.sampling,
    )


def write_meta(checkpoint: Checkpoint, folder: Path, dtype: FloatType | None = None) -> tuple[str, ...]:
    """Write a model as a folder that Meta's `Transformer` loads, in one `consolidated.00.pth`.

    Args:
        checkpoint: of any format.
        folder: made if it does not exist; no other model may be in it.
        dtype: of the matrices; None: each tensor as it is, all in F32 where one is quantised.

    Returns:
        What a user should know about what was written, one sentence each.

    Raises:
        ConfigError: a shape that Meta's code has no setting for, a folder with another model in it, or a value that
            does not fit `dtype`.
        ModelFileError: NaN or infinity, or a source that cannot be read to its end.
    """
    refuse_unsayable(checkpoint.config)
    folder.mkdir(parents=True, exist_ok=True)
    others = [*folder.glob("consolidated.*"), *folder.glob("*.safetensors"), *folder.glob(PARAMS)]
    if others:
        raise ConfigError(f"{folder} holds another model already ({others[0].name}). Name a folder that does not.")
    if dtype is not None or any(tensor.dtype not in FLOAT_TYPES for tensor in checkpoint.tensors.values()):
        checkpoint = in_dtype(checkpoint, dtype or default_dtype(checkpoint))
    # Meta's code loads strictly: it wants the output projection even where that is the embedding.
    aliases = {OUTPUT: EMBEDDING} if checkpoint.tied else {}
    write_pth(folder / "consolidated.00.pth", checkpoint.tensors.values(), aliases=aliases)
    tokenizer = write_meta_tokenizer(checkpoint.vocabulary, folder, checkpoint.chat_template)
    own: dict[str, Any] = {"name": checkpoint.name}
    if checkpoint.chat_template != read_chat_template(folder):
        own["chat_template"] = checkpoint.chat_template
    if checkpoint.sampling:
        own["sampling"] = dict(checkpoint.sampling)
    # Last, for it is what makes the folder a model.
    return (tokenizer, *write_params(folder, checkpoint.config, own))


@dataclass(frozen=True, slots=True)
class _Joined:
    """A tensor from its pieces in the shards, side by side along one axis."""

    pieces: tuple[Place, ...]
    axis: int

    @property
    def dtype(self) -> str:
        return self.pieces[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.pieces[0].shape)
        shape[self.axis] = sum(piece.shape[self.axis] for piece in self.pieces)
        return tuple(shape)

    def read(self) -> Array:
        """The whole; mapped if it is one piece, otherwise put together in memory."""
        if len(self.pieces) == 1:
            return self.pieces[0].read()
        whole = np.empty(self.shape, self.pieces[0].read().dtype)
        start = 0
        for piece in self.pieces:
            stop = start + piece.shape[self.axis]
            whole[(slice(None),) * self.axis + (slice(start, stop),)] = piece.read()
            start = stop
        return whole


def _shard_files(folder: Path) -> list[Path]:
    numbered = {int(match[1]): file for file in folder.glob("*.pth") if (match := _SHARD.fullmatch(file.name))}
    if not numbered:
        raise ModelFileError(f"{folder} has a {PARAMS} but no weights: there is no consolidated.00.pth.")
    missing = sorted(set(range(max(numbered) + 1)) - set(numbered))
    if missing:
        raise ModelFileError(
            f"{folder} is incomplete: it has consolidated.{max(numbered):02d}.pth, but not "
            f"{', '.join(f'consolidated.{number:02d}.pth' for number in missing)}. Download what is missing."
        )
    return [numbered[number] for number in sorted(numbered)]


def _rows_of_embedding(path: Path, shards: Sequence[Mapping[str, Place]], dim: int) -> int:
    if EMBEDDING not in shards[0] or len(shards[0][EMBEDDING].shape) != 2:
        raise ModelFileError(f"{path} is incomplete: the tensor {EMBEDDING} is missing.")
    rows, columns = shards[0][EMBEDDING].shape
    return rows * len(shards) if columns == dim else rows


def _joined(path: Path, shards: Sequence[Mapping[str, Place]], config: LlamaConfig) -> dict[str, _Joined]:
    names = [name for name in shards[0] if not name.endswith(_ROPE_TABLE)]
    found = {}
    for name in names:
        pieces = []
        for number, shard in enumerate(shards):
            piece = shard.get(name)
            if piece is None:
                raise ModelFileError(f"{path} is incomplete: consolidated.{number:02d}.pth lacks the tensor {name}.")
            if piece.dtype not in FLOAT_TYPES:
                raise ModelFileError(
                    f"{path}: the tensor {name} is stored as {piece.dtype}; weights in {', '.join(FLOAT_TYPES)} can be "
                    "read, quantised ones of Meta's (int4, SpinQuant) cannot."
                )
            pieces.append(piece)
        found[name] = _join(path, name, pieces, config)
    strays = [name for shard in shards[1:] for name in shard if name not in shards[0]]
    if strays:
        raise ModelFileError(f"{path} is damaged: {strays[0]} is not in consolidated.00.pth, but in a later shard.")
    _refuse_fewer_shards(path, len(shards), found, config)
    return found


def _refuse_fewer_shards(path: Path, n_shards: int, found: Mapping[str, _Joined], config: LlamaConfig) -> None:
    """The last shards may be missing without a gap in the numbers: then there are fewer heads than said."""
    expected = tensor_shapes(replace(config, n_layers=1), tied=True)
    names = ("layers.0.attention.wq.weight", "layers.0.feed_forward.w1.weight")
    parts = {expected[name][0] / found[name].shape[0] for name in names if name in found and found[name].shape[0]}
    times = parts.pop() if len(parts) == 1 else 1.0
    if times > 1:
        raise ModelFileError(
            f"{path} is incomplete: of {round(n_shards * times)} shards (consolidated.NN.pth) {n_shards} are here, "
            f"by the heads that {PARAMS} names and that are in the files. Download the others."
        )


def _join(path: Path, name: str, pieces: Sequence[Place], config: LlamaConfig) -> _Joined:
    """Side by side as Meta's code cuts them; vectors (norms) are the same in every shard."""
    axis = 1 if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")) else 0
    first = pieces[0].shape
    if len(pieces) == 1 or len(first) == 1:
        return _Joined((pieces[0],), 0)
    if name == EMBEDDING and first[-1] != config.dim:
        axis = 1  # Llama 2 cut the embedding by columns, Llama 3 cuts it by rows
    repeats, rest = divmod(len(pieces), config.n_kv_heads)
    if name.endswith(("attention.wk.weight", "attention.wv.weight")) and repeats > 1 and not rest:
        pieces = pieces[::repeats]  # more shards than key and value heads: neighbours hold the same head
    across = {(*piece.shape[:axis], *piece.shape[axis + 1 :], piece.dtype) for piece in pieces}
    if len(across) > 1:
        raise ModelFileError(f"{path}: the parts of {name} in the shards do not fit together.")
    return _Joined(tuple(pieces), axis)


def _same(one: _Joined, other: _Joined) -> bool:
    """Whether two tensors are equal, bit for bit; their first corner settles it for nearly all that are not."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one == other:
        return True
    rows, columns = (min(a, b) for a, b in zip(one.pieces[0].shape, other.pieces[0].shape, strict=True))
    corner = (slice(0, min(64, rows)), slice(0, columns))
    if not _equal_bits(one.pieces[0].read()[corner], other.pieces[0].read()[corner]):
        return False
    left, right = one.read(), other.read()
    steps = range(0, one.shape[0], _ROWS_AT_ONCE)
    return all(_equal_bits(left[i : i + _ROWS_AT_ONCE], right[i : i + _ROWS_AT_ONCE]) for i in steps)


def _equal_bits(one: Array, other: Array) -> bool:
    bits = f"u{one.dtype.itemsize}"
    return bool(np.array_equal(np.ascontiguousarray(one).view(bits), np.ascontiguousarray(other).view(bits)))


def _check_vocabulary(path: Path, n_tokens: int, rows: int, *, exact: bool) -> None:
    if n_tokens > rows or (exact and n_tokens != rows):
        raise ModelFileError(
            f"{path}: the tokeniser has {n_tokens} tokens, the weights have {rows} rows of embedding: they are not of "
            "one model. Put the tokeniser's file that came with the weights into the folder."
        )
