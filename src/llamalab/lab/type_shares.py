"""The tensors of a model, counted by type."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llamalab.checkpoints.stored import byte_size


@dataclass(frozen=True, slots=True)
class TypeShare:
    """The tensors of one type.

    Attributes:
        type: by ggml's name.
        n_tensors: how many.
        n_params: their values.
        size_bytes: what they take.
    """

    type: str
    n_tensors: int
    n_params: int
    size_bytes: int


def type_shares(tensors: Iterable[tuple[str, int]]) -> tuple[TypeShare, ...]:
    """Types and numbers of values, summed by type; the largest share first."""
    counted: dict[str, list[int]] = {}
    for type, n_params in tensors:
        counted.setdefault(type, []).append(n_params)
    shares = (
        TypeShare(type, len(sizes), sum(sizes), sum(byte_size(type, (size,)) for size in sizes))
        for type, sizes in counted.items()
    )
    return tuple(sorted(shares, key=lambda share: -share.size_bytes))
