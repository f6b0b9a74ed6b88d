"""What the JAX engine asks of its device: which one it is, what fits on it, and that compilations are kept."""

from __future__ import annotations

import math
from typing import Any

import jax

from llamalab.checkpoints.checkpoint import Checkpoint, Tensor
from llamalab.checkpoints.folders import cache_folder
from llamalab.checkpoints.load import stays_bfloat16
from llamalab.engines.jax_options import JaxOptions
from llamalab.engines.machine import available_memory
from llamalab.errors import OutOfMemory
from llamalab.llama.config import LlamaConfig
from llamalab.llama.native_products import available
from llamalab.llama.products import on_cpu

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number of each dtype."""

_DEFAULT_SEQUENCES = 8
_DEFAULT_CACHE_BYTES = 2**30


def default_sequences(config: LlamaConfig, n_ctx: int, width: int) -> int:
    """How many requests run at once: as many as keep the KV cache small.

    Args:
        config: of the model.
        n_ctx: tokens of one sequence.
        width: bytes of one number.
    """
    return max(1, min(_DEFAULT_SEQUENCES, _DEFAULT_CACHE_BYTES // _cache_bytes(config, n_ctx, width)))


def keeps_bfloat16(checkpoint: Checkpoint, options: JaxOptions) -> bool:
    """Whether matrices stay in bfloat16 while everything is computed in float32, with the numbers of wide ones."""
    return (
        not options.widen
        and options.dtype in (None, "float32")
        and options.mesh is None
        and any(stays_bfloat16(tensor) for tensor in checkpoint.tensors.values())
        and available()  # last: it may have to be compiled
    )


def weight_bytes(checkpoint: Checkpoint, width: int, *, keep_bfloat16: bool) -> int:
    """Of all tensors once they are loaded.

    Args:
        checkpoint: to be loaded.
        width: bytes of one number.
        keep_bfloat16: as for `load_weights`.
    """

    def size(tensor: Tensor) -> int:
        return math.prod(tensor.shape) * (2 if keep_bfloat16 and stays_bfloat16(tensor) else width)

    return sum(size(tensor) for tensor in checkpoint.tensors.values())


def check_memory(
    checkpoint: Checkpoint, width: int, n_ctx: int, n_seq: int, n_devices: int, *, keep_bfloat16: bool = False
) -> None:
    """Refuse what cannot be allocated, before anything is.

    Args:
        checkpoint: to be loaded.
        width: bytes of one number.
        n_ctx: tokens of one sequence.
        n_seq: sequences.
        n_devices: that weights and cache are spread over.
        keep_bfloat16: as for `load_weights`.

    Raises:
        OutOfMemory: with what it needs and what is free, for each device.
    """
    free = available_memory() if on_cpu() else _device_memory()
    if free is None:
        return
    sharing = 1 if on_cpu() else n_devices  # simulated devices share one memory
    weights = weight_bytes(checkpoint, width, keep_bfloat16=keep_bfloat16) // sharing
    cache = _cache_bytes(checkpoint.config, n_ctx, width) * n_seq // sharing
    if weights + cache > free:
        remedy = "a smaller n_ctx or n_seq" + ("" if width == 2 else ", dtype='bfloat16'")
        raise OutOfMemory(
            f"{checkpoint.path.name} needs {_gib(weights + cache)} of memory{' on each device' * (sharing > 1)} (the "
            f"weights {_gib(weights)}, the KV cache of {n_seq} x {n_ctx} tokens {_gib(cache)}) and {_gib(free)} are "
            f"free. Use {remedy}, or a smaller model."
        )


def keep_compilations() -> None:
    """Let XLA keep what it compiled under the user's cache folder, unless somebody has said where already.

    What lies in that folder is run: it must be the user's own, as a cache folder is.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None:
        return
    try:
        folder = cache_folder("xla")
    except OSError:
        return  # a home that cannot be written to: compile each time
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _cache_bytes(config: LlamaConfig, n_ctx: int, width: int) -> int:
    """Of one sequence."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * n_ctx * width


def _device_memory() -> int | None:
    """Bytes that the first device can still give; None where it does not say."""
    held = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" not in held:
        return None
    return int(held["bytes_limit"]) - int(held.get("bytes_in_use", 0))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
