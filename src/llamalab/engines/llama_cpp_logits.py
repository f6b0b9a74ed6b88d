"""Whole rows of logits from llama.cpp, and what it computes between its blocks."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from llamalab.engines.native import api, float_view, logits_address
from llamalab.engines.request import Ids
from llamalab.engines.scorer import decode_rows
from llamalab.errors import EngineError

Logits = np.ndarray[Any, Any]
Tap = Callable[[ctypes.c_void_p, bool, ctypes.c_void_p], bool]

_BLOCK_OUTPUT = b"l_out-"
"""llama.cpp's name of the residual stream after a block, before the block's number."""


class LogitsReader:
    """Logits on a context of its own, so that what is generated elsewhere changes nothing.

    Args:
        context: llama.cpp's handle.
        n_vocab: width of a row.
        window: most rows of logits that one call computes.
        n_batch: most tokens that one call takes.
        tap: the `BlockOutputs` that the context was made with.
    """

    def __init__(self, context: int, n_vocab: int, *, window: int, n_batch: int, tap: BlockOutputs) -> None:
        self._context = context
        self._memory = api.llama_get_memory(context)
        self._n_vocab = n_vocab
        self._n_batch = n_batch
        self._window = min(window, n_batch)
        self._tap = tap
        self._lock = threading.Lock()
        self._closed = False

    def rows(self, ids: Ids, begin: int, end: int) -> Logits:
        """The rows begin ... end - 1 of a forward pass over `ids`, in batches: (end - begin, V)."""
        with self._lock:
            self._clear()
            found = np.empty((end - begin, self._n_vocab), np.float32)
            self._skip(ids, begin)
            for at in range(begin, end, self._window):
                self._take(ids, at, min(at + self._window, end), found[at - begin :])
            return found

    def stepped(self, ids: Ids, first: int) -> Logits:
        """The rows first ... T-1, each token after `first` in a batch of its own: (T - first, V)."""
        with self._lock:
            self._clear()
            found = np.empty((len(ids) - first, self._n_vocab), np.float32)
            self._skip(ids, first)
            for at in range(first, len(ids)):
                self._take(ids, at, at + 1, found[at - first :])
            return found

    def hidden(self, ids: Ids) -> list[Logits]:
        """The residual stream after each block, (T, D) each."""
        with self._lock:
            self._clear()
            with self._tap as blocks:
                # Every row asks for its logits: llama.cpp computes the last block for such rows only.
                for at in range(0, len(ids), self._window):
                    decode_rows(self._context, ids[at : at + self._window], at, outputs=True)
            return [np.concatenate(blocks[number]) for number in sorted(blocks)]

    def close(self) -> None:
        """Wait for a call in progress; refuse later ones."""
        with self._lock:
            self._closed = True

    def _clear(self) -> None:
        if self._closed:
            raise EngineError("This engine is closed.")
        api.llama_memory_clear(self._memory, False)

    def _skip(self, ids: Ids, end: int) -> None:
        for at in range(0, end, self._n_batch):
            decode_rows(self._context, ids[at : min(at + self._n_batch, end)], at, outputs=False)

    def _take(self, ids: Ids, begin: int, end: int, into: Logits) -> None:
        decode_rows(self._context, ids[begin:end], begin, outputs=True)
        for row in range(end - begin):
            into[row] = float_view(logits_address(self._context, row), self._n_vocab)


class BlockOutputs:
    """Looks into llama.cpp's computation: while it is entered, the output of every block is copied.

    Attributes:
        callback: for `cb_eval` of the context's parameters; it must live as long as the context.
    """

    def __init__(self) -> None:
        self.callback = api.ggml_backend_sched_eval_callback(self._on_node)
        self._blocks: dict[int, list[Logits]] | None = None
        self._error: Exception | None = None

    def __enter__(self) -> dict[int, list[Logits]]:
        self._error = None
        self._blocks = {}
        return self._blocks

    def __exit__(self, *exception: object) -> None:
        self._blocks = None
        if self._error is not None:
            raise self._error

    def _on_node(self, tensor: int, ask: bool, _data: object) -> bool:
        """First asked whether it wants a tensor, then called once more when that has its values."""
        if self._blocks is None:
            return not ask
        try:
            name = _ggml.ggml_get_name(tensor)
            if not name.startswith(_BLOCK_OUTPUT):
                return not ask
            if not ask:
                self._blocks.setdefault(int(name.removeprefix(_BLOCK_OUTPUT)), []).append(_values(tensor))
        except Exception as error:  # noqa: BLE001  (an exception cannot cross the C frames above)
            self._error = error
        return True


def _values(tensor: int) -> Logits:
    """A contiguous float32 tensor of ggml, its rows as the rows of the array."""
    size = _ggml.ggml_nbytes(tensor)
    rows = _ggml.ggml_nrows(tensor)
    if size != 4 * _ggml.ggml_nelements(tensor):
        raise EngineError("llama.cpp's block outputs are not float32: its graph is not the one this version has.")
    found = np.empty(size // 4, np.float32)
    _ggml.ggml_backend_tensor_get(tensor, found.ctypes.data, 0, size)
    return found.reshape(rows, -1)


def _load_ggml() -> Any:
    """ggml's own library, which the binding has loaded already, with prototypes."""
    from llama_cpp._ggml import libggml

    library: Any = libggml
    for name, arguments, result in (
        ("ggml_get_name", [ctypes.c_void_p], ctypes.c_char_p),
        ("ggml_nbytes", [ctypes.c_void_p], ctypes.c_size_t),
        ("ggml_nrows", [ctypes.c_void_p], ctypes.c_int64),
        ("ggml_nelements", [ctypes.c_void_p], ctypes.c_int64),
        ("ggml_backend_tensor_get", [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t], None),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


_ggml = _load_ggml()
