"""What a loaded GGUF says of itself, as a `ModelInfo`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from llamalab.checkpoints.gguf_names import SAMPLING_KEYS
from llamalab.engine import ModelInfo
from llamalab.engines.native import api
from llamalab.engines.weights import Weights, weight_bytes


def describe(weights: Weights, path: Path, n_ctx: int) -> ModelInfo:
    """All that is known of a loaded model; warns of a context longer than it was trained for."""
    model, vocabulary = weights.model, weights.vocabulary
    template = api.llama_model_chat_template(model, None)
    trained = api.llama_model_n_ctx_train(model) or weights.header.context_length
    if trained and n_ctx > trained:
        warnings.warn(f"The model was trained for {trained} tokens of context, less than n_ctx={n_ctx}.", stacklevel=4)
    return ModelInfo(
        name=weights.meta("general.name") or path.stem,
        provider="llama_cpp",
        path=str(path),
        architecture=weights.header.architecture,
        n_params=api.llama_model_n_params(model),
        size_bytes=api.llama_model_size(model) or weight_bytes(path),
        context_length=trained,
        n_ctx=n_ctx,
        n_vocab=vocabulary.size,
        bos_id=vocabulary.bos_id,
        eos_id=vocabulary.eos_id,
        stop_ids=vocabulary.stop_ids,
        add_bos=vocabulary.add_bos,
        special_tokens=dict(vocabulary.special_tokens),
        chat_template=template.decode("utf-8", "replace") if template else None,
        sampling=_recommended(weights),
    )


def _recommended(weights: Weights) -> dict[str, Any]:
    """Sampling settings that the file asks for (`general.sampling.*`)."""
    found: dict[str, Any] = {}
    for field, (key, kind) in SAMPLING_KEYS.items():
        value = weights.meta(f"general.sampling.{key}")
        if value is not None:
            try:
                found[field] = kind(float(value))
            except ValueError:
                continue
    return found
