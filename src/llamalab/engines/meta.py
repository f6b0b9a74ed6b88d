"""Meta's own `Transformer`, from the llama-models package, as an engine: float32, on the CPU."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamalab.checkpoints.checkpoint import EMBEDDING, OUTPUT, Checkpoint, open_checkpoint
from llamalab.engines.checkpoint_engine import describe
from llamalab.engines.options import nearest
from llamalab.engines.reference import Logits, ReferenceEngine, check_memory, default_context
from llamalab.engines.tokenizer import open_tokenizer
from llamalab.engines.transformers import as_float32, hidden_states, import_torch, missing
from llamalab.errors import ConfigError, ModelFileError
from llamalab.llama.config import LlamaConfig, RopeScaling

_MODULES = ("llama_models.llama3.model", "llama_models.llama3.reference_impl.model")
_OPTIONS = ("n_ctx", "n_seq", "rope_factor", "as_published")
_SCALING = RopeScaling(factor=8.0)
"""The one scaling that Meta's code knows; its constants stand in `apply_scaling`."""


class MetaEngine(ReferenceEngine):
    """A checkpoint of any format that Meta's model code can hold, run by that code.

    Meta's code scales RoPE by a factor of 8, whatever the model. Where the checkpoint was trained with another
    (Llama 3.2 1B and 3B: 32), its table of rotations is computed anew, by Meta's formula with that factor, and `notes`
    says so.

    Args:
        path: a Meta folder, a Hugging Face folder or a GGUF file. The weights of a Meta folder with one
            `consolidated.00.pth` are read by `torch.load`, all others by llamalab's own readers.
        n_ctx: context, tokens; None: what the model was trained for, at most 4096.
        n_seq: accepted and without effect: requests run one after another.
        rope_factor: takes the place of the factor that the files say or imply.
        as_published: leave Meta's table of rotations as it is, factor 8 included.

    Raises:
        ConfigError: an option that cannot be, or a library that is missing.
        ModelFileError: a checkpoint that cannot be read, or that Meta's code cannot hold.
        OutOfMemory: the weights do not fit.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"The meta engine has no option {name!r}.{nearest(name, _OPTIONS)}")
        torch = self._torch = import_torch()
        code = _import_meta()
        checkpoint = open_checkpoint(Path(path).expanduser().absolute(), rope_factor=options.get("rope_factor"))
        n_ctx = default_context(checkpoint, options.get("n_ctx"))
        check_memory(checkpoint, 4 * checkpoint.n_params)
        _start_model_parallel(torch)
        notes = list(checkpoint.notes)
        model = code.Transformer(code.ModelArgs(**_arguments(checkpoint, n_ctx)))
        scaling = checkpoint.config.rope_scaling
        factor = scaling.factor if scaling is not None else 1.0
        other = scaling is not None and scaling != _SCALING
        if other and not options.get("as_published", False):
            model.freqs_cis = _rotations(torch, checkpoint.config, 2 * n_ctx)
            notes.append(
                f"Meta's code has 8 for RoPE's factor and the model {factor:g}: its table of rotations was computed "
                "anew with that factor (as_published=True leaves it as it is)."
            )
        elif other:
            notes.append(f"Meta's code has 8 for RoPE's factor, and runs as published; the model has {factor:g}.")
        state = {name: _to_torch(torch, array) for name, array in _weights(torch, checkpoint).items()}
        if checkpoint.tied:
            state[OUTPUT] = state[EMBEDDING]
        try:
            model.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            raise ModelFileError(f"Meta's Transformer refuses {checkpoint.path}: {error}") from error
        self._model: Any = model.eval()
        info = describe(checkpoint, provider="meta", n_ctx=n_ctx, size_bytes=4 * checkpoint.n_params)
        super().__init__(info, open_tokenizer(checkpoint), notes)

    def hidden(self, ids: Sequence[int]) -> list[Logits]:
        """The residual stream after each block, float32, (T, D) each."""
        tokens = self._checked(ids)
        with self._lock:
            cache = self._new_cache()
            return hidden_states(self._model.layers, lambda: self._run(cache, tokens, 0, slice(0, 0)))

    def _new_cache(self) -> Any:
        attention = self._model.layers[0].attention
        shape = (1, self.info.n_ctx, attention.n_local_kv_heads, attention.head_dim)
        return [(self._torch.zeros(shape), self._torch.zeros(shape)) for _ in self._model.layers]

    def _run(self, cache: Any, ids: Sequence[int], start: int, rows: slice) -> Logits:
        for layer, (keys, values) in zip(self._model.layers, cache, strict=True):
            layer.attention.cache_k, layer.attention.cache_v = keys, values  # written in place by the forward pass
        # Meta's code computes the logits of every row; only those asked for are let through to the last product.
        hook = self._model.output.register_forward_pre_hook(lambda _, args: (args[0][:, rows],))
        try:
            return as_float32(self._model(self._torch.tensor([list(ids)]), start)[0])
        finally:
            hook.remove()

    def _free(self) -> None:
        self._model = None


def _import_meta() -> Any:
    try:
        import fairscale  # noqa: F401  (named here, because the error of Meta's module would not name it)
    except ImportError as error:
        raise missing("fairscale", error) from error
    first: ImportError | None = None
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            first = first or error
    assert first is not None
    raise missing("llama-models", first) from first


def _start_model_parallel(torch: Any) -> None:
    """The process group of one that Meta's layers ask for; the store is this process, so no port is opened."""
    from fairscale.nn.model_parallel import initialize

    with contextlib.redirect_stdout(io.StringIO()):  # fairscale prints what it does
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        if not initialize.model_parallel_is_initialized():
            initialize.initialize_model_parallel(1)


def _arguments(checkpoint: Checkpoint, n_ctx: int) -> dict[str, Any]:
    """Of `ModelArgs`: what params.json says, so that Meta's code reads it by itself; else from our config."""
    config = checkpoint.config
    if config.head_dim * config.n_heads != config.dim:
        raise ModelFileError(
            f"{checkpoint.path}: Meta's code needs heads of dim / n_heads = {config.dim / config.n_heads:g}; "
            f"this model's are {config.head_dim} wide."
        )
    if config.sliding_window is not None and config.sliding_window < n_ctx:
        raise ModelFileError(
            f"{checkpoint.path} has a sliding window of {config.sliding_window} tokens, which Meta's code has not. "
            "A smaller n_ctx avoids it."
        )
    # Meta's code takes a third of 8 * dim, times a multiplier, up to the next multiple: here up to the width itself.
    arguments: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": config.ffn_dim,
        "ffn_dim_multiplier": 1.5 / int(8 * config.dim / 3),
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
    }
    if checkpoint.format == "meta":
        published = json.loads((checkpoint.path / "params.json").read_text(encoding="utf-8"))
        if "multiple_of" in published:
            arguments.pop("ffn_dim_multiplier")
        arguments |= {key: value for key, value in published.items() if key not in ("vocab_size", "use_scaled_rope")}
    return arguments | {"max_batch_size": 1, "max_seq_len": n_ctx}


def _weights(torch: Any, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Every weight by name. Those of a Meta folder come from `torch.load`: what is compared with reads by itself."""
    single = checkpoint.path / "consolidated.00.pth"
    if checkpoint.format == "meta" and single.is_file() and not (checkpoint.path / "consolidated.01.pth").exists():
        found: Mapping[str, Any] = torch.load(single, map_location="cpu", weights_only=True, mmap=True)
        return {name: value for name, value in found.items() if name in checkpoint.tensors}
    return {name: tensor.read() for name, tensor in checkpoint.tensors.items()}


def _to_torch(torch: Any, value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value, np.float32))


def _rotations(torch: Any, config: LlamaConfig, length: int) -> Any:
    """exp(i * position * frequency) by Meta's formula with this model's scaling, complex64, (length, head_dim / 2)."""
    from llamalab.llama.rope import rope_divisors

    head_dim, theta = config.head_dim, config.rope_theta
    plain = 1.0 / (theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
    divisors = torch.from_numpy(rope_divisors(head_dim, theta, config.rope_scaling)).float()
    angles = torch.outer(torch.arange(length, dtype=torch.float32), plain / divisors)
    return torch.polar(torch.ones_like(angles), angles)
