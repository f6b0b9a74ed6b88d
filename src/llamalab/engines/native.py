"""llama.cpp through the low-level API of llama-cpp-python: import, self-check, log lines.

Everything here happens once per process, when this module is imported. The ctypes structs of the binding
mirror C structs that change between versions of llama.cpp; a wrong layout would not fail, it would pass
nonsense. So the default parameters that the library returns are compared field by field with those of the
version this project is tested with.
"""

from __future__ import annotations

import _thread
import atexit
import ctypes
import logging
import os
import re
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from llamalab.errors import EngineError

try:
    from llama_cpp import llama_cpp as api
except ImportError as error:
    raise EngineError(
        f"llama-cpp-python cannot be imported ({error}). Install it with: "
        "pip install 'llama-cpp-python>=0.3.36,<0.3.37' (it compiles llama.cpp, so a C compiler is needed)."
    ) from error

log = logging.getLogger("llamalab.llama_cpp")
log.addHandler(logging.NullHandler())  # without it, Python prints warnings of unconfigured loggers on stderr

__all__ = [
    "adapter_free",
    "adapter_init",
    "api",
    "captured_lines",
    "captured_stderr",
    "check_defaults",
    "check_struct",
    "decode",
    "float_view",
    "forget_errors",
    "log",
    "logits_address",
    "native_reason",
    "registry",
    "sample",
    "set_adapters",
]

MODEL_DEFAULTS: Mapping[str, object] = {
    "devices": None,
    "tensor_buft_overrides": None,
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "tensor_split": None,
    "progress_callback": None,
    "progress_callback_user_data": None,
    "kv_overrides": None,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
    "load_mtp": False,
}
CONTEXT_DEFAULTS: Mapping[str, object] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "cb_eval": None,
    "cb_eval_user_data": None,
    "type_k": 1,
    "type_v": 1,
    "abort_callback": None,
    "abort_callback_data": None,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "samplers": None,
    "n_samplers": 0,
    "ctx_other": None,
}
SAMPLER_DEFAULTS: Mapping[str, object] = {"no_perf": True}

# ggml's own numbers (ggml.h); its "info" tells of every tensor and setting, so it is debugging here.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUED = 5
_RECENT = 40
_SOON = 0.01  # seconds
_FUNCTION_NAMES = re.compile(r"^(?:\w+: |error loading model: )+")

registry = threading.RLock()
"""Held while ggml's list of devices is read (models, contexts and adapters are loaded, GPUs asked for) or changed.

One lock also for what is loaded: an engine may be closed by the collector in the middle of a call that holds it.
"""

_recent: deque[str] = deque(maxlen=_RECENT)
_listeners: list[list[str]] = []
_partial: dict[int, tuple[int, str]] = {}
_stderr_lock = threading.Lock()


def check_struct(what: str, struct: ctypes.Structure, expected: Mapping[str, object]) -> None:
    """Compare every field of a default-parameter struct with its value in the tested version.

    Raises:
        EngineError: names the first field that is missing, new or different.
    """
    advice = "Install the tested version: pip install 'llama-cpp-python>=0.3.36,<0.3.37'."
    names = [field[0] for field in struct._fields_]
    if names != list(expected):
        odd = sorted(set(names) ^ set(expected)) or names
        raise EngineError(f"The {what} of this llama.cpp have other fields than expected ({', '.join(odd)}). {advice}")
    for name, want in expected.items():
        got: Any = getattr(struct, name)
        if want is None:
            same = not got
        elif isinstance(want, float):
            same = bool(abs(got - want) < 1e-6)
        else:
            same = got == want
        if not same:
            raise EngineError(
                f"The {what} of this llama.cpp start with {name}={got!r} where {want!r} is expected: "
                f"the binding and the library do not fit together. {advice}"
            )


def check_defaults() -> None:
    """Check all default-parameter structs (see `check_struct`)."""
    check_struct("model parameters", api.llama_model_default_params(), MODEL_DEFAULTS)
    check_struct("context parameters", api.llama_context_default_params(), CONTEXT_DEFAULTS)
    check_struct("sampler parameters", api.llama_sampler_chain_default_params(), SAMPLER_DEFAULTS)


def forget_errors() -> None:
    """Start collecting native errors afresh, before a call that may fail."""
    _recent.clear()


def native_reason(default: str = "llama.cpp gave no reason") -> str:
    """What llama.cpp said in its first error since `forget_errors`."""
    # The first error is the cause; those after it only report that the caller failed in turn.
    first = next((line for line in _recent if line), default)
    return _FUNCTION_NAMES.sub("", first).rstrip(".")


@contextmanager
def captured_lines() -> Iterator[list[str]]:
    """Every line that llama.cpp logs inside the block, in this thread or another: its own account of what it does."""
    lines: list[str] = []
    _listeners.append(lines)
    try:
        yield lines
    finally:
        _listeners[:] = [other for other in _listeners if other is not lines]


@contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Lines that C code writes to standard error inside the block (llama.cpp's grammar parser does)."""
    lines: list[str] = []
    with _stderr_lock, tempfile.TemporaryFile() as sink:
        try:
            saved = os.dup(2)
        except OSError:  # a process without standard error: nothing to keep clean
            yield lines
            return
        try:
            os.dup2(sink.fileno(), 2)
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            lines.extend(sink.read().decode("utf-8", "replace").splitlines())


def float_view(address: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """`count` native float32 values at `address`, as a writable array that copies nothing."""
    buffer: Any = (ctypes.c_float * count).from_address(address)
    return np.frombuffer(buffer, dtype=np.float32)


def _on_native_line(level: int, text: bytes | None, _data: object) -> None:
    """Collect pieces to whole lines and hand them to `logging`; never raises into C."""
    try:
        thread = threading.get_ident()
        before_level, before = _partial.pop(thread, (logging.DEBUG, ""))
        number = before_level if level == _CONTINUED else _LEVELS.get(level, logging.DEBUG)
        whole = before + (text or b"").decode("utf-8", "replace")
        *done, rest = whole.split("\n")
        if rest:
            _partial[thread] = (number, rest)
        for line in done:
            if number >= logging.ERROR:
                _recent.append(line.strip())
            for lines in _listeners:
                lines.append(line)
            if line.strip() and log.isEnabledFor(number):
                log.log(number, "%s", line.rstrip())
    except KeyboardInterrupt:
        _interrupt_soon()
    except Exception:  # noqa: BLE001  (an exception cannot cross the C frames above)
        return


def _interrupt_soon() -> None:
    """Ctrl-C again, a moment later: it came where no exception gets out, and would be lost."""
    timer = threading.Timer(_SOON, _thread.interrupt_main)
    timer.daemon = True
    with suppress(RuntimeError):  # Python is shutting down
        timer.start()


def _on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """As Python does, but for Ctrl-C: it may come before the first line of a callback, where nothing can catch it."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _interrupt_soon()
    else:
        _hook_before(unraisable)


def _silence() -> None:
    """Native lines after Python has shut down go nowhere: `abs` is a C function without effect."""
    nothing = ctypes.cast(ctypes.CDLL(None).abs, api.llama_log_callback) if os.name == "posix" else None
    if nothing is not None:
        api.llama_log_set(nothing, None)


_hook_before = sys.unraisablehook
sys.unraisablehook = _on_unraisable
_log_callback = api.llama_log_callback(_on_native_line)
api.llama_log_set(_log_callback, None)
atexit.register(_silence)
check_defaults()
api.llama_backend_init()

decode = api._lib["llama_decode"]
"""llama_decode(context, batch) -> status, with its own prototype."""
decode.argtypes = [ctypes.c_void_p, api.llama_batch]
decode.restype = ctypes.c_int32

logits_address = api._lib["llama_get_logits_ith"]
"""llama_get_logits_ith(context, row) -> address of n_vocab floats, or None."""
logits_address.argtypes = [ctypes.c_void_p, ctypes.c_int32]
logits_address.restype = ctypes.c_void_p

sample = api._lib["llama_sampler_sample"]
"""llama_sampler_sample(chain, context, row) -> token; all three plain integers."""
sample.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
sample.restype = ctypes.c_int32

# The binding types an adapter as a pointer to a pointer; here it is an address like every other handle.
adapter_init = api._lib["llama_adapter_lora_init"]
"""llama_adapter_lora_init(model, path) -> adapter, or None."""
adapter_init.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
adapter_init.restype = ctypes.c_void_p

adapter_free = api._lib["llama_adapter_lora_free"]
"""llama_adapter_lora_free(adapter)."""
adapter_free.argtypes = [ctypes.c_void_p]
adapter_free.restype = None

set_adapters = api._lib["llama_set_adapters_lora"]
"""llama_set_adapters_lora(context, adapters, count, scales) -> status."""
set_adapters.argtypes = [
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_float),
]
set_adapters.restype = ctypes.c_int32
