"""Options of the llama.cpp engine: names, defaults, checks."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from llamalab.errors import ConfigError

Adapter = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]
"""Path of a LoRA adapter (GGUF), or (path, scale)."""

_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_LOAD_MODES = ("auto", "mmap", "mlock", "read")
_KERNELS = ("auto", "repacked", "plain", "llamalab")
_MAX_SEQUENCES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How llama.cpp loads and runs a model.

    Attributes:
        n_ctx: context of one request, tokens; None: what the model was trained for, at most 4096.
        n_seq: requests that run at the same time; each has a KV cache of `n_ctx` tokens of its own. None: 8,
            or as many as keep all KV caches together under 1 GiB. 0: none; the engine scores and does not generate.
        n_batch: most tokens given to llama.cpp at once; longer prompts are cut into such chunks.
        n_ubatch: most tokens computed at once; at most `n_batch`.
        n_threads: compute threads; None: the physical cores this process may use.
        n_gpu_layers: layers kept on the GPU, -1 all; None: all where llama.cpp was built with GPU support.
        tensor_split: share of the model on each GPU.
        main_gpu: GPU that holds what is not split.
        flash_attn: True, False, or "auto". llama.cpp's flash attention saves memory but rounds to float16, in
            other places for other batches: log probabilities move by some 0.01 nats. So "auto" leaves it off on
            the CPU unless the attention scores of one batch would take over 1 GiB, or the V cache is quantised
            (it has no other way); on a GPU llama.cpp decides.
        type_k: type of the K cache: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl.
        type_v: type of the V cache; a quantised one needs flash attention.
        n_outputs_max: rows of logits computed by one call; None: as many as needed (`n_seq`; while scoring,
            as many as take 96 MiB).
        load_mode: "mmap" maps the file, "mlock" also keeps it in memory, "read" copies it, "auto" lets
            llama.cpp choose.
        kernels: who multiplies with quantised weights on a CPU, see `kernels.py`: llama.cpp from a rearranged copy of
            them ("repacked") or as they lie in the file ("plain"), or "llamalab", for many rows at a time; "auto":
            "repacked" to generate, and to score whatever is fastest here. Log probabilities differ in their last bits.
        adapters: LoRA adapters to apply, each a path or (path, scale).
        vocab_only: load the tokeniser alone; nothing can be generated or scored.
        cache_prompts: keep what a finished request computed and reuse the part that the next prompt begins
            with. A conversation then answers sooner. The reused values were computed in other chunks, so
            the last bits of the log probabilities, and with them a text, may depend on what ran before.
    """

    n_ctx: int | None = None
    n_seq: int | None = None
    n_batch: int = 512
    n_ubatch: int = 512
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    flash_attn: bool | Literal["auto"] = "auto"
    type_k: str = "f16"
    type_v: str = "f16"
    n_outputs_max: int | None = None
    load_mode: str = "auto"
    kernels: Literal["auto", "repacked", "plain", "llamalab"] = "auto"
    adapters: tuple[tuple[Path, float], ...] = ()
    vocab_only: bool = False
    cache_prompts: bool = False


def parse_options(given: Mapping[str, Any]) -> Options:
    """Options by name, checked.

    Raises:
        ConfigError: an unknown name (with the nearest right one), or a value of the wrong kind or range.
    """
    names = [field.name for field in fields(Options)]
    for name in given:
        if name not in names:
            raise ConfigError(f"The llama.cpp engine has no option {name!r}.{nearest(name, names)}")
    values = dict(given)
    for name, least in (("n_ctx", 1), ("n_seq", 0), ("n_threads", 1), ("n_gpu_layers", -1), ("n_outputs_max", 1)):
        if values.get(name) is not None:
            _check_int(name, values[name], least)
    for name, least in (("n_batch", 1), ("n_ubatch", 1), ("main_gpu", 0)):
        if name in values:
            _check_int(name, values[name], least)
    for name in ("vocab_only", "cache_prompts"):
        if name in values and not isinstance(values[name], bool):
            raise ConfigError(f"{name} must be True or False, not {values[name]!r}.")
    if (values.get("n_seq") or 1) > _MAX_SEQUENCES:
        raise ConfigError(f"n_seq must be at most {_MAX_SEQUENCES}, not {values['n_seq']}.")
    _check_choice(values, "type_k", _CACHE_TYPES)
    _check_choice(values, "type_v", _CACHE_TYPES)
    _check_choice(values, "load_mode", _LOAD_MODES)
    _check_choice(values, "kernels", _KERNELS)
    flash = values.get("flash_attn", "auto")
    if not (flash == "auto" or isinstance(flash, bool)):
        raise ConfigError(f"flash_attn must be True, False or 'auto', not {flash!r}.")
    if flash is False and values.get("type_v", "f16") not in ("f32", "f16", "bf16"):
        raise ConfigError(f"A V cache of type {values['type_v']} needs flash attention; leave flash_attn at 'auto'.")
    if "tensor_split" in values:
        values["tensor_split"] = _shares(values["tensor_split"])
    if "adapters" in values:
        values["adapters"] = _adapters(values["adapters"])
    options = Options(**values)
    if options.n_ubatch > options.n_batch:
        options = Options(**(values | {"n_ubatch": options.n_batch}))
    if options.n_seq is not None and options.n_seq > options.n_batch:
        raise ConfigError(f"n_batch={options.n_batch} is too small for n_seq={options.n_seq}: one row each is needed.")
    if options.n_outputs_max is not None and options.n_seq is not None and options.n_outputs_max < options.n_seq:
        raise ConfigError(
            f"n_outputs_max={options.n_outputs_max} is less than n_seq={options.n_seq}: "
            "every sequence needs a row of logits."
        )
    return options


def nearest(name: str, names: Sequence[str]) -> str:
    """A sentence that names the closest of `names`, or lists them all."""
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(sorted(names))}."


def _check_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, not {value!r}.")
    if not least <= value < 2**31:
        raise ConfigError(f"{name} must be {least} or more, not {value}.")


def _check_choice(values: Mapping[str, Any], name: str, choices: Sequence[str]) -> None:
    value = values.get(name, choices[0])
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def _shares(value: object) -> tuple[float, ...]:
    try:
        shares = tuple(float(share) for share in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ConfigError(f"tensor_split must be a list of numbers, one for each GPU, not {value!r}.") from None
    if any(not 0 <= share < float("inf") for share in shares):
        raise ConfigError(f"tensor_split must be a list of numbers of at least 0, not {value!r}.")
    return shares


def _adapters(value: Any) -> tuple[tuple[Path, float], ...]:
    if isinstance(value, str | os.PathLike):
        value = [value]
    found = []
    for item in value:
        path, scale = item if isinstance(item, tuple) and len(item) == 2 else (item, 1.0)
        if not isinstance(path, str | os.PathLike) or not isinstance(scale, int | float):
            raise ConfigError(f"An adapter is a path or (path, scale), not {item!r}.")
        found.append((Path(path).expanduser().absolute(), float(scale)))
    return tuple(found)
