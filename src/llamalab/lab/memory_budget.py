"""The question the other way round: so much memory is there, what fits in it?

What has to stay in memory counts. Pages of the file whose content llama.cpp holds a second time are not looked at
again: the system drops them first, and nothing gets slower.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llamalab.checkpoints.stored import Stored
from llamalab.errors import ConfigError
from llamalab.lab.memory import ModelMemory
from llamalab.lab.memory_estimate import Estimate
from llamalab.lab.memory_weights import place
from llamalab.lab.shapes import Shape

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q4_0", "Q3_K_M", "Q2_K")
"""Quantisation types that a table compares: those that need no importance matrix, in falling size."""

_STEP = 256
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True)
class TypeFit:
    """One quantisation type of the model's shape.

    Attributes:
        type: its name.
        file_bytes: of its tensors.
        needed: bytes that have to stay in RAM at the estimate's context.
        largest_context: tokens of one sequence that fit; 0: none does.
    """

    type: str
    file_bytes: int
    needed: int
    largest_context: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What fits.

    Attributes:
        size: bytes that are there.
        largest_context: tokens of one sequence that fit in RAM; 0: none does.
        gpu_layers: layers (the output among them) whose part fits, if the budget is a GPU's memory.
        types: the same model in other quantisations; empty where its shape is not a Llama's.
    """

    size: int
    largest_context: int
    gpu_layers: int
    types: tuple[TypeFit, ...]


def parse_size(text: str) -> int:
    """Bytes: "24GB" is 24 * 10**9, "24GiB" 24 * 2**30, a number alone counts bytes.

    Raises:
        ConfigError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise ConfigError(f"'{text}' is no size of a memory. Write it as 24GB, 16GiB or 800MB.")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].upper()])


def budget(memory: ModelMemory, size: int, asked: Estimate, **options: Any) -> Budget:
    """What fits into `size` bytes.

    Args:
        memory: the model.
        size: bytes.
        asked: the estimate at the context in question.
        options: of that estimate, but for `n_ctx` and `gpu_layers`.

    Raises:
        As `ModelMemory.estimate`.
    """
    known = {} if asked.gpu_layers else {asked.setting.n_ctx: asked}
    most = memory.header.context_length or asked.setting.n_ctx
    turn = last_without_flash(memory, most, options)

    def at(n_ctx: int) -> Estimate:
        if n_ctx not in known:
            known[n_ctx] = memory.estimate(n_ctx=n_ctx, **options)
        return known[n_ctx]

    def largest(needed: Callable[[Estimate], int]) -> int:
        def fits(n_ctx: int) -> bool:
            return needed(at(n_ctx)) <= size

        return largest_context(fits, most, least=turn) or largest_context(fits, turn)

    def fit(type: str, tensors: Mapping[str, Stored]) -> TypeFit:
        weights = place(tensors, memory.copies_of(tensors), first=memory.n_layers + 1)

        def needed(own: Estimate) -> int:
            """What is not weights is the same as for the model's own type."""
            rest = sum(part.ram for part in own.parts if part.name not in ("weights", "copies", "work area"))
            return rest + weights.read + weights.copies + memory.work_bytes(own.setting, tensors)

        file_bytes = sum(tensor.nbytes for tensor in tensors.values())
        return TypeFit(type, file_bytes, needed(at(asked.setting.n_ctx)), largest(needed))

    return Budget(
        size=size,
        largest_context=largest(lambda own: own.without_mmap),
        gpu_layers=_most_layers(memory, size, asked, options),
        types=tuple(fit(type, tensors) for type, tensors in _types(memory).items()),
    )


def last_without_flash(memory: ModelMemory, most: int, options: Mapping[str, Any]) -> int:
    """The largest context up to `most` for which the engine does not take flash attention by itself; 0: none.

    Beyond it memory falls; on each side it rises with the context.
    """
    return largest_context(lambda n_ctx: not memory.setting(n_ctx=n_ctx, **options).flash_attn, most)


def largest_context(fits: Callable[[int], bool], most: int, *, least: int = 0) -> int:
    """The largest context above `least` and up to `most`, in llama.cpp's steps of 256 tokens, that fits; 0: none.

    Args:
        fits: true up to some context and false beyond it.
        most: tokens.
        least: tokens.
    """
    if most <= least:
        return 0
    if fits(most):
        return most
    low, high = least // _STEP, -(-most // _STEP)  # in steps: low fits, or is too small; high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * _STEP) else (low, middle)
    return low * _STEP if low * _STEP > least else 0


def shape_of(memory: ModelMemory) -> Shape | None:
    """The model's shape, if it is a Llama's and its tensors are those of that shape."""
    fields, sizes = memory.fields, memory.sizes
    if memory.header.architecture != "llama" or memory.header.key_length != memory.header.value_length:
        return None
    try:
        shape = Shape(
            name=str(fields.get("general.name") or memory.path.stem),
            n_layers=memory.n_layers,
            dim=sizes.dim,
            n_heads=sizes.n_heads,
            n_kv_heads=sizes.n_kv_heads,
            head_dim=sizes.key_length,
            ffn_dim=sizes.ffn_dim,
            vocab_size=sizes.n_vocab,
            max_seq_len=memory.header.context_length,
            rope_theta=float(fields.get("llama.rope.freq_base", 10_000.0)),
            tied="output.weight" not in memory.tensors,
        )
    except (ConfigError, TypeError, ValueError):
        return None
    held = {name: tensor.shape for name, tensor in memory.tensors.items() if not name.startswith("rope_freqs")}
    return shape if held == shape.tensors else None


def _types(memory: ModelMemory) -> Mapping[str, Mapping[str, Stored]]:
    """The tensors that each quantisation type would have."""
    from llamalab.lab.synth import planned_types

    shape = shape_of(memory)
    if shape is None:
        return {}
    return {type: _tensors(memory, shape, planned_types(shape, type)) for type in TYPES}


def _tensors(memory: ModelMemory, shape: Shape, types: Mapping[str, str]) -> dict[str, Stored]:
    """Tensors of these types, one after the other in one file."""
    found: dict[str, Stored] = {}
    offset = 0
    for name, size in shape.tensors.items():
        found[name] = Stored(memory.path, offset, types.get(name, "F32"), size)
        offset += found[name].nbytes
    return found


def _most_layers(memory: ModelMemory, size: int, asked: Estimate, options: Mapping[str, Any]) -> int:
    """Layers whose weights, caches and buffer fit into a GPU's memory at the context that was asked for."""

    def vram(layers: int) -> int:
        return memory.estimate(n_ctx=asked.setting.n_ctx, gpu_layers=layers, **options).vram

    return bisect.bisect_right(range(memory.n_layers + 2), size, key=vram) - 1
