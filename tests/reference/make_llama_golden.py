"""Write tests/golden/llama/logits.npz: what Meta's Transformer and transformers compute for tiny random models.

    python -m venv reference && reference/bin/pip install torch transformers llama-models fairscale
    PYTHONPATH=src:. reference/bin/python tests/reference/make_llama_golden.py

Both in float32 on the CPU, from the weights that tests/llama/golden_models.py draws. Where both can run a model they
must agree with each other here, before anything is written.

NAME/rows      logits over the vocabulary at the model's `rows`
NAME/columns   logits of tokens 0 and 1 at every position
NAME/greedy    the tokens transformers goes on with after the first 16, its cache in use
ropes/NAME/REFERENCE  inverse frequencies of published models, radians per position
"""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Any

import fairscale.nn.model_parallel.initialize as fairscale_init
import llama_models.llama3.model as meta
import numpy as np
import torch
import transformers
from tests.llama.golden_models import GREEDY, MODELS, PROMPT, ROPES, GoldenModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llamalab.llama.config import LlamaConfig, RopeScaling

TARGET = Path(__file__).parent.parent / "golden" / "llama" / "logits.npz"
APPLY_SCALING = meta.apply_scaling
PLACES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def meta_logits(model: GoldenModel) -> np.ndarray[Any, Any]:
    """Logits (T, V) of Meta's own module."""
    config = model.config
    set_meta_factor(config.rope_scaling)
    args = meta.ModelArgs(
        dim=config.dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        vocab_size=config.vocab_size,
        multiple_of=config.ffn_dim,
        norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        use_scaled_rope=config.rope_scaling is not None,
        max_batch_size=1,
        max_seq_len=model.length,
    )
    transformer = meta.Transformer(args)
    tensors = {name: torch.from_numpy(value) for name, value in model.tensors().items()}
    tensors.setdefault("output.weight", tensors["tok_embeddings.weight"])
    transformer.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        return transformer(torch.from_numpy(model.tokens())[None], 0)[0].numpy()


def set_meta_factor(scaling: RopeScaling | None) -> None:
    """Meta's factor is a constant in its source: 8. Llama 3.2 was trained with 32."""
    if scaling is None or scaling.factor == 8:
        meta.apply_scaling = APPLY_SCALING
        return
    source = inspect.getsource(APPLY_SCALING)
    changed = source.replace("scale_factor = 8", f"scale_factor = {scaling.factor:g}")
    assert changed != source
    scope: dict[str, Any] = dict(vars(meta))
    exec(changed, scope)
    meta.apply_scaling = scope["apply_scaling"]


def hugging_face(model: GoldenModel) -> torch.nn.Module:
    """The same weights in transformers' module, query and key rows in its half-split order."""
    config = model.config
    kind = transformers.LlamaConfig if config.sliding_window is None else transformers.MistralConfig
    extra = {} if config.sliding_window is None else {"sliding_window": config.sliding_window}
    built = transformers.AutoModelForCausalLM.from_config(
        kind(
            hidden_size=config.dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.ffn_dim,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            rope_parameters=rope_parameters(config.rope_theta, config.rope_scaling),
            tie_word_embeddings=model.tied,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
            attn_implementation="eager",
            **extra,
        ),
        dtype=torch.float32,
    )
    tensors = {hugging_face_name(name): permuted(name, value, config) for name, value in model.tensors().items()}
    missing = built.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    assert missing.missing_keys == (["lm_head.weight"] if model.tied else [])
    return built.eval()


def rope_parameters(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_seq_len,
    }


def hugging_face_name(name: str) -> str:
    if not name.startswith("layers."):
        top = {"tok_embeddings.weight": "model.embed_tokens", "norm.weight": "model.norm", "output.weight": "lm_head"}
        return f"{top[name]}.weight"
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{PLACES[rest.removesuffix('.weight')]}.weight"


def permuted(name: str, value: np.ndarray[Any, Any], config: LlamaConfig) -> torch.Tensor:
    """Pairs side by side (Meta) become first halves before second halves (transformers)."""
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(name.split(".")[-2], 0)
    if heads:
        value = value.reshape(heads, -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    return torch.from_numpy(np.ascontiguousarray(value))


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> dict[str, np.ndarray[Any, Any]]:
    set_meta_factor(scaling)
    turned = meta.precompute_freqs_cis(head_dim, 2, theta, scaling is not None)[1]
    config = transformers.LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, rope_parameters=rope_parameters(theta, scaling)
    )
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
    compute = rotary.compute_default_rope_parameters if scaling is None else ROPE_INIT_FUNCTIONS["llama3"]
    return {"meta": torch.angle(turned).numpy(), "transformers": compute(config)[0].numpy()}


def main() -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571"}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    fairscale_init.initialize_model_parallel(1)
    kept: dict[str, np.ndarray[Any, Any]] = {}
    for model in MODELS:
        module = hugging_face(model)
        tokens = torch.from_numpy(model.tokens())[None]
        with torch.no_grad():
            logits = module(tokens).logits[0].numpy()
        if model.meta:
            official = meta_logits(model)
            apart = float(np.abs(official - logits).max())
            print(f"{model.name}: Meta's and transformers' logits are at most {apart:.1e} apart", file=sys.stderr)
            assert apart < 5e-5
            logits = official
        kept[f"{model.name}/rows"] = logits[model.rows]
        kept[f"{model.name}/columns"] = logits[:, :2]
        if model.greedy:
            with torch.no_grad():
                ids = module.generate(
                    tokens[:, :PROMPT], max_new_tokens=GREEDY, min_new_tokens=GREEDY, do_sample=False, use_cache=True
                )
            kept[f"{model.name}/greedy"] = ids[0, PROMPT:].numpy().astype(np.int16)
    for name, rope in ROPES.items():
        for reference, values in inverse_frequencies(*rope).items():
            kept[f"ropes/{name}/{reference}"] = values
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(TARGET, **kept)
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
