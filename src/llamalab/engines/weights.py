"""Loaded model files: one copy of the weights in a process, however many engines use it."""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamalab.checkpoints.split import model_parts
from llamalab.engines.gguf_header import Header, read_header
from llamalab.engines.native import api, forget_errors, native_reason, registry
from llamalab.engines.options import Options
from llamalab.engines.vocabulary import Vocabulary
from llamalab.errors import ConfigError, ModelFileError, OutOfMemory

if TYPE_CHECKING:
    from llamalab.engines.constrain import Compiler

_LOAD_MODES = {
    "auto": api.LLAMA_LOAD_MODE_AUTO,
    "read": api.LLAMA_LOAD_MODE_NONE,
    "mmap": api.LLAMA_LOAD_MODE_MMAP,
    "mlock": api.LLAMA_LOAD_MODE_MMAP_MLOCK,
}
_loaded: dict[tuple[object, ...], Weights] = {}


class Weights:
    """A model file in memory. Get one with `open_weights`, give it back with `release`.

    Attributes:
        path: the file (the first part of a split model), absolute.
        header: what the file says of itself.
        model: llama.cpp's handle.
        vocabulary: its tokens.
    """

    def __init__(self, key: tuple[object, ...], path: Path, header: Header, model: int) -> None:
        self.path = path
        self.header = header
        self.model = model
        says_bos, says_eos = (self.meta(f"tokenizer.ggml.{name}_token_id") is not None for name in ("bos", "eos"))
        self.vocabulary = Vocabulary(api.llama_model_get_vocab(model), says_bos=says_bos, says_eos=says_eos)
        self.users = 0
        self._key = key
        self._compiler: Compiler | None = None
        self._lock = threading.Lock()

    @property
    def compiler(self) -> Compiler:
        """JSON schemas to constraints, for this vocabulary; built at first use."""
        from llamalab.engines.constrain import Compiler

        with self._lock:
            if self._compiler is None:
                self._compiler = Compiler.of_llama_cpp(self.vocabulary)
            return self._compiler

    def meta(self, key: str) -> str | None:
        """A scalar of the file's metadata as text; None if absent."""
        room = 256
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = api.llama_model_meta_val_str(self.model, key.encode(), buffer, room)
            if length < 0:
                return None
            if length < room:
                return buffer.value.decode("utf-8", "replace")
            room = length + 1

    def check_unchanged(self) -> None:
        """Before the file is opened once more beside this.

        Raises:
            ModelFileError: another file lies there now.
        """
        if file_states(model_parts(self.path)) != self._key[0]:
            raise ModelFileError(
                f"{self.path} was replaced after this engine had loaded it: its scores would be of another model. "
                "Open the engine again."
            )

    def release(self) -> None:
        """Give this use back; the last one frees the memory."""
        with registry:
            self.users -= 1
            if self.users == 0:
                del _loaded[self._key]
                self._compiler = None
                api.llama_model_free(self.model)


def open_weights(path: Path, header: Header, options: Options, *, repack: bool = True) -> Weights:
    """The weights of `path`, loaded now or shared with those who have them already in the same form.

    Raises:
        ModelFileError: llama.cpp cannot load the file; the message carries its reason.
        ConfigError: devices that do not exist.
        OutOfMemory: the weights do not fit.
    """
    path = model_parts(path.resolve())[0]
    load = (options.n_gpu_layers, options.tensor_split, options.main_gpu, options.load_mode, options.vocab_only, repack)
    key = (file_states(model_parts(path)), *load)
    with registry:
        weights = _loaded.get(key)
        if weights is None:
            weights = _loaded[key] = Weights(key, path, header, _load(path, header, options, repack))
        weights.users += 1
        return weights


def file_states(paths: Sequence[Path]) -> tuple[tuple[Path, int, int], ...]:
    """What is another where a file is another."""
    found = [(path, path.stat()) for path in paths]
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in found)


def checked_header(path: Path, *, vocab_only: bool) -> Header:
    """The header of a model file; of a split one that of the first part, with the tensors of all.

    Raises:
        ModelFileError: see `read_header`; or an adapter, or a vocabulary without weights.
    """
    parts = model_parts(path)
    headers = [read_header(part) for part in parts]
    header = headers[0]
    if header.kind != "model":
        what = "an adapter" if header.kind == "adapter" else repr(header.kind)
        raise ModelFileError(f"{path} holds {what}, not a model; adapters are given as an option of their base model.")
    if sum(h.n_tensors for h in headers) == 0 and not vocab_only:
        raise ModelFileError(
            f"{path} holds a vocabulary and no weights: it can tokenise text (vocab_only=True), not generate."
        )
    held: Counter[int] = Counter()
    for each in headers:
        held.update(each.tensor_bytes)
    return replace(header, tensor_bytes=dict(held))


def weight_bytes(path: Path) -> int:
    """Bytes of all parts of a model."""
    return sum(part.stat().st_size for part in model_parts(path))


def model_parameters(options: Options, *, repack: bool = True) -> Any:
    """llama.cpp's parameters for loading a model.

    Args:
        options: of the engine.
        repack: whether llama.cpp may rearrange the weights for its kernels.

    Raises:
        ConfigError: more devices than llama.cpp can use.
    """
    params: Any = api.llama_model_default_params()
    params.load_mode = _LOAD_MODES[options.load_mode]
    params.vocab_only = options.vocab_only
    params.use_extra_bufts = repack
    params.main_gpu = options.main_gpu
    if options.n_gpu_layers is not None:
        params.n_gpu_layers = options.n_gpu_layers
    if options.tensor_split:
        if len(options.tensor_split) > api.LLAMA_MAX_DEVICES:
            raise ConfigError(
                f"tensor_split names {len(options.tensor_split)} devices; at most "
                f"{api.LLAMA_MAX_DEVICES} are supported."
            )
        params.tensor_split = (ctypes.c_float * api.LLAMA_MAX_DEVICES)(*options.tensor_split)
    return params


def _load(path: Path, header: Header, options: Options, repack: bool) -> int:
    params = model_parameters(options, repack=repack)
    if options.n_gpu_layers and not api.llama_supports_gpu_offload():
        warnings.warn(
            f"n_gpu_layers={options.n_gpu_layers} has no effect: this llama.cpp was built without GPU support. "
            "The model runs on the CPU.",
            stacklevel=4,
        )
    forget_errors()
    model = api.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        reason = native_reason()
        if "alloc" in reason:
            raise OutOfMemory(f"{path} does not fit in memory ({reason}).")
        if "unknown model architecture" in reason:
            raise ModelFileError(
                f"{path} has the architecture {header.architecture!r}, which this llama.cpp does not know. "
                "A newer llama-cpp-python may."
            )
        raise ModelFileError(f"llama.cpp cannot load {path}: {reason}.")
    try:
        check_decoder(path, model)
    except ModelFileError:
        api.llama_model_free(model)
        raise
    return int(model)


def check_decoder(path: Path, model: int) -> None:
    """Only models that continue a text can be run here; others would end the process later.

    Raises:
        ModelFileError: another kind of model; says which.
    """
    if api.llama_model_has_encoder(model):
        raise ModelFileError(f"{path} is an encoder-decoder model; only decoders that continue a text can be run.")
    if not api.llama_model_has_decoder(model):
        raise ModelFileError(f"{path} is an encoder (an embedding model); it cannot continue a text.")
    if api.llama_model_is_diffusion(model):
        raise ModelFileError(f"{path} is a diffusion model; only models that write from left to right can be run.")
