"""Hugging Face's transformers as an engine: a Llama in a folder of safetensors, run by the library's own code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamalab.checkpoints.checkpoint import open_checkpoint
from llamalab.engines.checkpoint_engine import describe
from llamalab.engines.options import nearest
from llamalab.engines.reference import Logits, ReferenceEngine, check_memory, default_context
from llamalab.engines.tokenizer import open_tokenizer
from llamalab.errors import ConfigError, ModelFileError

_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
_OPTIONS = ("n_ctx", "n_seq", "dtype", "device")


class TransformersEngine(ReferenceEngine):
    """A Hugging Face folder behind `AutoModelForCausalLM`.

    Args:
        path: the folder with config.json.
        n_ctx: context, tokens; None: what the model was trained for, at most 4096.
        n_seq: accepted and without effect: requests run one after another.
        dtype: "float32", "bfloat16" or "float16".
        device: where PyTorch runs it: "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ConfigError: an option that cannot be, or a library that is missing.
        ModelFileError: a folder that cannot be run.
        OutOfMemory: the weights do not fit.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        values = _checked_options(options)
        folder = Path(path).expanduser().absolute()
        if not (folder / "config.json").is_file():
            raise ModelFileError(
                f"{folder} is no Hugging Face folder (it has no config.json), and transformers runs nothing else. "
                f"Make one with: llamalab convert {folder} FOLDER --to safetensors"
            )
        torch, transformers = import_torch(), _import_transformers()
        checkpoint = open_checkpoint(folder)
        width = _WIDTHS[values["dtype"]]
        if values["device"] == "cpu":
            check_memory(checkpoint, width * checkpoint.n_params)
        self._torch = torch
        self._device = _device(torch, values["device"])
        transformers.utils.logging.disable_progress_bar()
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, values["dtype"]), local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelFileError(f"transformers cannot load {folder}: {said}") from error
        finally:
            transformers.utils.logging.enable_progress_bar()
        self._model: Any = model.to(self._device).eval()
        self._cache = transformers.DynamicCache
        info = describe(
            checkpoint,
            provider="transformers",
            n_ctx=default_context(checkpoint, values["n_ctx"]),
            size_bytes=width * checkpoint.n_params,
        )
        super().__init__(info, open_tokenizer(checkpoint), checkpoint.notes)

    def hidden(self, ids: Sequence[int]) -> list[Logits]:
        """The residual stream after each block, float32, (T, D) each."""
        tokens = self._checked(ids)
        with self._lock:
            return hidden_states(self._model.model.layers, lambda: self._run(None, tokens, 0, slice(0, 1)))

    def _new_cache(self) -> Any:
        return self._cache(config=self._model.config)

    def _run(self, cache: Any, ids: Sequence[int], start: int, rows: slice) -> Logits:
        torch = self._torch
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([list(ids)], device=self._device),
                position_ids=torch.arange(start, start + len(ids), device=self._device)[None],
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=torch.arange(len(ids), device=self._device)[rows],
            )
        return as_float32(output.logits[0])

    def _free(self) -> None:
        self._model = None


def import_torch() -> Any:
    """PyTorch.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise missing("PyTorch", error) from error
    return torch


def missing(library: str, error: ImportError) -> ConfigError:
    """The error to raise where a library of the `reference` extra cannot be imported."""
    return ConfigError(f"{library} cannot be imported ({error}). Install it with: pip install 'llamalab[reference]'")


def as_float32(tensor: Any) -> Logits:
    """A PyTorch tensor as a float32 array of its own."""
    return np.array(tensor.detach().float().cpu().numpy(), np.float32)


def hidden_states(blocks: Sequence[Any], forward: Any) -> list[Logits]:
    """What each of a PyTorch model's `blocks` returns for the one sequence that `forward()` runs."""
    found: list[Logits] = []

    def keep(_block: object, _input: object, output: Any) -> None:
        found.append(as_float32((output[0] if isinstance(output, tuple) else output)[0]))

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _checked_options(given: dict[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in _OPTIONS:
            raise ConfigError(f"The transformers engine has no option {name!r}.{nearest(name, _OPTIONS)}")
    values: dict[str, Any] = {"n_ctx": None, "dtype": "float32", "device": "cpu"} | given
    if values["dtype"] not in _WIDTHS:
        raise ConfigError(f"dtype must be one of {', '.join(_WIDTHS)}, not {values['dtype']!r}.")
    return values


def _device(torch: Any, name: str) -> Any:
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"PyTorch has no device {name!r} here: {str(error).splitlines()[0]}") from error


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise missing("transformers", error) from error
    return transformers
