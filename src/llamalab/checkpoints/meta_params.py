"""`params.json` of a Meta folder: read into a config, and written so that Meta's code and ours read the same shape.

What Meta's file has no field for (length of the context, RoPE factor, name) stands in `llamalab.json` beside it, which
only llamalab reads; in official folders it does not exist, and what is missing follows from the shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamalab.checkpoints.gguf_names import recommended_sampling
from llamalab.checkpoints.json_file import Settings, read_json, read_json_if_there
from llamalab.checkpoints.scaling import chosen_scaling
from llamalab.errors import ConfigError, ModelFileError
from llamalab.llama.config import LlamaConfig, RopeScaling

PARAMS, SIDECAR = "params.json", "llamalab.json"

_ELSEWHERE = {
    "quantization_args": "quantised by Meta's own scheme (int4, SpinQuant)",
    "lora_args": "a model with LoRA adapters",
    "moe_args": "a mixture of experts",
    "moe": "a mixture of experts",
    "vision_args": "a vision model",
}
"""Keys of models that are not plain Llamas, and what these are."""

_KNOWN = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
    "rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len", "max_batch_size",
    "head_dim", "hidden_dim", "sliding_window",
}  # fmt: skip
"""Keys that are read; the last three are Mistral's."""

_FACTORS = {(2048, 16): 32.0, (3072, 28): 32.0}
"""Width and layers of Llama 3.2 1B and 3B, whose RoPE factor is not in their params.json; all others have 8."""

_DEFAULT_FACTOR = 8.0
_LLAMA_2_THETA = 10_000.0
_SCALED_CONTEXT = 131_072
_CONTEXTS = {500_000.0: 8192, 1_000_000.0: 16_384}
"""Tokens of context by base of the rotary frequencies: Llama 3, Code Llama; Llama 2 otherwise."""

_LLAMA_1_CONTEXT, _LLAMA_2_CONTEXT = 2048, 4096
_LARGEST_MULTIPLE = 1024


@dataclass(frozen=True, slots=True)
class Params:
    """What `params.json` and `llamalab.json` say.

    Attributes:
        config: its `vocab_size` is -1 where the file leaves it to the tokeniser (Llama 2).
        rope_source: where the RoPE scaling is from.
        name: of the model, None where nothing says it.
        chat_template: from `llamalab.json`.
        sampling: recommended settings, from `llamalab.json`.
        notes: what was inferred.
    """

    config: LlamaConfig
    rope_source: str
    name: str | None
    chat_template: str | None
    sampling: Mapping[str, Any]
    notes: tuple[str, ...]


def read_params(folder: Path, rope_factor: float | None) -> Params:
    """Read the settings of a folder.

    Args:
        folder: with a `params.json`.
        rope_factor: takes the place of the factor of the RoPE scaling; 1 means no scaling.

    Raises:
        ModelFileError: a key that is missing, of a wrong type, or of another architecture; it is named.
        ConfigError: an impossible `rope_factor`.
    """
    params = Settings(read_json(folder / PARAMS), folder / PARAMS)
    own = Settings(read_json_if_there(folder / SIDECAR), folder / SIDECAR)
    _refuse_others(params)
    dim, n_layers, n_heads = params.integer("dim"), params.integer("n_layers"), params.integer("n_heads")
    n_kv_heads = params.integer("n_kv_heads", n_heads)
    if n_heads % n_kv_heads:
        raise ModelFileError(f"{params.path}: {n_heads} heads cannot share {n_kv_heads} key and value heads evenly.")
    if "head_dim" not in params and dim % n_heads:
        raise ModelFileError(f"{params.path}: dim {dim} cannot be split evenly into {n_heads} heads.")
    theta = params.number("rope_theta", _LLAMA_2_THETA)
    found, source = _scaling(params, own, dim, n_layers)
    scaling, rope_source = chosen_scaling(found, source, rope_factor)
    length, notes = _context(params, own, theta, scaling)
    vocab_size = params.get("vocab_size")
    config = LlamaConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=params.integer("head_dim", dim // n_heads),
        ffn_dim=_ffn_dim(params, dim),
        vocab_size=-1 if vocab_size == -1 else params.integer("vocab_size"),
        max_seq_len=length,
        rope_theta=theta,
        norm_eps=params.number("norm_eps"),
        rope_scaling=scaling,
        sliding_window=params.integer("sliding_window") if params.get("sliding_window") is not None else None,
    )
    name, template, sampling = (own.get(key) for key in ("name", "chat_template", "sampling"))
    return Params(
        config,
        rope_source,
        name if isinstance(name, str) else None,
        template if isinstance(template, str) else None,
        recommended_sampling(sampling) if isinstance(sampling, dict) else {},
        notes,
    )


def write_params(folder: Path, config: LlamaConfig, own: Mapping[str, Any]) -> tuple[str, ...]:
    """Write `params.json` and `llamalab.json`.

    Args:
        folder: to write into.
        config: the shape.
        own: what else `llamalab.json` is to hold: name, chat_template, sampling.

    Returns:
        What Meta's code does not do as this config says, one sentence each.

    Raises:
        ConfigError: a config that params.json cannot say.
    """
    refuse_unsayable(config)
    multiple_of, multiplier = ffn_settings(config.dim, config.ffn_dim)
    scaling = config.rope_scaling
    params = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": multiple_of,
        **({} if multiplier is None else {"ffn_dim_multiplier": multiplier}),
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": scaling is not None,
    }
    factor = {} if scaling is None else {"rope_factor": scaling.factor}
    own = {**own, "max_seq_len": config.max_seq_len, **factor}
    (folder / SIDECAR).write_text(json.dumps(own, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / PARAMS).write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")
    if scaling is None or scaling.factor == _DEFAULT_FACTOR:
        return ()
    return (
        f"{PARAMS} has no field for the RoPE factor: Meta's code always takes {_DEFAULT_FACTOR:g}, this model has "
        f"{scaling.factor:g}, which {SIDECAR} holds for llamalab.",
    )


def refuse_unsayable(config: LlamaConfig) -> None:
    """Check that `params.json` can say a config.

    Raises:
        ConfigError: names what Meta's code has no setting for.
    """
    said = RopeScaling(config.rope_scaling.factor) if config.rope_scaling else None
    problem = None
    if config.head_dim * config.n_heads != config.dim:
        problem = (
            f"heads of {config.head_dim}, which is not its width {config.dim} divided by its {config.n_heads} heads"
        )
    elif config.sliding_window is not None and config.sliding_window < config.max_seq_len:
        problem = f"a sliding window of {config.sliding_window} tokens"
    elif config.rope_scaling != said:
        problem = f"another RoPE scaling than Llama 3's ({config.rope_scaling})"
    if problem:
        raise ConfigError(
            f"This model cannot be written for Meta's code: it has {problem}. Take --to safetensors or --to gguf."
        )


def ffn_settings(dim: int, ffn_dim: int) -> tuple[int, float | None]:
    """(multiple_of, ffn_dim_multiplier or None) from which `ffn_width` gives `ffn_dim` back.

    The multiple is the largest power of two up to 1,024 that divides the width; the multiplier, where one is needed,
    the shortest decimal.
    """
    multiple_of = math.gcd(ffn_dim, _LARGEST_MULTIPLE)
    if ffn_width(dim, multiple_of, None) == ffn_dim:
        return multiple_of, None
    base = ffn_width(dim, 1, None)
    # The plain ratio in few digits is what people write; the middle of what rounds up to the width always works.
    ratios = (ffn_dim / base, (ffn_dim + 1 - multiple_of / 2) / base)
    candidates = (round(ratio, digits) for digits in range(1, 18) for ratio in ratios)
    return multiple_of, next(m for m in candidates if ffn_width(dim, multiple_of, m) == ffn_dim)


def ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Hidden width of the SwiGLU block as Meta's code computes it: two thirds of 4 dim, scaled, rounded up."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def _refuse_others(params: Settings) -> None:
    for key, value in params.values.items():
        if value is None or key in _KNOWN:
            continue
        if key.startswith("vision_") and (value == -1 or key == "vision_max_num_chunks"):
            continue  # the defaults of a text model
        kind = _ELSEWHERE.get(key) or ("a vision model" if key.startswith("vision_") else None)
        if kind:
            raise ModelFileError(f"{params.path} is of {kind} ({key}); plain Llama text models can be read.")
        raise ModelFileError(
            f"{params.path} has the key {key!r}, which no Llama 2 or 3 has: what it changes is not known."
        )


def _ffn_dim(params: Settings, dim: int) -> int:
    if "hidden_dim" in params:
        return params.integer("hidden_dim")
    multiplier = params.number("ffn_dim_multiplier") if "ffn_dim_multiplier" in params else None
    try:
        return ffn_width(dim, params.integer("multiple_of"), multiplier)
    except OverflowError:
        raise ModelFileError(f"{params.path}: ffn_dim_multiplier is {multiplier!r}; no model is so wide.") from None


def _scaling(params: Settings, own: Settings, dim: int, n_layers: int) -> tuple[RopeScaling | None, str]:
    if params.get("use_scaled_rope") is not True:
        return None, PARAMS
    if "rope_factor" in own:
        return RopeScaling(own.number("rope_factor")), SIDECAR
    if "rope_scaling_factor" in params:
        return RopeScaling(params.number("rope_scaling_factor")), PARAMS
    factor = _FACTORS.get((dim, n_layers), _DEFAULT_FACTOR)
    return RopeScaling(factor), f"inferred from width {dim} and {n_layers} layers"


def _context(params: Settings, own: Settings, theta: float, scaling: RopeScaling | None) -> tuple[int, tuple[str, ...]]:
    for source in (own, params):
        if "max_seq_len" in source:
            return source.integer("max_seq_len"), ()
    length = _SCALED_CONTEXT if scaling else _CONTEXTS.get(theta, _LLAMA_2_CONTEXT)
    said = f"{PARAMS} does not say how long the context is; from its RoPE settings, {length:,} tokens"
    if scaling or theta in _CONTEXTS:
        return length, (f"{said}.",)
    return length, (f"{said}, as Llama 2 has them (Llama 1, whose settings are the same, has {_LLAMA_1_CONTEXT:,}).",)
