"""From one checkpoint format to another: weights, shape, tokeniser, chat template, recommended sampling."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from llamalab.checkpoints.checkpoint import Checkpoint, Format, open_checkpoint
from llamalab.checkpoints.dtypes import FloatType, default_dtype, in_dtype
from llamalab.checkpoints.gguf import TENSOR_TYPES, write_gguf_checkpoint
from llamalab.checkpoints.huggingface import write_huggingface
from llamalab.checkpoints.meta import write_meta
from llamalab.checkpoints.split import model_parts
from llamalab.checkpoints.stored import FLOAT_TYPES, byte_size
from llamalab.errors import ConfigError, ModelFileError

FORMATS: tuple[Format, ...] = get_args(Format)

_OURS = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "consolidated.*.pth",
    "params.json",
    "llamalab.json",
    "llamalab.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What a folder that is replaced loses; whatever else lies in it stays."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written.

    Attributes:
        source: file or folder that was read.
        target: file or folder that was written.
        format: of the target.
        dtype: of its matrices.
        n_tensors: number of weight tensors, a tied matrix counted once.
        n_params: exact number of parameters.
        size_bytes: of all files of the target.
        rope_source: which RoPE scaling was written, and where it was taken from.
        notes: what a user should know about reading and writing, one sentence each.
    """

    source: Path
    target: Path
    format: Format
    dtype: str
    n_tensors: int
    n_params: int
    size_bytes: int
    rope_source: str
    notes: tuple[str, ...]


def convert(
    source: Path,
    target: Path,
    *,
    to: str,
    dtype: str | None = None,
    force: bool = False,
    rope_factor: float | None = None,
) -> Converted:
    """Write the model at `source` as `target`: whole, or not at all.

    Args:
        source: GGUF file, Meta folder or Hugging Face folder.
        target: file for "gguf", folder for the others.
        to: the format, one of `FORMATS`.
        dtype: of the matrices; by default the source's if that is a float type, otherwise F32. Norms that would be
            rounded stay F32.
        force: replace what is at `target`.
        rope_factor: takes the place of the RoPE scaling factor; 1 means no scaling.

    Raises:
        ConfigError: an unknown format or dtype, a target that exists, values too large for the dtype.
        ModelFileError: the source is damaged, incomplete or no Llama; the target cannot be written.
    """
    form = _format(to)
    _check_target(source, target, form, force=force)
    checkpoint = open_checkpoint(source, rope_factor=rope_factor)
    kind = (dtype or default_dtype(checkpoint)).upper()
    allowed = TENSOR_TYPES if form == "gguf" else FLOAT_TYPES
    if kind not in allowed:
        raise ConfigError(f"{form} cannot be written as '{dtype}'; there are {', '.join(allowed)}.")
    try:
        _check_room(checkpoint, target, kind)
        target.parent.mkdir(parents=True, exist_ok=True)
        if form == "gguf":
            notes = write_gguf_checkpoint(checkpoint, target, kind)  # type: ignore[arg-type]
        else:
            notes = _write_folder(checkpoint, target, form, kind)
    except OSError as error:
        raise ModelFileError(_not_written(target, error)) from error
    files = [target] if target.is_file() else [path for path in target.iterdir() if path.is_file()]
    return Converted(
        source=checkpoint.path,
        target=target,
        format=form,
        dtype=kind,
        n_tensors=len(checkpoint.tensors),
        n_params=checkpoint.n_params,
        size_bytes=sum(path.stat().st_size for path in files),
        rope_source=checkpoint.rope_source,
        notes=(*checkpoint.notes, *notes),
    )


def _format(to: str) -> Format:
    for form in FORMATS:
        if form == to:
            return form
    raise ConfigError(f"There is no format '{to}'; there are {', '.join(FORMATS)}.")


def _check_target(source: Path, target: Path, form: Format, *, force: bool) -> None:
    sources = [source] if source.is_dir() or not source.exists() else model_parts(source.absolute())
    if target.exists() and any(part.exists() and target.samefile(part) for part in sources):
        raise ConfigError(f"{target} is the model to be converted; name another target.")
    empty_folder = form != "gguf" and target.is_dir() and not any(target.iterdir())
    if not target.exists() or empty_folder:
        return
    if target.is_dir() != (form != "gguf"):
        wanted, found = ("a file", "a folder") if form == "gguf" else ("a folder", "a file")
        raise ConfigError(f"{target} is {found}; {form} is written as {wanted}.")
    if not force:
        raise ConfigError(f"{target} exists already; --force replaces it.")


def _check_room(checkpoint: Checkpoint, target: Path, kind: str) -> None:
    """Say before the work that the disk is too small for it."""
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    shapes = [tensor.shape for tensor in checkpoint.tensors.values()]
    needed = sum(byte_size(kind if _whole_blocks(shape, kind) else "F32", shape) for shape in shapes)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelFileError(f"{target} needs {needed:,} bytes; {folder} has {free:,} free. Nothing was written.")


def _whole_blocks(shape: tuple[int, ...], kind: str) -> bool:
    return len(shape) > 1 and (kind in FLOAT_TYPES or shape[-1] % 32 == 0)


def _write_folder(checkpoint: Checkpoint, target: Path, form: Format, kind: str) -> tuple[str, ...]:
    """Write beside the target, then put it in place."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    temporary.mkdir()
    float_type: FloatType = kind  # type: ignore[assignment]
    try:
        if form == "safetensors":
            notes = write_huggingface(checkpoint, temporary, float_type)
        else:
            # Without a dtype, each tensor as it is: those that were just put into one, and norms kept in F32.
            notes = write_meta(in_dtype(checkpoint, float_type), temporary)
        _put_in_place(temporary, target)
    finally:
        _remove(temporary)
    return notes


def _put_in_place(made: Path, target: Path) -> None:
    if not target.exists():
        made.replace(target)
        return
    for pattern in _OURS:
        for old in target.glob(pattern):
            old.unlink()
    for path in made.iterdir():
        path.replace(target / path.name)


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


def _not_written(target: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{target} cannot be written: the disk is full. Nothing was left behind."
    return f"{target} cannot be written: {error.strerror or error}."
