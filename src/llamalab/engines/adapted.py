"""A model as one engine uses it: shared weights, and adapters of its own."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from llamalab.engines.gguf_header import Header, read_header
from llamalab.engines.kernels import Kernels
from llamalab.engines.native import adapter_free, adapter_init, forget_errors, native_reason, registry, set_adapters
from llamalab.engines.options import Options
from llamalab.engines.weights import file_states, open_weights
from llamalab.errors import EngineError, ModelFileError


class AdaptedModel:
    """Weights of `path`, and the adapters that the options name.

    Args:
        path: the file.
        header: of the file.
        options: of the engine.
        kernels: that are to multiply with the weights, see `kernels.py`.

    Raises:
        ModelFileError, ConfigError, OutOfMemory: see `open_weights`; an adapter of another model.
    """

    def __init__(self, path: Path, header: Header, options: Options, kernels: Kernels) -> None:
        self.kernels: Kernels = kernels
        self.weights = open_weights(path, header, options, repack=kernels == "repacked")
        self._adapters: list[int] = []
        self._files: tuple[tuple[Path, int, int], ...] = ()
        self._scales = [scale for _, scale in options.adapters]
        files = [file for file, _ in options.adapters]
        try:
            if not options.vocab_only:
                self._files = file_states(files)
                for file in files:
                    self._adapters.append(_load_adapter(self.weights.model, file))
        except BaseException:
            self.free()
            raise

    def check_unchanged(self) -> None:
        """Before the same files are loaded once more, for other kernels.

        Raises:
            ModelFileError: another file lies there now.
        """
        self.weights.check_unchanged()
        if file_states([file for file, _, _ in self._files]) != self._files:
            raise ModelFileError("An adapter was replaced after this engine had loaded it. Open the engine again.")

    def adapt(self, context: int) -> None:
        """Apply the adapters in `context`, which is one of this model.

        Raises:
            EngineError: llama.cpp refuses them.
        """
        if not self._adapters:
            return
        count = len(self._adapters)
        handles = (ctypes.c_void_p * count)(*self._adapters)
        if set_adapters(context, handles, count, (ctypes.c_float * count)(*self._scales)):
            raise EngineError(f"llama.cpp refused the adapters ({native_reason()}).")

    def free(self) -> None:
        """Give everything back; its contexts are freed before."""
        for adapter in self._adapters:
            adapter_free(adapter)
        self._adapters = []
        self.weights.release()


def _load_adapter(model: int, path: Path) -> int:
    header = read_header(path)
    if header.kind != "adapter":
        raise ModelFileError(f"{path} is not an adapter (its type is {header.kind!r}).")
    forget_errors()
    with registry:
        adapter = adapter_init(model, os.fsencode(path))
    if not adapter:
        raise ModelFileError(f"The adapter {path} does not fit this model: {native_reason()}.")
    return int(adapter)
