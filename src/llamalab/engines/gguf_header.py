"""What a GGUF file says about itself, read before anything is loaded.

llama.cpp reports some damage only by a null pointer, and some misuse by ending the process. These checks
turn both into one clear error. The parsing itself is llama.cpp's own (`gguf_init_from_file`), so a header
that passes here is one that it understands.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llama_cpp._ctypes_extensions import load_shared_library

from llamalab.checkpoints.gguf_file import read_gguf_file
from llamalab.engines.native import api, forget_errors, native_reason
from llamalab.errors import ModelFileError, ModelNotFound

CACHE_TYPES = {
    "f32": (api.GGML_TYPE_F32, 1, 4),
    "f16": (api.GGML_TYPE_F16, 1, 2),
    "bf16": (30, 1, 2),
    "q8_0": (api.GGML_TYPE_Q8_0, 32, 34),
    "q5_1": (api.GGML_TYPE_Q5_1, 32, 24),
    "q5_0": (api.GGML_TYPE_Q5_0, 32, 22),
    "q4_1": (api.GGML_TYPE_Q4_1, 32, 20),
    "q4_0": (api.GGML_TYPE_Q4_0, 32, 18),
    "iq4_nl": (api.GGML_TYPE_IQ4_NL, 32, 18),
}
"""Types of the KV cache: name to (number in ggml, values per block, bytes per block)."""

_MOST_LAYERS, _MOST_EXPERTS = 512, 1024
_SCALINGS = ("none", "linear", "yarn", "longrope")
"""What llama.cpp can run; it takes the process with it where a file asks for something else."""

_INTEGERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
_STRING, _ARRAY = 8, 9
_HARMLESS_BYTES = 128 << 20
"""In a smaller file no count can make llama.cpp allocate much, for what it counts has to be in the file."""


@dataclass(frozen=True, slots=True)
class Header:
    """Facts from the header of one GGUF file.

    Attributes:
        path: the file.
        kind: "model", "adapter", ... (`general.type`).
        architecture: `general.architecture`.
        n_tensors: tensors in this file.
        file_bytes: size of the file.
        context_length: tokens the model was trained for, 0 if not said.
        heads: most attention heads of a layer.
        heads_kv: KV heads of each layer that texts go through (a layer for drafts, at the end, keeps no cache).
        key_length: values per head in K.
        value_length: values per head in V.
        mla: one latent per token in K, none in V (DeepSeek's multi-head latent attention).
        tensor_bytes: bytes of tensors in this file, by ggml's number of their type.
    """

    path: Path
    kind: str
    architecture: str
    n_tensors: int
    file_bytes: int
    context_length: int
    heads: int
    heads_kv: tuple[int, ...]
    key_length: int
    value_length: int
    mla: bool
    tensor_bytes: Mapping[int, int]

    def cache_bytes(self, cells: int, type_k: str, type_v: str) -> int:
        """Bytes of the KV cache for `cells` tokens."""
        return sum(self.layer_cache_bytes(cells, type_k, type_v))

    def layer_cache_bytes(self, cells: int, type_k: str, type_v: str, *, flash_attn: bool = True) -> list[int]:
        """The same for each layer.

        Args:
            cells: tokens.
            type_k: of the K cache, see `CACHE_TYPES`.
            type_v: of the V cache.
            flash_attn: without it V is kept transposed, and every layer's is as wide as the widest.
        """
        widest = max(self.heads_kv, default=0)
        return [
            cells * _row_bytes(heads * self.key_length, type_k)
            + cells * _row_bytes((heads if flash_attn else widest) * self.value_length, type_v) * (not self.mla)
            for heads in self.heads_kv
        ]


class _GgufInit(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def read_header(path: Path) -> Header:
    """Check the file and read its header.

    Raises:
        ModelNotFound: no such file.
        ModelFileError: a folder, an empty or unreadable file, not a GGUF, damaged, or cut off.
    """
    size = _check_file(path)
    if size > _HARMLESS_BYTES:
        read_gguf_file(path, lazy=True)  # llama.cpp allocates 8 GB for a count that says so: ours is refused before
    forget_errors()
    gguf = _open(str(path).encode(), _GgufInit(no_alloc=True, ctx=None))
    if not gguf:
        raise ModelFileError(f"{path} is a damaged GGUF file: its header cannot be read ({native_reason()}).")
    try:
        n_tensors = _call("gguf_get_n_tensors", gguf)
        data = _call("gguf_get_data_offset", gguf)
        sizes = [_call("gguf_get_tensor_size", gguf, i) for i in range(n_tensors)]
        ends = [_call("gguf_get_tensor_offset", gguf, i) + size for i, size in enumerate(sizes)]
        tensor_bytes: Counter[int] = Counter()
        for i, of_tensor in enumerate(sizes):
            tensor_bytes[_call("gguf_get_tensor_type", gguf, i)] += of_tensor
        end = data + max(ends) if ends else 0
        if end > size:
            raise ModelFileError(
                f"{path} is cut off: its tensors end at byte {end}, the file has {size}. Download or copy it again."
            )
        architecture = _string(gguf, "general.architecture") or ""
        if not architecture:
            raise ModelFileError(f"{path} names no architecture (general.architecture): this is no model file.")
        _check_tokens(gguf, path)
        arch = architecture
        _check_layers(gguf, arch, path)
        layers = _integers(gguf, f"{arch}.block_count")
        n_layers = layers[0] if layers else 0
        heads = _integers(gguf, f"{arch}.attention.head_count")
        heads_kv = _integers(gguf, f"{arch}.attention.head_count_kv") or heads
        if len(heads_kv) == 1:
            heads_kv = heads_kv * n_layers
        heads_kv = heads_kv[: n_layers - sum(_integers(gguf, f"{arch}.nextn_predict_layers")[:1])]
        width = _integers(gguf, f"{arch}.embedding_length")
        most_heads = max([0, *heads])
        head = width[0] // most_heads if width and most_heads else 0
        key = _integers(gguf, f"{arch}.attention.key_length") or [head]
        value = _integers(gguf, f"{arch}.attention.value_length") or [head]
        return Header(
            path=path,
            kind=_string(gguf, "general.type") or "model",
            architecture=architecture,
            n_tensors=n_tensors,
            file_bytes=size,
            context_length=sum(_integers(gguf, f"{arch}.context_length")[:1]),
            heads=most_heads,
            heads_kv=tuple(heads_kv),
            key_length=key[0],
            value_length=value[0],
            mla=bool(_integers(gguf, f"{arch}.attention.key_length_mla")),
            tensor_bytes=dict(tensor_bytes),
        )
    finally:
        _free(gguf)


def _check_file(path: Path) -> int:
    """Size in bytes of what is a readable file and starts like a GGUF."""
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; a model file (.gguf) is needed.")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            size = file.seek(0, 2)
    except FileNotFoundError:
        raise ModelNotFound(f"There is no file {path}.") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not size:
        raise ModelFileError(f"{path} is empty.")
    if magic != b"GGUF":
        raise ModelFileError(
            f"{path} is not a GGUF file (it starts with {magic!r}, not b'GGUF'). "
            "Other formats have to be converted to GGUF first."
        )
    return size


def _check_tokens(gguf: int, path: Path) -> None:
    """Refuse a vocabulary with the same token twice: llama.cpp would end the process."""
    at = _call("gguf_find_key", gguf, b"tokenizer.ggml.tokens")
    if at < 0 or _call("gguf_get_kv_type", gguf, at) != _ARRAY or _call("gguf_get_arr_type", gguf, at) != _STRING:
        return
    seen: dict[bytes, int] = {}
    for i in range(_call("gguf_get_arr_n", gguf, at)):
        token: bytes = _item_at(gguf, at, i) or f"[EMPTY_{i}]".encode()
        if seen.setdefault(token, i) != i:
            raise ModelFileError(
                f"{path} is damaged: tokens {seen[token]} and {i} of its vocabulary are the same ({token!r})."
            )


def _check_layers(gguf: int, arch: str, path: Path) -> None:
    """Refuse counts and kinds at which llama.cpp would end the process."""

    def first(key: str) -> int:
        return sum(_integers(gguf, f"{arch}.{key}")[:1])

    layers, experts = first("block_count"), first("expert_count")
    used = max([0, *_integers(gguf, f"{arch}.expert_used_count")])
    scaling = _string(gguf, f"{arch}.rope.scaling.type")
    what = None
    if _integers(gguf, f"{arch}.block_count") and not 1 <= layers <= _MOST_LAYERS:
        what = f"it says that it has {layers} layers, and llama.cpp runs 1 to {_MOST_LAYERS}"
    elif not 0 <= first("nextn_predict_layers") <= layers:
        what = f"of its {layers} layers {first('nextn_predict_layers')} are said to predict more tokens"
    elif not (0 <= experts <= _MOST_EXPERTS and used <= experts):
        what = f"it says that it uses {used} of {experts} experts, and llama.cpp runs at most {_MOST_EXPERTS}"
    elif scaling is not None and scaling not in _SCALINGS:
        what = f"its RoPE scaling is of the kind {scaling!r}, which llama.cpp does not know"
    if what is not None:
        raise ModelFileError(f"{path} cannot be run: {what}. It is damaged, or made for another runtime.")


def _string(gguf: int, key: str) -> str | None:
    at = _call("gguf_find_key", gguf, key.encode())
    if at < 0 or _call("gguf_get_kv_type", gguf, at) != _STRING:
        return None
    text: bytes = _string_at(gguf, at)
    return text.decode("utf-8", "replace")


def _integers(gguf: int, key: str) -> list[int]:
    """An integer or an array of them; empty if the key is absent or of another type."""
    at = _call("gguf_find_key", gguf, key.encode())
    if at < 0:
        return []
    kind, count = _call("gguf_get_kv_type", gguf, at), 1
    if kind == _ARRAY:
        kind, count = _call("gguf_get_arr_type", gguf, at), _call("gguf_get_arr_n", gguf, at)
        address = _array_at(gguf, at) if kind in _INTEGERS else None
    else:
        address = _value_at(gguf, at) if kind in _INTEGERS else None
    if not address:
        return []
    layout = f"<{count}{_INTEGERS[kind]}"
    return list(struct.unpack(layout, ctypes.string_at(address, struct.calcsize(layout))))


def _row_bytes(values: int, kind: str) -> int:
    _, block, size = CACHE_TYPES[kind]
    return -(-values // block) * size


def _call(name: str, *args: object) -> int:
    function = _functions[name]
    return int(function(*args))


def prototype(name: str, result: type | None, *arguments: type) -> ctypes._NamedFuncPointer:
    """A function of ggml by its C name, with its prototype."""
    function: ctypes._NamedFuncPointer = _library[name]
    function.restype = result
    function.argtypes = list(arguments)
    return function


# Its own symbols, through the library that needs them: loading libggml-base by file name could map a second copy.
_library = load_shared_library("ggml-base", api._base_path) if os.name == "nt" else api._lib
_open = prototype("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _GgufInit)
_free = prototype("gguf_free", ctypes.c_int, ctypes.c_void_p)
_string_at = prototype("gguf_get_val_str", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64)
_item_at = prototype("gguf_get_arr_str", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t)
_array_at = prototype("gguf_get_arr_data", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_value_at = prototype("gguf_get_val_data", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_functions = {
    "gguf_get_n_tensors": prototype("gguf_get_n_tensors", ctypes.c_int64, ctypes.c_void_p),
    "gguf_get_data_offset": prototype("gguf_get_data_offset", ctypes.c_size_t, ctypes.c_void_p),
    "gguf_find_key": prototype("gguf_find_key", ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p),
} | {
    name: prototype(name, kind, ctypes.c_void_p, ctypes.c_int64)
    for name, kind in (
        ("gguf_get_kv_type", ctypes.c_int),
        ("gguf_get_arr_type", ctypes.c_int),
        ("gguf_get_tensor_type", ctypes.c_int),
        ("gguf_get_arr_n", ctypes.c_size_t),
        ("gguf_get_tensor_offset", ctypes.c_size_t),
        ("gguf_get_tensor_size", ctypes.c_size_t),
    )
}
