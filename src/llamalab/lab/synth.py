"""A model of any shape with seeded random weights: how fast and how large it will be, before it is downloaded.

What it says is noise; how long that takes does not depend on it. Nothing wider than the target is ever written: a pool
of values is quantised once for each type, and every matrix is drawn from its blocks.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np

from llamalab.checkpoints.ggml_types import GGML_TYPES
from llamalab.checkpoints.gguf_names import ROPE_TABLE
from llamalab.checkpoints.gguf_shape import add_shape
from llamalab.checkpoints.stored import byte_size
from llamalab.checkpoints.tokenizer_gguf import write_gguf_vocabulary
from llamalab.checkpoints.vocabulary import Vocabulary
from llamalab.engines.ggml_quantize import quantised
from llamalab.errors import ConfigError, ModelFileError
from llamalab.lab.file_types import FILE_TYPES, file_type_named
from llamalab.lab.quantizer import plan
from llamalab.lab.shapes import Shape
from llamalab.lab.synthetic_vocabulary import made_up_vocabulary
from llamalab.lab.whole_file import check_target, not_written, whole_file

Progress: TypeAlias = Callable[[int, int], None]
"""Gets bytes written and bytes in all."""

_UNIT = 256
"""Values that are drawn together: a multiple of every type's block."""

_POOL = 256
"""Units in a pool. A row is drawn from them unit by unit, so no two rows of a real width are alike."""

_PIECE = 4 << 20
"""Bytes drawn and written at once."""

_HEADER = 64 << 10
"""Bytes that a header takes at most beside its vocabulary and tensors' names; for the check of the disk."""

_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Synthetic:
    """What was written.

    Attributes:
        path: of the file.
        shape: of the model.
        type: of the file, such as "Q4_K_M".
        seed: of the weights.
        n_params: exact number of parameters.
        size_bytes: of the file.
        types: type of every tensor by its name in the file: {"token_embd.weight": "Q6_K", ...}.
        tensors: shape of every tensor, [out, in] of a matrix; the table of Llama 3's RoPE scaling included.
    """

    path: Path
    shape: Shape
    type: str
    seed: int
    n_params: int
    size_bytes: int
    types: Mapping[str, str]
    tensors: Mapping[str, tuple[int, ...]]


def write_synthetic(
    shape: Shape,
    path: Path,
    type: str,
    *,
    seed: int = 0,
    force: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Synthetic:
    """Write a model that llama.cpp loads, with a made-up vocabulary: whole, or not at all.

    The same seed gives the same bytes on the same machine with the same versions.

    Args:
        shape: of the model.
        path: of the file.
        type: of the file, e.g. "Q4_K_M"; the tensors' types are those that llama.cpp's quantiser would choose.
        seed: of the weights, 0 or more.
        force: replace what is at `path`.
        progress: told how far it is.

    Raises:
        ConfigError: an unknown type, or a target that exists.
        ModelFileError: no room, or the target cannot be written; nothing is left behind.
    """
    kind = file_type_named(type)
    if seed < 0:
        raise ConfigError(f"The seed is {seed}; it has to be 0 or more.")
    check_target(path, force=force)
    tensors = _tensors(shape)
    planned = planned_types(shape, kind)
    types = {name: planned.get(name, "F32") for name in tensors}
    vocabulary = made_up_vocabulary(shape.vocab_size)
    spelled = sum(len(text.encode()) + 8 for text in (*vocabulary.tokens, *vocabulary.merges))
    needed = data_bytes(shape, kind) + spelled + 4 * shape.vocab_size + 128 * len(types) + _HEADER
    with whole_file(path, needed) as part:
        _write_header(shape, part, types, vocabulary, kind)
        _fill(part, shape, types, seed, progress)
        size = part.stat().st_size
    return Synthetic(path, shape, kind, seed, shape.n_params, size, types, tensors)


def planned_types(shape: Shape, type: str) -> dict[str, str]:
    """The type of each weight by its name in the file, as llama.cpp's quantiser mixes them for `type`.

    It is asked for a dry run over a file of that shape without weights. Types that need an importance matrix are mixed
    as they are with one.

    Raises:
        ConfigError: llama.cpp offers no such type.
        ModelFileError: the temporary folder is on a file system that has no holes.
    """
    return dict(_planned(shape, file_type_named(type)))


def data_bytes(shape: Shape, type: str) -> int:
    """Bytes of all tensors of a model of `shape` in `type`: the file without its header."""
    types = planned_types(shape, type)
    return sum(_padded(byte_size(types.get(name, "F32"), size)) for name, size in _tensors(shape).items())


def write_header(
    shape: Shape,
    path: Path,
    types: Mapping[str, str],
    *,
    vocabulary: Vocabulary | None = None,
    file_type: str = "F16",
) -> None:
    """Write a file whose tensor data is a hole: all of a model but its weights, which read as zeros.

    Args:
        shape: of the model.
        path: of the file; replaced if it exists.
        types: type of each tensor by its name in the file; F32 for those that are not named.
        vocabulary: its tokeniser; without one the file is small, and llama.cpp loads it as a model without a tokeniser.
        file_type: what the file says of itself.

    Raises:
        ConfigError: a tensor that the shape does not have, an unknown type, or rows that are no whole blocks of it.
        ModelFileError: it cannot be written.
    """
    try:
        _write_header(shape, path, types, vocabulary, file_type)
    except OSError as error:
        raise ModelFileError(not_written(path, error)) from error


def _write_header(
    shape: Shape, path: Path, types: Mapping[str, str], vocabulary: Vocabulary | None, file_type: str
) -> None:
    tensors = _tensors(shape)
    _check_types(tensors, types)
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_name(f"{shape.name} (synthetic, random weights)")
    writer.add_file_type(FILE_TYPES[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(writer, shape.config)
    if vocabulary is None:
        writer.add_tokenizer_model("none")
    else:
        write_gguf_vocabulary(writer, vocabulary)
    total = 0
    for name, size in tensors.items():
        type = types.get(name, "F32")
        nbytes = byte_size(type, size)
        # Not by its own method: that refuses types that gguf-py does not know and llama.cpp does.
        writer.tensors[0][name] = gguf.gguf_writer.TensorInfo(size, GGML_TYPES[type].number, nbytes)
        total += _padded(nbytes)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with path.open("r+b") as file:
            file.truncate(_padded(file.seek(0, io.SEEK_END)) + total)
    finally:
        with suppress(OSError):
            writer.close()


@lru_cache(maxsize=256)
def _planned(shape: Shape, type: str) -> tuple[tuple[str, str], ...]:
    matrices = {name: "F16" for name, size in _tensors(shape).items() if len(size) > 1}
    with tempfile.TemporaryDirectory(prefix="llamalab-synth-") as folder:
        source = Path(folder) / "shape.gguf"
        try:
            _write_header(shape, source, matrices, None, "F16")
        except OSError as error:
            raise ModelFileError(
                f"{not_written(source, error)} The file would be all hole and take no room; name a folder in TMPDIR "
                "whose file system has holes."
            ) from error
        found = plan(source, type)
        if found.needs_importance:
            # Only whether there is one changes the mixture, not what it says.
            found = plan(source, type, importance={"none": np.ones(1, np.float32)})
    return tuple((step.name, step.after) for step in found.steps if step.name != ROPE_TABLE)


def _tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor of the file, in its order."""
    table = {} if shape.rope_factor is None else {ROPE_TABLE: (shape.head_dim // 2,)}
    return shape.tensors | table


def _check_types(tensors: Mapping[str, tuple[int, ...]], types: Mapping[str, str]) -> None:
    for name, type in types.items():
        if name not in tensors:
            raise ConfigError(f"This shape has no tensor {name}.")
        if type not in GGML_TYPES:
            raise ConfigError(f"The tensor {name} cannot be of the type {type}, which ggml does not have.")
        if tensors[name][-1] % GGML_TYPES[type].values:
            raise ConfigError(
                f"The tensor {name} cannot be {type}: its rows of {tensors[name][-1]} values are no whole blocks of "
                f"{GGML_TYPES[type].values}."
            )


def _fill(path: Path, shape: Shape, types: Mapping[str, str], seed: int, progress: Progress) -> None:
    """Put weights where the holes are."""
    tensors = _tensors(shape)
    sizes = {name: byte_size(types[name], size) for name, size in tensors.items()}
    total, done = sum(sizes.values()), 0
    pools: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
    with path.open("r+b") as file:
        file.seek(file.seek(0, io.SEEK_END) - sum(map(_padded, sizes.values())))
        for number, (name, size) in enumerate(tensors.items()):
            if len(size) == 1:
                values = rope_table(shape) if name == ROPE_TABLE else np.ones(size, np.float32)
                pieces: Iterator[np.ndarray[Any, Any]] = iter([values.view(np.uint8)])
            else:
                kind = (types[name], size[-1])
                if kind not in pools:
                    pools[kind] = _pool(*kind, seed)
                pieces = _drawn(pools[kind], sizes[name], np.random.default_rng((seed, number + 1)))
            for piece in pieces:
                file.write(piece.data)
                done += piece.nbytes
                progress(done, total)
            file.seek(_padded(sizes[name]) - sizes[name], io.SEEK_CUR)


def _pool(type: str, columns: int, seed: int) -> np.ndarray[Any, Any]:
    """Units of normal values of variance 1 / columns, so that what a matrix gives is as large as what it gets."""
    values = np.random.default_rng((seed, 0)).standard_normal((_POOL, _UNIT), dtype=np.float32)
    return quantised(values / np.float32(math.sqrt(columns)), type)


def _drawn(
    pool: np.ndarray[Any, Any], n_bytes: int, rng: np.random.Generator
) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """`n_bytes` of units drawn from the pool, in pieces; the last unit may be cut, between two of its blocks."""
    unit = pool.shape[1]
    step = max(1, _PIECE // unit)
    buffer = np.empty((step, unit), np.uint8)
    for start in range(0, n_bytes, step * unit):
        drawn = rng.integers(_POOL, size=step, dtype=np.uint16)
        np.take(pool, drawn, axis=0, out=buffer, mode="clip")
        yield buffer.reshape(-1)[: n_bytes - start]


def rope_table(shape: Shape) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What Llama 3's scaling divides each pair's frequency by, shape (head_dim / 2,)."""
    scaling = shape.config.rope_scaling
    assert scaling is not None
    turns = shape.rope_theta ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
    turns *= scaling.original_max_seq_len / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0, 1)
    return np.asarray(1 / (kept + (1 - kept) / scaling.factor), np.float32)


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
