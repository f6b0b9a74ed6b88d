"""Writing PyTorch's `.pth` files of weights, without PyTorch: one tensor in memory at a time.

The container is that of `torch.save` (format 3): see `pth.py`. Storages begin at multiples of 64 bytes, as PyTorch lays
them, so that `torch.load(..., weights_only=True, mmap=True)` can map them.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from llamalab.checkpoints.checkpoint import Tensor

_CLASSES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}
_ALIGNMENT = 64
_STEP = 16 << 20
"""Bytes handed to the file at once."""

_ZIP64_FROM = 1 << 31
"""Bytes from which on an entry's size no longer fits the old fields of a zip file."""


def write_pth(path: Path, tensors: Iterable[Tensor], *, aliases: Mapping[str, str] | None = None) -> None:
    """Write tensors as a file that PyTorch and Meta's code load; whole, or not at all.

    Args:
        path: of the file; replaced if it exists.
        tensors: in the order in which they are to stand; F32, F16 or BF16.
        aliases: further names to the tensor whose storage they share.
    """
    names = {tensor.name: tensor for tensor in tensors}
    keys = {name: str(number) for number, name in enumerate(names)}
    owners = {**{name: name for name in names}, **(aliases or {})}
    entries = [(name, keys[owner], names[owner].dtype, names[owner].shape) for name, owner in owners.items()]
    temporary = path.with_name(path.name + ".part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            _write(archive, "data.pkl", [_pickled(entries)])
            _write(archive, ".format_version", [b"1"])
            _write(archive, ".storage_alignment", [str(_ALIGNMENT).encode()])
            _write(archive, "byteorder", [b"little"])
            for name, tensor in names.items():
                values = np.ascontiguousarray(tensor.read())
                content = values.astype(values.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data
                steps = (content[at : at + _STEP] for at in range(0, len(content), _STEP))
                _write(archive, f"data/{keys[name]}", steps, size=len(content))
            _write(archive, "version", [b"3\n"])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(archive: zipfile.ZipFile, name: str, content: Iterable[bytes | memoryview], *, size: int = 0) -> None:
    """One entry, uncompressed; its content begins at a multiple of the alignment: the extra field is the padding."""
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = size
    zip64 = size >= _ZIP64_FROM
    assert archive.fp is not None
    header = archive.fp.tell() + 30 + len(info.filename) + 4 + (20 if zip64 else 0)
    padding = -header % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=zip64) as entry:
        for piece in content:
            entry.write(piece)


def _pickled(entries: Iterable[tuple[str, str, str, tuple[int, ...]]]) -> bytes:
    """The pickle of {name: tensor}, from (name, key, type, shape), in opcodes that PyTorch's loader admits."""
    no_hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    out = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for name, key, kind, shape in entries:
        n_values = int(np.prod(shape, dtype=np.int64))
        strides = tuple(int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape)))
        storage = _tuple(
            [_text("storage"), _global("torch", _CLASSES[kind]), _text(key), _text("cpu"), _integer(n_values)]
        )
        sizes, steps = (_tuple([_integer(n) for n in numbers]) for numbers in (shape, strides))
        arguments = [storage + pickle.BINPERSID, _integer(0), sizes, steps, pickle.NEWFALSE, no_hooks]
        out += [_text(name), _global("torch._utils", "_rebuild_tensor_v2"), _tuple(arguments), pickle.REDUCE]
    return b"".join([*out, pickle.SETITEMS, pickle.STOP])


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(items: Iterable[bytes]) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(number: int) -> bytes:
    if number < 1 << 31:
        return pickle.BININT + struct.pack("<i", number)
    encoded = number.to_bytes(number.bit_length() // 8 + 1, "little")
    return pickle.LONG1 + bytes([len(encoded)]) + encoded
