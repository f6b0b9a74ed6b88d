"""The container of a GGUF file: metadata, and where its tensors lie.

Parsed here and not by gguf-py, whose reader makes several arrays for every token of the vocabulary (seconds and half a
gigabyte for Llama 3) and believes the lengths that a file claims.

Source: the GGUF specification of ggml, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from llamalab.checkpoints.ggml_types import GGML_TYPES, NAMES
from llamalab.checkpoints.split import model_parts
from llamalab.checkpoints.stored import Stored
from llamalab.errors import ModelFileError, ModelNotFound

_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT, _STRING, _ARRAY = 6, 8, 9
_SMALLEST_ENTRY, _SMALLEST_TENSOR = 13, 24
"""Bytes that one metadata entry or one tensor's description takes at least."""

_MOST_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32

# A damaged count can point anywhere into forty gigabytes of weights: what no header has is not even tried.
_LONGEST_HEADER = 100_000_000
_LONGEST_TEXT = 8 << 20
_MOST_ITEMS = 5_000_000
_MOST_ENTRIES, _MOST_TENSORS = 1 << 16, 1 << 18

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What one file holds.

    Attributes:
        path: of the file.
        fields: metadata by key, as plain Python values; arrays of texts are `Texts` if asked for.
        tensors: by ggml's name.
        version: of the format.
    """

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    version: int = 3


class Texts(Sequence[str]):
    """An array of texts as it lies in the file: one is decoded when it is looked at.

    A vocabulary and its merges are 400,000 texts, of which a description of the file needs five.
    """

    __slots__ = ("_ends", "_packed", "_path")

    def __init__(self, packed: bytes, ends: Sequence[int], path: Path) -> None:
        self._packed = packed
        self._ends = ends
        self._path = path

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """The text, or texts, there.

        Raises:
            ModelFileError: one that is not UTF-8.
            IndexError: outside the array.
        """
        if isinstance(index, slice):
            return [self._text(i) for i in range(*index.indices(len(self._ends)))]
        return self._text(range(len(self._ends))[index])

    def _text(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        text = self._packed[start + _LENGTH.size : self._ends[index]]
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            raise ModelFileError(f"{self._path} is a damaged GGUF file: {text[:40]!r} is not UTF-8.") from None


def read_gguf_file(path: Path, *, lazy: bool = False) -> GgufFile:
    """Parse the header of one file; every length is checked before it is believed.

    Args:
        path: of the file.
        lazy: leave arrays of texts undecoded (`Texts`), and do not refuse a single text that is no UTF-8.

    Raises:
        ModelNotFound: no such file.
        ModelFileError: not a GGUF, damaged, of another version or byte order, or cut off.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                raise ModelFileError(f"{path} is empty.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Cursor(data, path, lazy=lazy), size)
    except FileNotFoundError:
        raise ModelNotFound(f"There is no file {path}.") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_gguf_parts(path: Path, *, lazy: bool = False) -> list[GgufFile]:
    """The headers of a model: of one file, or of all parts of a split one, in order.

    Raises:
        As `read_gguf_file`; ModelFileError also for a part that is missing.
    """
    # Not resolved: in the hub's cache the parts are links with their names, which what they lead to has not.
    return [read_gguf_file(part, lazy=lazy) for part in model_parts(path.absolute())]


def joined_tensors(parts: Sequence[GgufFile]) -> dict[str, Stored]:
    """The tensors of all parts.

    Raises:
        ModelFileError: parts that do not belong together, or one of several parts under a name of its own.
    """
    first = parts[0]
    for number, part in enumerate(parts):
        said = part.fields.get("split.count", 1 if len(parts) == 1 else None)
        if said in (0, 1) and len(parts) == 1:
            break
        if said != len(parts) or part.fields.get("split.no") != number:
            raise ModelFileError(
                f"{part.path} says that it is part {_counted(part.fields.get('split.no'))} of {said}; as part "
                f"{number + 1} of {len(parts)} it does not fit. Parts keep the names that they were made with "
                "(NAME-00001-of-0000N.gguf)."
            )
    joined: dict[str, Stored] = {}
    for part in parts:
        twice = joined.keys() & part.tensors.keys()
        if twice:
            raise ModelFileError(f"{part.path}: the tensor {min(twice)} is in an earlier part as well.")
        joined |= part.tensors
    total = first.fields.get("split.tensors.count")
    if len(parts) > 1 and isinstance(total, int) and total != len(joined):
        raise ModelFileError(f"{first.path}: the parts hold {len(joined)} tensors; they should hold {total}.")
    return joined


def _counted(number: Any) -> Any:
    return number + 1 if isinstance(number, int) else number


def _parse(cursor: _Cursor, size: int) -> GgufFile:
    path = cursor.path
    magic = cursor.bytes(min(4, size))
    if magic != b"GGUF":
        raise ModelFileError(f"{path} is not a GGUF file (it starts with {magic!r}, not b'GGUF').")
    version = cursor.number("I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
        why = "is written for a machine of the other byte order" if swapped in _VERSIONS else f"is of version {version}"
        raise ModelFileError(f"{path} {why}; GGUF 2 and 3, little-endian, can be read. Convert the model again.")
    n_tensors = cursor.count(_SMALLEST_TENSOR, _MOST_TENSORS, "tensors")
    n_fields = cursor.count(_SMALLEST_ENTRY, _MOST_ENTRIES, "entries")
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        key = cursor.string()
        if key in fields:
            raise cursor.damaged(f"the key {key!r} stands there twice")
        fields[key] = cursor.value(cursor.number("I"), key)
    described = [_tensor_info(cursor) for _ in range(n_tensors)]
    alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}, not a power of two")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, Stored] = {}
    for name, dtype, shape, offset in described:
        if name in tensors:
            raise cursor.damaged(f"the tensor {name!r} stands there twice")
        tensors[name] = Stored(path, start + offset, dtype, shape)
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=0)
    if end > size:
        raise ModelFileError(
            f"{path} is cut off: its tensors end at byte {end}, the file has {size}. Download or copy it again."
        )
    return GgufFile(path, fields, tensors, version)


def _tensor_info(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int]:
    name = cursor.string()
    n_dimensions = cursor.number("I")
    if not 1 <= n_dimensions <= _MOST_DIMENSIONS:
        raise cursor.damaged(f"the tensor {name!r} has {n_dimensions} dimensions")
    shape = tuple(int(cursor.number("Q")) for _ in range(n_dimensions))[::-1]
    kind, offset = cursor.number("I"), int(cursor.number("Q"))
    dtype = NAMES.get(kind)
    if dtype is None:
        raise ModelFileError(f"{cursor.path}: the tensor {name!r} is of an unknown type (number {kind}).")
    if min(shape) < 1 or shape[-1] % GGML_TYPES[dtype].values:
        raise cursor.damaged(f"the tensor {name!r} of type {dtype} has the shape {list(shape)}")
    return name, dtype, shape, offset


class _Cursor:
    """Reads value after value from mapped bytes, never past their end."""

    def __init__(self, data: mmap.mmap, path: Path, *, lazy: bool) -> None:
        self.data = data
        self.path = path
        self.lazy = lazy
        self.at = 0
        self.n_items = 0

    def damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path} is a damaged GGUF file: {what} (byte {self.at}).")

    def require(self, n_bytes: int) -> None:
        if n_bytes > len(self.data) - self.at:
            raise ModelFileError(
                f"{self.path} is cut off or damaged: its header asks for {n_bytes:,} bytes at byte {self.at:,}, the "
                f"file has {len(self.data):,}. Download or copy it again."
            )
        if self.at + n_bytes > _LONGEST_HEADER:
            raise self.damaged(f"its header would be longer than {_LONGEST_HEADER:,} bytes")

    def bytes(self, n_bytes: int) -> bytes:
        self.require(n_bytes)
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def number(self, layout: str) -> Any:
        (value,) = struct.unpack(f"<{layout}", self.bytes(struct.calcsize(f"<{layout}")))
        return value

    def count(self, smallest: int, most: int, what: str) -> int:
        """How many things of at least `smallest` bytes follow."""
        found = int(self.number("Q"))
        self.require(found * smallest)
        if found > most:
            raise self.damaged(f"it says that it has {found:,} {what}")
        return found

    def string(self, errors: str = "strict") -> str:
        length = int(self.number("Q"))
        self.require(length)
        if length > _LONGEST_TEXT:
            raise self.damaged(f"a text of {length:,} bytes")
        text = self.bytes(length)
        try:
            return text.decode("utf-8", errors)
        except UnicodeDecodeError:
            raise self.damaged(f"{text[:40]!r} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string("replace" if self.lazy else "strict")
        if kind == _ARRAY:
            return self.array(self.number("I"), key)
        if kind not in _SCALARS:
            raise self.damaged(f"the value of {key!r} is of an unknown type (number {kind})")
        value = self.number(_SCALARS[kind])
        return _shortest(value) if kind == _FLOAT else value

    def array(self, kind: int, key: str) -> Sequence[Any]:
        if kind != _STRING and kind not in _SCALARS:
            raise self.damaged(f"the array {key!r} is of an unknown type (number {kind})")
        layout = "Q" if kind == _STRING else _SCALARS[kind]
        n_items = self.count(struct.calcsize(f"<{layout}"), _MOST_ITEMS - self.n_items, f"items ({key})")
        self.n_items += n_items
        if kind != _STRING:
            content = self.bytes(n_items * struct.calcsize(f"<{layout}"))
            return [value for (value,) in struct.iter_unpack(f"<{layout}", content)]
        texts = self.texts(n_items)
        return texts if self.lazy else texts[:]

    def texts(self, n_items: int) -> Texts:
        """The tight loop: nearly all of a header is here."""
        data, at, unpack, begin = self.data, self.at, _LENGTH.unpack_from, self.at
        ends = array("Q")
        try:
            for _ in range(n_items):
                at += _LENGTH.size + unpack(data, at)[0]
                ends.append(at - begin)
        except (struct.error, OverflowError):
            at = len(data) + 1
        self.require(at - begin)
        return Texts(self.bytes(at - begin), ends, self.path)


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, and not 9.999999747378752e-06."""
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
