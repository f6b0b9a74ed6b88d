"""PyTorch's `.pth` files of weights, without PyTorch.

Such a file is a zip archive: `data.pkl` says what tensors there are, `data/KEY` holds the bytes of each storage,
uncompressed, so that they can be mapped into memory. The pickle is read by an unpickler that knows tensors and
dictionaries and nothing else: whatever else it asks for is refused, and nothing in it can be run.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from llamalab.checkpoints.checkpoint import Array, Tensor
from llamalab.checkpoints.stored import numpy_type
from llamalab.errors import ModelFileError

_STORAGES = {
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
"""PyTorch's storage classes: ggml's name of the type (where it has one), and bytes."""

_NUMPY = {"F64": "f8", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
_LARGEST_PICKLE = 256 << 20
_OLD_FORMAT = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the values of one tensor lie.

    Attributes:
        path: the file.
        offset: of the first value, bytes from the beginning of the file.
        shape: of the tensor.
        strides: from one value to the next along each axis, in values.
        dtype: "F32", "F16", "BF16", ...
        big_endian: the other order of bytes than usual.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    big_endian: bool = False

    def read(self) -> Array:
        """The values, mapped from the file: pages are read when they are touched. Not to be written to."""
        kind = np.dtype(_NUMPY[self.dtype]) if self.dtype in _NUMPY else numpy_type(self.dtype)
        if 0 in self.shape:
            return np.empty(self.shape, kind)
        length = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        order = ">" if self.big_endian else "<"
        try:
            raw = np.memmap(self.path, f"{order}u{kind.itemsize}", mode="r", offset=self.offset, shape=(length,))
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{self.path} changed or cannot be read any more: {error}.") from error
        flat = np.asarray(raw).astype(f"=u{kind.itemsize}", copy=False).view(kind)
        strides = tuple(stride * kind.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)


def read_pth(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, in its order; each is read when asked for.

    Raises:
        ModelFileError: as `layout`.
    """
    return {name: Tensor(name, place.shape, place.dtype, place.read) for name, place in layout(path).items()}


def layout(path: Path) -> dict[str, Place]:
    """Where each tensor of a file lies; equal places are one storage under two names.

    Raises:
        ModelFileError: not such a file, cut off, of PyTorch's old format (before 1.6), or with anything in its pickle
            that is not a tensor.
    """
    try:
        with path.open("rb") as file:
            return _layout(path, file)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error


def _layout(path: Path, file: IO[bytes]) -> dict[str, Place]:
    archive = _archive(path, file)
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ModelFileError(f"{path} is a zip archive, but not one that PyTorch wrote: it has no data.pkl.")
    prefix = pickles[0].removesuffix("data.pkl")
    big_endian = _small_record(path, archive, f"{prefix}byteorder") == b"big"
    found = _unpickle(path, _small_record(path, archive, pickles[0]) or b"")
    if not isinstance(found, dict):
        raise ModelFileError(f"{path} is no file of weights: it holds a {type(found).__name__}, not tensors by name.")
    places: dict[str, Place] = {}
    starts: dict[str, int] = {}
    for name, view in dict.items(found):  # an attribute `items` of the pickle's making does not count
        if not isinstance(name, str) or not isinstance(view, _View):
            kind = "tensors" if isinstance(view, dict) else f"a {type(view).__name__}"
            raise ModelFileError(f"{path} is no plain file of weights: under {name!r} there is {kind}, not a tensor.")
        storage, size = view.storage, view.storage.kind.item_size
        entry = archive.NameToInfo.get(f"{prefix}data/{storage.key}")
        if entry is None or entry.file_size < storage.length * size:
            raise ModelFileError(f"{path} is damaged: the values of {name} are not in it.")
        if storage.key not in starts:
            starts[storage.key] = _start(path, file, entry)
        if view.end > storage.length:
            raise ModelFileError(f"{path} is damaged: {name} reaches beyond its storage.")
        offset = starts[storage.key] + view.offset * size
        places[name] = Place(path, offset, view.shape, view.strides, storage.kind.dtype, big_endian)
    return places


def _archive(path: Path, file: IO[bytes]) -> zipfile.ZipFile:
    head = file.read(len(_LFS_POINTER))
    if head.startswith(_OLD_FORMAT[:12]):
        raise ModelFileError(
            f"{path} has PyTorch's old format (before version 1.6), which is not read here. Convert it with PyTorch: "
            "torch.save(torch.load(old, weights_only=True), new)."
        )
    if head == _LFS_POINTER:
        raise ModelFileError(
            f"{path} is only git-lfs's note of where the file is. Fetch the file itself: git lfs pull."
        )
    if not head.startswith(b"PK"):
        raise ModelFileError(f"{path} is not a .pth file: it is not a zip archive.")
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise ModelFileError(
            f"{path} is cut off or damaged ({path.stat().st_size:,} bytes; its table of contents, at the end, is "
            "missing). Download it again."
        ) from error


def _small_record(path: Path, archive: zipfile.ZipFile, name: str) -> bytes | None:
    entry = archive.NameToInfo.get(name)
    if entry is None:
        return None
    if entry.file_size > _LARGEST_PICKLE:
        raise ModelFileError(f"{path} is no file of weights: its {name} has {entry.file_size:,} bytes.")
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        raise ModelFileError(f"{path} is damaged: {name} cannot be read ({error}).") from error


def _start(path: Path, file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where the content of an entry begins. Its local header is read: names and padding may differ from the table's."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise ModelFileError(f"{path} cannot be mapped into memory: {entry.filename} is compressed or encrypted.")
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ModelFileError(f"{path} is damaged: {entry.filename} is not where the table of contents says.")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + int(name_length) + int(extra_length)
    if start + entry.file_size > path.stat().st_size:
        raise ModelFileError(f"{path} is cut off within {entry.filename}. Download it again.")
    return start


# Whatever a pickle gets into its hands can neither be changed by it nor run anything: named tuples, and instances
# without attributes. A frozen dataclass will not do: its `__setstate__`, which a pickle may call, changes it.


class _StorageType(NamedTuple):
    """Stands for a storage class of PyTorch in the pickle."""

    dtype: str
    item_size: int


class _Storage(NamedTuple):
    """`length` values in the archive's entry `data/KEY`."""

    key: str
    kind: _StorageType
    length: int


class _View(NamedTuple):
    """A tensor: a shape laid over a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last value used."""
        if 0 in self.shape:
            return 0
        return self.offset + 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View:
        """What `torch._utils._rebuild_tensor_v2` is called with, checked."""
        if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
            raise pickle.UnpicklingError("a tensor that makes no sense")
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or any(type(number) is not int or number < 0 for number in numbers):
            raise pickle.UnpicklingError("a tensor whose shape makes no sense")
        return _View(storage, offset, shape, strides)


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> Any:
        """A parameter is a tensor with a flag that says whether it is trained."""
        return data


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): _StorageType(*kind) for name, kind in _STORAGES.items()},
}


class _RefusedError(Exception):
    """The pickle asks for something that is not a tensor."""


class _TensorsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What stands for `module.name`; nothing is imported.

        Raises:
            _RefusedError: anything but tensors and dictionaries.
        """
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, length = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or type(length) is not int or length < 0:
            raise pickle.UnpicklingError("a storage that makes no sense")
        return _Storage(str(key), storage_type, length)


def _refuse_claims(content: bytes) -> None:
    """Before anything is believed: lengths reach no further than the pickle, and so do places in its memo.

    The unpickler would lay out the memo up to any place that the pickle names: 64 GB for five bytes.

    Raises:
        ValueError: not so.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if "PUT" in opcode.name and argument is not None and argument > len(content):
            raise ValueError(f"it has no place number {argument}")


def _unpickle(path: Path, content: bytes) -> Any:
    try:
        _refuse_claims(content)
        return _TensorsOnly(io.BytesIO(content)).load()
    except _RefusedError as refused:
        why = (
            "which is no plain float tensor"
            if str(refused).startswith("torch")
            else "and a file of weights may hold tensors only"
        )
        raise ModelFileError(
            f"{path} is refused: its pickle asks for {refused}, {why}. Nothing in it was run."
        ) from None
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise ModelFileError(
            f"{path} is damaged, or no file of weights: its pickle cannot be read ({error}). Nothing in it was run."
        ) from error
