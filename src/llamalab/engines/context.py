"""The contexts of the llama.cpp engine: how long, for how many sequences, with which parameters.

What estimates the memory of an engine asks here too, so that an estimate is of what the engine really makes.
"""

from __future__ import annotations

from typing import Any

from llamalab.engines import machine
from llamalab.engines.gguf_header import CACHE_TYPES, Header
from llamalab.engines.native import api, registry
from llamalab.engines.options import Options

_DEFAULT_CONTEXT = 4096
_DEFAULT_SEQUENCES = 8
_DEFAULT_CACHE_BYTES = 2**30
_CELLS = 256  # llama.cpp rounds a context up to a multiple of this
_SCORES_BYTES = 2**30  # attention scores of one batch that may be kept whole


def padded(n_ctx: int) -> int:
    """Tokens that llama.cpp makes room for, for a context of `n_ctx`."""
    return -(-n_ctx // _CELLS) * _CELLS


def context_length(header: Header, options: Options) -> int:
    """Tokens of one sequence: as asked, or what the model was trained for, at most 4096."""
    return options.n_ctx or min(header.context_length or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)


def sequences(header: Header, options: Options, n_ctx: int) -> int:
    """How many requests run at once: as asked, or as many as keep the KV cache small."""
    if options.n_seq is not None:
        return options.n_seq
    each = header.cache_bytes(padded(n_ctx), options.type_k, options.type_v)
    fitting = _DEFAULT_CACHE_BYTES // each if each else _DEFAULT_SEQUENCES
    return max(1, min(_DEFAULT_SEQUENCES, fitting, options.n_batch, options.n_outputs_max or _DEFAULT_SEQUENCES))


def context_parameters(header: Header, options: Options, *, n_ctx: int, n_seq: int, n_outputs: int) -> Any:
    """llama.cpp's parameters of a context with `n_ctx` tokens for each of `n_seq` sequences.

    Args:
        header: of the model.
        options: of the engine.
        n_ctx: tokens of one sequence.
        n_seq: sequences, each with cells of its own.
        n_outputs: rows of logits that one call may ask for; at least one for each sequence.
    """
    params: Any = api.llama_context_default_params()
    params.n_ctx = padded(n_ctx) * n_seq
    params.n_batch = options.n_batch
    params.n_ubatch = options.n_ubatch
    params.n_seq_max = n_seq
    params.n_outputs_max = max(n_outputs, n_seq)
    params.n_threads = params.n_threads_batch = options.n_threads or machine.physical_cores()
    params.flash_attn_type = _flash_attention(header, options, n_ctx)
    params.type_k, params.type_v = CACHE_TYPES[options.type_k][0], CACHE_TYPES[options.type_v][0]
    return params


def uses_flash_attention(header: Header, options: Options, n_ctx: int) -> bool:
    """Whether such a context computes attention without keeping its scores; on a GPU llama.cpp may decide otherwise."""
    return _flash_attention(header, options, n_ctx) != int(api.LLAMA_FLASH_ATTN_TYPE_DISABLED)


def on_gpu(options: Options) -> bool:
    """Whether layers go to a GPU, as far as this llama.cpp can use one."""
    with registry:
        return options.n_gpu_layers != 0 and bool(api.llama_supports_gpu_offload())


def _flash_attention(header: Header, options: Options, n_ctx: int) -> int:
    """llama.cpp's number for the flash attention that `options` mean."""
    if options.flash_attn != "auto":
        return int(api.LLAMA_FLASH_ATTN_TYPE_ENABLED if options.flash_attn else api.LLAMA_FLASH_ATTN_TYPE_DISABLED)
    small = _scores_bytes(header, options, n_ctx) <= _SCORES_BYTES
    if small and not on_gpu(options) and options.type_v in ("f32", "f16", "bf16"):
        return int(api.LLAMA_FLASH_ATTN_TYPE_DISABLED)
    return int(api.LLAMA_FLASH_ATTN_TYPE_AUTO)


def _scores_bytes(header: Header, options: Options, n_ctx: int) -> int:
    return 4 * header.heads * min(options.n_ubatch, n_ctx) * padded(n_ctx)
