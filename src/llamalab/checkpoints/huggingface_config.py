"""config.json of a Hugging Face folder: the shape of a Llama, or a refusal that names what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamalab.checkpoints.checkpoint import Checkpoint
from llamalab.checkpoints.json_file import Settings, shown
from llamalab.checkpoints.scaling import chosen_scaling
from llamalab.errors import ModelFileError
from llamalab.llama.config import LlamaConfig, RopeScaling

CONFIG = "config.json"

_ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}
_MISTRAL_WINDOW = 4096
"""What transformers takes for a Mistral whose config.json does not say."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1,),
}
"""Settings that change what is computed, with the values that a Llama has."""

_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def parse_config(raw: Mapping[str, Any], path: Path, rope_factor: float | None) -> tuple[LlamaConfig, str]:
    """The shape, and where the RoPE scaling is from.

    Args:
        raw: what the file says.
        path: of the file.
        rope_factor: takes the place of the scaling factor; 1 means no scaling.

    Raises:
        ModelFileError: another architecture, a setting that no Llama has, a key missing or of a wrong type.
    """
    model_type = _model_type(raw, path)
    for key, allowed in _NEUTRAL.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise ModelFileError(f"{path}: {key} is {shown(raw[key])}; only {allowed[0]!r} is implemented.")
    keys = Settings(raw, path)
    dim, n_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    if raw.get("head_dim") is None and dim % n_heads:
        raise ModelFileError(f"{path}: a hidden_size of {dim} cannot be cut into {n_heads} heads.")
    head_dim = keys.integer("head_dim", dim // n_heads)
    # Mistral's class has a default of its own here, so a file must say it.
    n_kv_heads = keys.integer("num_key_value_heads", n_heads if model_type == "llama" else None)
    if n_heads % n_kv_heads or head_dim % 2:
        raise ModelFileError(f"{path}: {n_heads} heads of {head_dim}, {n_kv_heads} for keys: no Llama has that.")
    context = keys.integer("max_position_embeddings")
    theta, found = _rope(keys)
    scaling, source = chosen_scaling(found, CONFIG, rope_factor)
    window = raw.get("sliding_window", _MISTRAL_WINDOW) if model_type == "mistral" else None
    if window is not None and keys.integer("sliding_window", _MISTRAL_WINDOW) >= context:
        window = None
    config = LlamaConfig(
        dim=dim,
        n_layers=keys.integer("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=keys.integer("intermediate_size"),
        vocab_size=keys.integer("vocab_size"),
        max_seq_len=context,
        rope_theta=theta,
        norm_eps=keys.number("rms_norm_eps"),
        rope_scaling=scaling,
        sliding_window=window,
    )
    return config, source


def made_config(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """What config.json says of a checkpoint whose matrices are in `dtype`; transformers 4 and 5 both read it.

    `LlamaForCausalLM` knows neither a sliding window nor a width that is no multiple of the heads;
    `MistralForCausalLM` is the same model with both.
    """
    config, vocabulary = checkpoint.config, checkpoint.vocabulary
    mistral = config.sliding_window is not None or config.dim % config.n_heads != 0
    stops = sorted(vocabulary.stop_ids, key=lambda stop: (stop != vocabulary.eos_id, stop))
    made: dict[str, Any] = {
        "_name_or_path": checkpoint.name,
        "architectures": ["MistralForCausalLM" if mistral else "LlamaForCausalLM"],
        "model_type": "mistral" if mistral else "llama",
        "torch_dtype": _TORCH_NAMES[dtype],
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _made_rope(config.rope_scaling),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": checkpoint.tied,
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops or vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id,
    }
    return made | ({"sliding_window": config.sliding_window} if mistral else {})


def _model_type(raw: Mapping[str, Any], path: Path) -> str:
    """Which of the two it is, "llama" or "mistral"."""
    quantised = raw.get("quantization_config") or raw.get("compression_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        raise ModelFileError(
            f"{path} says that the weights are quantised ({method or 'quantization_config'}); only F32, F16 and BF16 "
            "can be read from safetensors. Take the original model, or a GGUF of it."
        )
    listed = raw.get("architectures")
    names = [str(name)[:60] for name in listed] if isinstance(listed, list) else []
    model_type = str(raw.get("model_type") or _ARCHITECTURES.get(names[0] if names else "", "unknown"))[:60]
    if any(name not in _ARCHITECTURES for name in names) or model_type not in _ARCHITECTURES.values():
        what = ", ".join(names) or f"of the type '{model_type}'"
        raise ModelFileError(
            f"{path} describes a model that is {what} (model_type '{model_type}'); only dense text Llamas can be read: "
            f"{' and '.join(_ARCHITECTURES)}."
        )
    return model_type


def _rope(keys: Settings) -> tuple[float, RopeScaling | None]:
    """Base and scaling, in the form of transformers 5 (`rope_parameters`) or of those before."""
    said = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    if not isinstance(said, Mapping) or any(isinstance(value, Mapping) for value in said.values()):
        raise ModelFileError(f"{keys.path}: its RoPE parameters are not those of a Llama: {shown(said)}.")
    rope = Settings({**keys.values, **said}, keys.path)
    theta = rope.number("rope_theta", 10_000.0)
    kind = said.get("rope_type") or said.get("type") or "default"
    if rope.values.get("partial_rotary_factor", 1) != 1:
        raise ModelFileError(f"{keys.path}: partial_rotary_factor is not 1; a Llama's heads are rotated whole.")
    if kind == "default" or (kind == "linear" and said.get("factor") == 1):
        return theta, None
    if kind != "llama3":
        raise ModelFileError(
            f"{keys.path} asks for RoPE scaling of the type {shown(kind)}; 'llama3' or none can be read."
        )
    scaling = RopeScaling(
        rope.number("factor"),
        rope.number("low_freq_factor"),
        rope.number("high_freq_factor"),
        rope.integer("original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ModelFileError(f"{keys.path}: high_freq_factor has to be larger than low_freq_factor.")
    return theta, None if scaling.factor == 1 else scaling


def _made_rope(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_seq_len,
    }
