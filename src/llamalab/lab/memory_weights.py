"""Where the weights of a file lie once it is loaded: mapped pages, copies, a GPU."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass

from llamalab.checkpoints.stored import Stored

_BLOCK = re.compile(r"blk\.(\d{1,6})\.")
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes that the weights take.

    Attributes:
        mapped: pages of the files that stay mapped: from the first to the last tensor that is used where it lies.
        read: the same tensors, if the files are read and not mapped.
        copies: tensors that llama.cpp holds in another order.
        vram: tensors on a GPU.
    """

    mapped: int
    read: int
    copies: int
    vram: int


def place(tensors: Mapping[str, Stored], copies: Mapping[str, int], *, first: int) -> Weights:
    """Lay the weights out.

    Args:
        tensors: of the model, by name.
        copies: bytes of each tensor's copy, of those that llama.cpp copies on a CPU.
        first: first layer on a GPU, the output being the one after the last; beyond that, nothing is on a GPU.
    """
    n_layers = 1 + max((_layer(name, 0) for name in tensors), default=-1)
    moved = {name for name in tensors if _layer(name, n_layers) >= first}
    tied = _OUTPUT not in tensors and _EMBEDDING in tensors
    output_moved = tied and first <= n_layers
    copied = {name: size for name, size in copies.items() if name not in moved}
    if output_moved:
        copied.pop(_EMBEDDING, None)
    # A copied tensor is not looked at again where it lies, but for an embedding that is the output projection too.
    in_place = [t for name, t in tensors.items() if name not in moved and (name not in copied or name == _EMBEDDING)]
    return Weights(
        mapped=_mapped(in_place),
        read=sum(tensor.nbytes for tensor in in_place),
        copies=sum(copied.values()),
        vram=sum(tensors[name].nbytes for name in moved) + (tensors[_EMBEDDING].nbytes if output_moved else 0),
    )


def _layer(name: str, n_layers: int) -> int:
    """The layer of a tensor: its block, the output's place after the last, or before all of them."""
    block = _BLOCK.match(name)
    if block is not None:
        return int(block[1])
    return n_layers if name.startswith("output") else -1


def _mapped(tensors: list[Stored]) -> int:
    page = mmap.PAGESIZE
    total = 0
    for path in {tensor.path for tensor in tensors}:
        used = [tensor for tensor in tensors if tensor.path == path]
        begin = min(tensor.offset for tensor in used) // page
        end = max(-(-(tensor.offset + tensor.nbytes) // page) for tensor in used)
        total += (end - begin) * page
    return total
