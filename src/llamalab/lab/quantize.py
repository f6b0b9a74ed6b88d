"""A model in a smaller type, quantised by llama.cpp."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from llamalab.checkpoints.ggml_types import GGML_TYPES
from llamalab.checkpoints.split import model_parts
from llamalab.engines.gguf_header import read_header
from llamalab.errors import ConfigError, ModelFileError
from llamalab.lab.file_types import file_type_named
from llamalab.lab.imatrix import read_imatrix
from llamalab.lab.quantizer import Plan, in_child
from llamalab.lab.type_shares import TypeShare, type_shares
from llamalab.lab.whole_file import check_target, whole_file

if TYPE_CHECKING:
    from llamalab.checkpoints.checkpoint import Checkpoint

Progress: TypeAlias = Callable[[str, int, int], None]
"""Gets what is being done, and how many tensors are done of how many."""

_TABLES = ("rope_freqs", "rope_factors")

_HEADER = 64 << 10
"""Bytes that llama.cpp's header may take beyond the source's."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """What was written, or with a dry run would be.

    Attributes:
        source: file or folder that was read.
        target: file.
        type: of the file, such as "Q4_K_M".
        written: False for a dry run.
        n_params: values of all weights; tables of rotary frequencies, which some files carry, are none.
        bytes_before: of the source's tensors.
        bytes_after: of the target's tensors.
        size_bytes: of the file; None for a dry run.
        types: the target's tensors by type, the largest share first.
        notes: what a user should know, one sentence each.
    """

    source: Path
    target: Path
    type: str
    written: bool
    n_params: int
    bytes_before: int
    bytes_after: int
    size_bytes: int | None
    types: tuple[TypeShare, ...]
    notes: tuple[str, ...]

    @property
    def bits_before(self) -> float:
        """Bits per weight of the source."""
        return 8 * self.bytes_before / self.n_params

    @property
    def bits_after(self) -> float:
        """Bits per weight of the target."""
        return 8 * self.bytes_after / self.n_params


def quantize(
    source: Path,
    target: Path,
    type: str,
    *,
    imatrix: Path | None = None,
    threads: int | None = None,
    force: bool = False,
    requantize: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda _doing, _done, _total: None,
) -> Quantised:
    """Write `source` as `target` in another type: whole, or not at all.

    Args:
        source: GGUF file, any part of a split one, or a Meta or Hugging Face folder (which is first written as a
            temporary GGUF in its own float type, beside the target).
        target: GGUF file.
        type: e.g. "Q4_K_M".
        imatrix: GGUF file with an importance matrix, made by llama.cpp's `llama-imatrix`.
        threads: None for one per core.
        force: replace what is at `target`.
        requantize: accept a source that is quantised already.
        dry_run: only plan.
        progress: told what is being done.

    Raises:
        ConfigError: an unknown type, a target that exists, a type that needs an importance matrix, a source that is
            quantised already.
        ModelFileError: a source that is damaged, or that llama.cpp cannot quantise; no room; a target that cannot be
            written. Nothing is left behind.
    """
    kind = file_type_named(type)
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; it has to be 1 or more.")
    parts = [] if source.is_dir() else model_parts(source.absolute())
    check_target(target, force=force or dry_run, sources=parts)
    importance = None if imatrix is None else read_imatrix(imatrix)
    with _as_gguf(source, target, dry_run=dry_run, progress=progress) as gguf:
        headers = [read_header(part) for part in model_parts(gguf)]
        if headers[0].kind != "model":
            raise ConfigError(f"{source} is of the type '{headers[0].kind}', not a model.")
        progress("planning", 0, 0)
        plan = in_child(gguf, None, kind, imatrix=imatrix)
        notes = list(_check_plan(plan, source, kind, requantize=requantize))
        if importance is not None:
            notes += _check_importance(importance, plan, imatrix)
        after = sum(step.bytes_after for step in plan.steps)
        size = None
        if not dry_run:
            header = max(0, sum(h.file_bytes for h in headers) - sum(step.bytes_before for step in plan.steps))
            with whole_file(target, after + header + _HEADER) as part:
                in_child(
                    gguf,
                    part,
                    kind,
                    imatrix=imatrix,
                    threads=threads or 0,
                    requantize=requantize,
                    progress=lambda step: progress("quantising", step.number, step.count),
                )
                size = read_header(part).file_bytes  # refuses a file that is not whole
    return Quantised(
        source=source,
        target=target,
        type=kind,
        written=not dry_run,
        n_params=sum(step.n_params for step in plan.steps if not step.name.startswith(_TABLES)),
        bytes_before=sum(step.bytes_before for step in plan.steps),
        bytes_after=after,
        size_bytes=size,
        types=type_shares((step.after, step.n_params) for step in plan.steps),
        notes=tuple(notes),
    )


@contextmanager
def _as_gguf(source: Path, target: Path, *, dry_run: bool, progress: Progress) -> Iterator[Path]:
    """The source as a GGUF file, the first part of a split one; what had to be made for it is removed afterwards."""
    if not source.is_dir():
        yield model_parts(source.absolute())[0]
        return
    try:
        from llamalab.checkpoints.checkpoint import open_checkpoint
        from llamalab.checkpoints.convert import convert
    except ImportError as error:
        raise ConfigError(f"A folder needs one more package ({error}): pip install 'llamalab[jax]'") from None
    checkpoint = open_checkpoint(source)
    with _folder(None if dry_run else target) as folder:
        path = folder / "source.gguf"
        if dry_run:
            _write_outline(checkpoint, path)
        else:
            progress("converting to GGUF", 0, 0)
            convert(source, path, to="gguf")
        yield path


@contextmanager
def _folder(beside: Path | None) -> Iterator[Path]:
    """A temporary folder, on the disk of `beside` if there is one: the system's own may be far too small."""
    try:
        if beside is not None:
            beside.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=".llamalab-quantize-", dir=None if beside is None else beside.parent)
    except OSError as error:
        raise ModelFileError(f"{beside} cannot be written: {error.strerror or error}.") from error
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write_outline(checkpoint: Checkpoint, path: Path) -> None:
    """The GGUF file that a folder would become, without its weights."""
    from llamalab.checkpoints.dtypes import default_dtype
    from llamalab.lab.shapes import Shape
    from llamalab.lab.synth import write_header

    config = checkpoint.config
    shape = Shape(
        name=checkpoint.name,
        n_layers=config.n_layers,
        dim=config.dim,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        ffn_dim=config.ffn_dim,
        vocab_size=config.vocab_size,
        max_seq_len=config.max_seq_len,
        rope_theta=config.rope_theta,
        tied=checkpoint.tied,
        rope_factor=None if config.rope_scaling is None else config.rope_scaling.factor,
    )
    dtype = default_dtype(checkpoint)
    write_header(shape, path, {name: dtype for name, size in shape.tensors.items() if len(size) > 1})


def _check_plan(plan: Plan, source: Path, type: str, *, requantize: bool) -> Iterator[str]:
    """Refuse what cannot come out well before it is begun; notes on what can."""
    again = sorted({step.before for step in plan.steps if step.before != step.after and _is_quantised(step.before)})
    if again and not requantize:
        raise ConfigError(
            f"{source} is quantised already ({', '.join(again)}); quantising it again loses more than quantising the "
            "original once. Take the original, or accept that with --requantize."
        )
    if plan.needs_importance:
        raise ConfigError(
            f"{type} needs an importance matrix: without one the result would be noise. Make one from a text with "
            "llama.cpp's llama-imatrix and name it with --imatrix, or take a type that needs none, such as Q2_K or "
            "Q3_K_S."
        )
    if again:
        yield f"The source was quantised already ({', '.join(again)}): the result is worse than one from the original."
    if plan.fallbacks:
        yield (
            f"{plan.fallbacks} of {len(plan.steps)} tensors have rows that are no whole blocks of the type meant for "
            "them; llama.cpp takes types with smaller blocks."
        )


def _check_importance(importance: Mapping[str, Any], plan: Plan, path: Path | None) -> Iterator[str]:
    """Refuse the importance matrix of another model; say what it does not cover."""
    wanted = [step for step in plan.steps if _is_quantised(step.after) and step.name != "token_embd.weight"]
    for step in wanted:
        size = step.shape[0] * (step.shape[2] if len(step.shape) > 2 else 1)
        if step.name in importance and importance[step.name].size != size:
            raise ModelFileError(
                f"{path} belongs to another model: it has {importance[step.name].size} values for {step.name}, "
                f"which has {size} columns."
            )
    left = [step.name for step in wanted if step.name not in importance and step.name != "output.weight"]
    if left and len(left) == len([step for step in wanted if step.name != "output.weight"]):
        raise ModelFileError(f"{path} belongs to another model: it has no values for {left[0]} or any other tensor.")
    if left:
        yield f"The importance matrix has no values for {len(left)} tensors, {left[0]} the first."


def _is_quantised(type: str) -> bool:
    return GGML_TYPES[type].values > 1
