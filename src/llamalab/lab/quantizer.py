"""llama.cpp's quantiser: one native call, and what it says of each tensor.

The call cannot be interrupted, and a file that passes every check can still meet an assertion in it. So work on a
user's files runs in a child process (`in_child`), which can be ended, and whose end is an error and not ours.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from llamalab.checkpoints.stored import byte_size
from llamalab.engines.native import api, captured_lines, check_struct, forget_errors, log, native_reason
from llamalab.errors import ModelFileError
from llamalab.lab.file_types import FILE_TYPES
from llamalab.lab.imatrix import read_imatrix

Importance: TypeAlias = Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]

_DEFAULTS: Mapping[str, object] = {
    "nthread": 0,
    "ftype": api.LLAMA_FTYPE_MOSTLY_Q8_0,
    "output_tensor_type": api.GGML_TYPE_COUNT,
    "token_embedding_type": api.GGML_TYPE_COUNT,
    "allow_requantize": False,
    "quantize_output_tensor": True,
    "only_copy": False,
    "pure": False,
    "keep_split": False,
    "dry_run": False,
    "imatrix": None,
    "kv_overrides": None,
    "tt_overrides": None,
    "prune_layers": None,
    "max_buf_size": 8 << 30,
}
_MOST_BUFFER = 512 << 20
"""Bytes of a tensor's rows that llama.cpp holds at once: its default takes gigabytes for a large vocabulary."""

_TENSOR = re.compile(r"^\[ *(\d+)/ *(\d+)\] +(\S+) +- \[([\d, ]+)\], type = +(\w+), (.*)$")
_NEW_TYPE = re.compile(r"\((\w+)\)$|converting to (\w+) ")
_NEEDS_IMPORTANCE = "will require an imatrix"
_FALLBACK = "-> falling back to"
_REASON = "reason: "


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor on its way through the quantiser.

    Attributes:
        number: of this tensor, from 1.
        count: of all tensors.
        name: of the tensor.
        shape: innermost dimension first, as ggml counts.
        before: its type in the source.
        after: its type in the target.
    """

    number: int
    count: int
    name: str
    shape: tuple[int, ...]
    before: str
    after: str

    @property
    def n_params(self) -> int:
        """Values of the tensor."""
        return math.prod(self.shape)

    @property
    def bytes_before(self) -> int:
        """Bytes in the source."""
        return byte_size(self.before, self.shape)

    @property
    def bytes_after(self) -> int:
        """Bytes in the target."""
        return byte_size(self.after, self.shape)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the quantiser makes of a file.

    Attributes:
        steps: one per tensor.
        needs_importance: it can only be done with an importance matrix, and none was given.
        fallbacks: tensors whose rows do not fit the blocks of the type meant for them, and that get another.
    """

    steps: tuple[Step, ...]
    needs_importance: bool
    fallbacks: int


def plan(source: Path, type: str, *, importance: Importance | None = None) -> Plan:
    """What quantising `source`, a file of our own, to `type` would make of it: a dry run, which reads no weights.

    Args:
        source: GGUF file.
        type: one of `FILE_TYPES`.
        importance: matrix that the real run will get: the mixture depends on whether there is one.

    Raises:
        ModelFileError: llama.cpp cannot quantise this file; with its reason.
    """
    return _plan(_call(source, source, type, dry_run=True, importance=importance))


def in_child(
    source: Path,
    target: Path | None,
    type: str,
    *,
    imatrix: Path | None = None,
    threads: int = 0,
    requantize: bool = False,
    progress: Callable[[Step], None] = lambda _: None,
) -> Plan:
    """Quantise any file in a process of its own.

    Args:
        source: GGUF file; of a split model the first part.
        target: file to write, on failure a part of it may lie there; None for a dry run.
        type: one of `FILE_TYPES`.
        imatrix: file with an importance matrix.
        threads: 0 for one per core.
        requantize: quantised tensors may be quantised again.
        progress: gets each tensor when it is done.

    Raises:
        ModelFileError: llama.cpp failed; with its reason.
    """
    job = {
        "source": os.fspath(source),
        "target": None if target is None else os.fspath(target),
        "type": type,
        "imatrix": None if imatrix is None else os.fspath(imatrix),
        "threads": threads,
        "requantize": requantize,
    }
    lines: list[str] = []
    with tempfile.TemporaryFile() as errors, _started(json.dumps(job), errors) as child:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line.rstrip("\n"))
            step = parsed(lines[-1])
            if step is not None:
                progress(step)
        if child.wait():
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace").splitlines()
            reason = next((line.removeprefix(_REASON) for line in lines if line.startswith(_REASON)), None)
            reason = reason or next(filter(None, said), f"it ended with code {child.returncode}")
            raise ModelFileError(_failed(source, type, reason))
    return _plan(lines)


@contextmanager
def _started(job: str, errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """The child at work; when the block is left it is no more."""
    # A group of its own: Ctrl-C comes to this process alone, which then ends the child.
    group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, job],  # -P: no module of the folder that the user is in
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        **group,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _plan(lines: Sequence[str]) -> Plan:
    steps = tuple(step for step in map(parsed, lines) if step is not None)
    fallbacks = sum(_FALLBACK in line for line in lines)
    return Plan(steps, any(_NEEDS_IMPORTANCE in line for line in lines), fallbacks)


def parsed(line: str) -> Step | None:
    """What a line of the quantiser says of a tensor; None for any other line."""
    match = _TENSOR.match(line)
    if match is None:
        return None
    number, count, name, shape, before, rest = match.groups()
    new = _NEW_TYPE.search(rest)
    after = (new[1] or new[2]) if new else before
    sizes = tuple(int(size) for size in shape.split(","))
    return Step(int(number), int(count), name, sizes, before.upper(), after.upper())


def _call(
    source: Path,
    target: Path,
    type: str,
    *,
    dry_run: bool = False,
    importance: Importance | None = None,
    threads: int = 0,
    requantize: bool = False,
) -> list[str]:
    """`llama_model_quantize`; the lines that it wrote.

    Raises:
        ModelFileError: it failed; with its reason.
    """
    params = api.llama_model_quantize_default_params()
    check_struct("quantisation parameters", params, _DEFAULTS)
    params.ftype = FILE_TYPES[type]
    params.nthread = threads
    params.allow_requantize = requantize or dry_run
    params.dry_run = dry_run
    params.max_buf_size = _MOST_BUFFER
    kept = _native_importance(importance) if importance else None
    if kept is not None:
        params.imatrix = kept
    forget_errors()
    with captured_lines() as lines:
        failed = api.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if failed:
        raise ModelFileError(_failed(source, type, native_reason()))
    return lines


def _native_importance(importance: Importance) -> Any:
    """The array of structs that llama.cpp takes, an empty one at its end; it holds on to the values."""
    entries = (api.llama_model_imatrix_data * (len(importance) + 1))()
    values = [np.ascontiguousarray(array, np.float32) for array in importance.values()]
    for entry, name, array in zip(entries, importance, values, strict=False):
        entry.name, entry.size = name.encode(), array.size
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    entries._values = values
    return entries


def _failed(source: Path, type: str, reason: str) -> str:
    if "iostream" in reason or "basic_ios" in reason:
        reason = "it could not be written: the disk is full, or files must not be so large"
    return f"{source} could not be quantised to {type}: {reason.rstrip('.')}. Nothing was left behind."


def _main(arguments: Sequence[str]) -> int:
    """The child: quantise, each line of llama.cpp on standard output as it comes."""
    job = json.loads(arguments[0])
    handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    source, dry_run = Path(job["source"]), job["target"] is None
    try:
        _call(
            source,
            source if dry_run else Path(job["target"]),
            job["type"],
            dry_run=dry_run,
            importance=None if job["imatrix"] is None else read_imatrix(Path(job["imatrix"])),
            threads=job["threads"],
            requantize=job["requantize"],
        )
    except ModelFileError:
        print(f"{_REASON}{native_reason()}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
