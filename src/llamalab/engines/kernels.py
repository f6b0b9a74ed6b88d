"""Who multiplies rows with matrices on a CPU, and in which form the weights then lie in memory.

- "repacked": llama.cpp, which rearranges the weights for its kernels and takes a copy of them. Its own default.
- "plain": llama.cpp, from the weights as they lie in the file.
- "llamalab": `native/matmul.cc`, from the weights as they lie in the file, attention included; llama.cpp is offered it
  as a device beside its CPU. It needs AVX-512 VNNI and a C++ compiler, and it is made for many rows at a time, as
  scoring has them. [Llama 3.2 1B's shape in Q4_K_M, two cores of an Intel Xeon, llama-cpp-python 0.3.36: a response of
  150 tokens to a prompt of 150 is scored in 1.5 s, from plain weights in 3.0. Prompts of 256 tokens are read at 205
  tokens/s, repacked at 88; eight texts are written at 33 and 25, two at 12 and 12.]

Where the last is not to be had, scoring takes the faster of the others: "plain" for Q4_K and Q2_K on Intel processors
with AVX-512, and "repacked" for the rest. [Repacked against plain: 304 rows 3.7 and 2.5 s, 64 rows
0.64 and 0.59 s, 1 row 68 and 68 ms; but 8 texts of one row each 195 and 266 ms. 304 rows of four layers: Q2_K 0.59 and
0.52 s, Q5_K_M 0.47 and 0.50, Q4_0 0.88 and 1.40, IQ4_NL 0.81 and 1.40, Q8_0 1.10 and 1.25.]

The values differ in their last bits, so scores by different kernels have different fingerprints.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llamalab.engines.context import on_gpu
from llamalab.engines.gguf_header import Header
from llamalab.engines.machine import instruction_sets, vendor
from llamalab.engines.native import api, log, registry
from llamalab.engines.options import Options
from llamalab.errors import ConfigError
from llamalab.native.build import library

Kernels: TypeAlias = Literal["repacked", "plain", "llamalab"]

_Q4_0, _Q2_K, _Q4_K, _IQ4_NL = 2, 10, 12, 20  # ggml's numbers
_FLAGS = ("-fopenmp",)
_OBJECT_BYTES = 32  # of ggml's header before each tensor
_OPERATIONS = 80  # of ggml, at least so many
_GENERATED_ROWS = 4  # a context that generates multiplies so many by ours, fewer by llama.cpp's


def kernels_for(header: Header, options: Options, *, scoring: bool) -> Kernels:
    """As the options say, or as is faster for generation or for scoring.

    It looks at the file, the processor and whether there is a compiler, not at the clock: scores are the same tomorrow.

    Raises:
        ConfigError: the options ask for kernels that cannot be had here.
    """
    if options.kernels == "llamalab" and not available():
        raise ConfigError(
            "kernels='llamalab' needs a processor with AVX-512 VNNI, a C++ compiler with OpenMP ($CXX, c++, g++ or "
            "clang++) and no LLAMALAB_NATIVE=0 in the environment; leave it at 'auto'."
        )
    if options.kernels != "auto":
        return options.kernels
    if not scoring or on_gpu(options):
        return "repacked"
    held = header.tensor_bytes
    if 2 * sum(size for kind, size in held.items() if _takes(kind)) > sum(held.values()):
        return "llamalab"
    if vendor() != "GenuineIntel" or "avx512_vnni" not in instruction_sets():
        return "repacked"
    plain = held.get(_Q4_K, 0) + held.get(_Q2_K, 0) > held.get(_Q4_0, 0) + held.get(_IQ4_NL, 0)
    return "plain" if plain else "repacked"


def available() -> bool:
    """Whether "llamalab" can be had on this machine; compiles it at first."""
    return _device() is not None


def identity(kernels: Kernels) -> str:
    """What tells scores by these kernels from others: their name, and of ours the build."""
    device = _device() if kernels == "llamalab" else None
    return kernels if device is None else device.name


@contextmanager
def offered(kernels: Kernels, *, generating: bool = False) -> Iterator[None]:
    """A context of llama.cpp that is made inside multiplies by `kernels`; one at a time.

    A context keeps the devices that it found when it was made. One that writes token after token multiplies few rows by
    llama.cpp's kernels in any case; elsewhere a row has the same bits however many stand beside it.
    """
    with registry:
        device = _device() if kernels == "llamalab" else None
        if device is None:
            yield
            return
        device.take_from(_GENERATED_ROWS if generating else 1)
        entry = device.enter()
        try:
            yield
        finally:
            device.leave(entry)


class _Device:
    """The compiled library, told what it must know of this llama.cpp."""

    def __init__(self, path: Path) -> None:
        self.name, self.file = path.stem, os.fsencode(path)
        self._library = ctypes.CDLL(str(path))
        self.takes: Any = self._library.llamalab_takes
        self.takes.argtypes, self.takes.restype = [ctypes.c_int], ctypes.c_bool
        self.take_from: Any = self._library.llamalab_take_from
        self.take_from.argtypes, self.take_from.restype = [ctypes.c_int64], None
        tensor_bytes = self._library.llamalab_tensor_bytes
        tensor_bytes.argtypes, tensor_bytes.restype = [], ctypes.c_size_t
        if tensor_bytes() + _OBJECT_BYTES != _ggml("ggml_tensor_overhead", ctypes.c_size_t)():
            raise OSError("the tensors of this llama.cpp are not those of the tested version")
        configure = self._library.llamalab_configure
        configure.argtypes, configure.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int], None
        cpu_memory = _ggml("ggml_backend_cpu_buffer_type", ctypes.c_void_p)()
        configure(cpu_memory, ctypes.cast(api._lib["ggml_backend_buft_is_host"], ctypes.c_void_p), _multiplication())
        with registry:
            self.leave(self.enter())

    def enter(self) -> int:
        """Put it on ggml's list.

        Raises:
            OSError: ggml refuses it, for it is made for another version.
        """
        entry = _ggml("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)(self.file)
        if not entry:
            raise OSError(f"llama.cpp refused {os.fsdecode(self.file)}")
        return int(entry)

    def leave(self, entry: int) -> None:
        """Take it off; contexts that have it keep it."""
        _ggml("ggml_backend_unload", None, ctypes.c_void_p)(entry)


@cache
def _device() -> _Device | None:
    """Ours, compiled at first use; None where it cannot be had, see `kernels_for`."""
    if not {"avx512_vnni", "avx512bw", "avx512vl", "f16c"} <= instruction_sets():
        return None
    path = library("matmul", flags=_FLAGS)
    try:
        return None if path is None else _Device(path)
    except (OSError, AttributeError) as error:
        log.debug("Scores are computed by llama.cpp's kernels: %s", error)
        return None


def _takes(kind: int) -> bool:
    device = _device()
    return device is not None and bool(device.takes(kind))


def _ggml(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml by its name, with a prototype of its own."""
    function = api._lib[name]
    function.restype, function.argtypes = result, list(arguments)
    return function


def _multiplication() -> int:
    """ggml's number of a matrix product; it changes between versions."""
    name = _ggml("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
    found = next((number for number in range(_OPERATIONS) if name(number) == b"MUL_MAT"), None)
    if found is None:
        raise OSError("this llama.cpp has no matrix product by that name")
    return found
