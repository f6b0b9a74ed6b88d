"""Options of the JAX engine: names, defaults, checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from llamalab.engines.options import nearest
from llamalab.errors import ConfigError
from llamalab.llama.entropix import TokenTrace
from llamalab.llama.entropix_cases import THRESHOLDS

Trace = Callable[[int, TokenTrace], None]
"""Called with the request's number in its call and what decided each of its tokens, in order."""

_DTYPES = ("float32", "bfloat16", "float16")
_SAMPLERS = ("plain", "entropix")
_LARGEST = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class JaxOptions:
    """How the JAX engine loads and runs a model.

    Attributes:
        n_ctx: context of one request, tokens; None: what the model was trained for, at most 4096.
        n_seq: requests that run at the same time; each has a KV cache of `n_ctx` tokens of its own. None: 8, or as
            many as keep all KV caches together under 1 GiB.
        n_batch: most tokens of prompts computed at once, a power of two; None: 512 on a CPU, 2048 elsewhere.
        dtype: of weights and cache: float32, bfloat16 or float16; None: float32 on a CPU, bfloat16 elsewhere.
        int8: keep the matrices in eight bits, one scale per output row.
        widen: make float32 of matrices that the files hold in bfloat16 when they are loaded. Else a CPU with
            dtype float32 keeps them as they are, where it has a product for that, and computes with the same numbers.
        mesh: devices to spread over, by named axes, e.g. "tensor=4"; None: the first device.
        rope_factor: takes the place of the RoPE scaling factor that the files say or imply; 1 means no scaling.
        sampler: "plain" draws as the request says; "entropix" by entropy and attention (`llamalab.llama.entropix`).
        thresholds: of entropix: "original" or "fractional".
        clarify: token that entropix inserts where the model is evenly unsure; None: none; "auto": Llama 3's where the
            model has its vocabulary.
        trace: called for each token that entropix decides.
    """

    n_ctx: int | None = None
    n_seq: int | None = None
    n_batch: int | None = None
    dtype: str | None = None
    int8: bool = False
    widen: bool = False
    mesh: str | None = None
    rope_factor: float | None = None
    sampler: str = "plain"
    thresholds: str = "original"
    clarify: int | Literal["auto"] | None = "auto"
    trace: Trace | None = None


def parse_jax_options(given: Mapping[str, Any]) -> JaxOptions:
    """Options by name, checked.

    Raises:
        ConfigError: an unknown name (with the nearest right one), or a value of the wrong kind or range.
    """
    names = [field.name for field in fields(JaxOptions)]
    for name in given:
        if name not in names:
            raise ConfigError(f"The JAX engine has no option {name!r}.{nearest(name, names)}")
    options = JaxOptions(**given)
    for name in ("n_ctx", "n_seq", "n_batch"):
        value = getattr(options, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST):
            raise ConfigError(f"{name} must be a whole number from 1 to {_LARGEST}, not {value!r}.")
    if options.n_batch is not None and (options.n_batch < 16 or options.n_batch & (options.n_batch - 1)):
        raise ConfigError(f"n_batch must be a power of two, at least 16, not {options.n_batch}.")
    for name in ("int8", "widen"):
        if not isinstance(getattr(options, name), bool):
            raise ConfigError(f"{name} must be True or False, not {getattr(options, name)!r}.")
    if options.mesh is not None and not isinstance(options.mesh, str):
        raise ConfigError(f"mesh must be text such as 'tensor=4', not {options.mesh!r}.")
    factor = options.rope_factor
    if factor is not None and (isinstance(factor, bool) or not isinstance(factor, int | float) or not factor >= 1):
        raise ConfigError(f"rope_factor must be a number of at least 1, not {factor!r}.")
    _check_choice("dtype", options.dtype, (*_DTYPES, None))
    _check_choice("sampler", options.sampler, _SAMPLERS)
    _check_choice("thresholds", options.thresholds, tuple(THRESHOLDS))
    clarify = options.clarify
    if clarify is not None and clarify != "auto" and (isinstance(clarify, bool) or not isinstance(clarify, int)):
        raise ConfigError(f"clarify must be a token id, None or 'auto', not {clarify!r}.")
    if options.sampler == "plain" and {"thresholds", "clarify", "trace"} & given.keys():
        raise ConfigError("thresholds, clarify and trace are of the entropix sampler: say sampler='entropix' as well.")
    return options


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices if choice is not None)
        raise ConfigError(f"{name} must be one of {known}, not {value!r}.")
