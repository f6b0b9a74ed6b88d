"""Shapes of Llamas: the published ones by name, and any other."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from llamalab.checkpoints.checkpoint import tensor_shapes
from llamalab.checkpoints.gguf_names import gguf_names
from llamalab.errors import ConfigError
from llamalab.llama.config import LlamaConfig, RopeScaling

SMALLEST_VOCABULARY = 32
"""Tokens: less leaves nothing beside control tokens and the commonest bytes."""

CUSTOM = "custom"
"""The name of a shape that is given by its sizes."""

_MOST_LAYERS = 512
"""llama.cpp's own limit."""

_NEEDED = {"n_layers": "layers", "dim": "dim", "n_heads": "heads", "ffn_dim": "ffn", "vocab_size": "vocab"}
"""Fields that a custom shape must have, and what the command line calls them."""

_CUSTOM_DEFAULTS: Mapping[str, Any] = {"max_seq_len": 8192, "rope_theta": 500_000.0, "tied": False}


@dataclass(frozen=True, slots=True)
class Shape:
    """Everything about a Llama that decides how large and how fast it is; no weights.

    Attributes:
        name: what it is called.
        n_layers: transformer blocks.
        dim: width of the residual stream.
        n_heads: query heads.
        n_kv_heads: key and value heads; each serves n_heads / n_kv_heads query heads.
        head_dim: width of one head, even.
        ffn_dim: hidden width of the SwiGLU block.
        vocab_size: tokens.
        max_seq_len: longest sequence the model is meant for, tokens.
        rope_theta: base of the rotary frequencies.
        tied: the output projection is the embedding.
        rope_factor: of Llama 3's scaling of the frequencies; None for none.

    Raises:
        ConfigError: sizes that no Llama has; names the field.
    """

    name: str
    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    max_seq_len: int
    rope_theta: float
    tied: bool
    rope_factor: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ConfigError(f"{field.name} is {value}; it has to be 1 or more.")
        if self.n_layers > _MOST_LAYERS:
            raise ConfigError(f"n_layers is {self.n_layers}; llama.cpp runs at most {_MOST_LAYERS}.")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_heads is {self.n_heads}, which is no multiple of n_kv_heads, {self.n_kv_heads}.")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embedding turns pairs, so it has to be even.")
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise ConfigError(f"vocab_size is {self.vocab_size}; it has to be {SMALLEST_VOCABULARY} or more.")
        if not 0 < self.rope_theta < math.inf:
            raise ConfigError(f"rope_theta is {self.rope_theta:g}; it has to be a positive number.")
        if self.rope_factor is not None and not 1 <= self.rope_factor < math.inf:
            raise ConfigError(f"rope_factor is {self.rope_factor:g}; it has to be 1 or more.")

    @property
    def config(self) -> LlamaConfig:
        """As the readers and engines of this project know it."""
        return LlamaConfig(
            dim=self.dim,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            ffn_dim=self.ffn_dim,
            vocab_size=self.vocab_size,
            max_seq_len=self.max_seq_len,
            rope_theta=self.rope_theta,
            rope_scaling=None if self.rope_factor is None else RopeScaling(self.rope_factor),
        )

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every weight by its name in a GGUF file, with its shape: [out, in] of a matrix."""
        names = gguf_names(self.n_layers)
        return {names[name]: size for name, size in tensor_shapes(self.config, tied=self.tied).items()}

    @property
    def n_params(self) -> int:
        """Number of parameters, a tied matrix counted once."""
        return sum(math.prod(size) for size in self.tensors.values())


_PUBLISHED = (
    Shape("llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128_256, 131_072, 500_000.0, True, 32.0),
    Shape("llama-3.2-3b", 28, 3072, 24, 8, 128, 8192, 128_256, 131_072, 500_000.0, True, 32.0),
    Shape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14_336, 128_256, 131_072, 500_000.0, False, 8.0),
    Shape("llama-2-7b", 32, 4096, 32, 32, 128, 11_008, 32_000, 4096, 10_000.0, False),
    Shape("llama-3.1-70b", 80, 8192, 64, 8, 128, 28_672, 128_256, 131_072, 500_000.0, False, 8.0),
)
SHAPES: Mapping[str, Shape] = {shape.name: shape for shape in _PUBLISHED}
"""Published sizes by name, as the models' own configurations have them."""


def shape_named(name: str) -> Shape:
    """The published shape of that name, upper or lower case.

    Raises:
        ConfigError: there is none; with the nearest name.
    """
    lowered = name.strip().casefold()
    if lowered in SHAPES:
        return SHAPES[lowered]
    near = difflib.get_close_matches(lowered, SHAPES, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"There is no shape '{name}'; there are {', '.join(SHAPES)}.{hint}")


def changed_shape(name: str, **changes: Any) -> Shape:
    """A published shape with other sizes, or one of given sizes alone.

    Args:
        name: of a published shape, or "custom", which needs n_layers, dim, n_heads, ffn_dim and vocab_size.
        changes: fields of `Shape`; those that are None stay as they are. Where `dim` or `n_heads` changes and
            `head_dim` is not given, it is dim / n_heads.

    Raises:
        ConfigError: an unknown name, a size that is missing, or sizes that no Llama has.
    """
    given = {field: value for field, value in changes.items() if value is not None}
    if name.strip().casefold() != CUSTOM:
        base = shape_named(name)
        if not given:
            return base
        values = {field.name: getattr(base, field.name) for field in fields(base)} | {"name": f"{base.name}, changed"}
    else:
        missing = [field for field in _NEEDED if field not in given]
        if missing:
            raise ConfigError(f"A custom shape needs {_listed(_NEEDED)}; not given: {_listed(missing)}.")
        values = {"name": CUSTOM, "n_kv_heads": given["n_heads"], **_CUSTOM_DEFAULTS}
    values |= given
    if "head_dim" not in given and given.keys() & {"dim", "n_heads"}:
        if min(values["dim"], values["n_heads"]) < 1 or values["dim"] % values["n_heads"]:
            raise ConfigError(
                f"dim is {values['dim']} and n_heads {values['n_heads']}: give a head_dim, as the one is no multiple "
                "of the other."
            )
        values["head_dim"] = values["dim"] // values["n_heads"]
    return Shape(**values)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(_NEEDED[name] for name in names)
