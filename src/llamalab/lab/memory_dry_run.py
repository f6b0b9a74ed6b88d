"""llama.cpp's own account of a context that it lays out and does not allocate (`no_alloc`)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from llamalab.engines.context import context_parameters
from llamalab.engines.gguf_header import Header
from llamalab.engines.native import api, captured_lines, forget_errors, native_reason
from llamalab.engines.options import Options, parse_options
from llamalab.engines.weights import check_decoder, checked_header, model_parameters
from llamalab.errors import ConfigError, ModelFileError

_MIB = 2**20
_CACHE = re.compile(r"size =\s*([\d.]+) MiB \(\s*\d+ cells")
_COMPUTE = re.compile(r"compute buffer size =\s*([\d.]+) MiB")
_OUTPUT = re.compile(r"output buffer size =\s*([\d.]+) MiB")


def dry_run(path: Path, options: Mapping[str, Any]) -> dict[str, int]:
    """The buffers of the engine's context: {"kv", "compute", "output"}, bytes, to llama.cpp's two digits of a MiB.

    Args:
        path: of the model.
        options: of the engine; `n_ctx` and `n_seq` among them.

    Raises:
        ModelFileError: llama.cpp cannot load the file, or it does not continue texts.
        ConfigError: it cannot run the model with these options.
    """
    asked = parse_options(options)
    header, model = _open(path)
    n_seq = asked.n_seq or 1
    # Everything on the CPU, whatever this machine has: what a GPU takes of it is computed by layers.
    params = context_parameters(
        header, asked, n_ctx=asked.n_ctx or 1, n_seq=n_seq, n_outputs=asked.n_outputs_max or n_seq
    )
    forget_errors()
    with captured_lines() as lines:
        context = api.llama_init_from_model(model, params)
    if not context:
        raise ConfigError(f"llama.cpp cannot run the model with these options: {native_reason()}.")
    continues = bool(api.llama_get_memory(context))
    api.llama_free(context)
    if not continues:
        raise ModelFileError(f"{path} is no model that continues a text (an embedding model?).")
    text = "\n".join(lines)
    return {"kv": _sum(_CACHE, text), "compute": _sum(_COMPUTE, text), "output": _sum(_OUTPUT, text)}


@lru_cache(maxsize=1)
def _open(path: Path) -> tuple[Header, int]:
    """The model without its weights. It stays open: the process is there for this file alone."""
    header = checked_header(path, vocab_only=False)
    params = model_parameters(Options(load_mode="read", n_gpu_layers=0))
    params.no_alloc = True
    forget_errors()
    model = api.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelFileError(f"llama.cpp cannot load {path}: {native_reason()}.")
    check_decoder(path, model)
    return header, model


def _sum(pattern: re.Pattern[str], text: str) -> int:
    return sum(round(float(found) * _MIB) for found in pattern.findall(text))
