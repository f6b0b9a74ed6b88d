"""Weights and cache spread over several devices, by named axes.

Axis `tensor` splits every layer: the heads of attention, the hidden columns of the feed-forward block, the rows of the
vocabulary. Axis `data` splits a batch of sequences. XLA puts the sums between devices where they are needed: twice per
layer, behind `wo` and `w2`, as in Shoeybi et al. 2019, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from llamalab.errors import ConfigError
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig

AXES = ("data", "tensor")

ROWS, COLUMNS = PartitionSpec("tensor", None), PartitionSpec(None, "tensor")  # type: ignore[no-untyped-call]
WHOLE, CACHE = PartitionSpec(), PartitionSpec("data", "tensor", None, None)  # type: ignore[no-untyped-call]
_SPLIT = {
    "tok_embeddings": ROWS,
    "output": ROWS,
    "wq": ROWS,
    "wk": ROWS,
    "wv": ROWS,
    "wo": COLUMNS,
    "w1": ROWS,
    "w2": COLUMNS,
    "w3": ROWS,
}


def parse_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that a text such as "tensor=4" or "data=2,tensor=2" asks for; an axis not named has size 1.

    Args:
        text: axes and sizes.
        devices: to choose from, by default all there are; the first so many are taken.

    Raises:
        ConfigError: not of that form, or more devices than there are.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, number = (piece.strip() for piece in part.partition("="))
        if axis not in AXES or axis in sizes or not number.isdecimal() or int(number) < 1:
            raise ConfigError(
                f"'{text}' is not a mesh. Write axes and sizes, such as tensor=4 or data=2,tensor=2; "
                f"the axes are {' and '.join(AXES)}."
            )
        sizes[axis] = int(number)
    devices = jax.devices() if devices is None else devices
    wanted = math.prod(sizes.values())
    if wanted > len(devices):
        raise ConfigError(
            f"The mesh {text} needs {wanted} devices; there {'is' if len(devices) == 1 else 'are'} {len(devices)} "
            f"({devices[0].platform}). XLA_FLAGS=--xla_force_host_platform_device_count={wanted} makes a CPU pass for "
            "that many, to try it."
        )
    shape = [sizes.get(axis, 1) for axis in AXES]
    return Mesh(np.array(devices[:wanted]).reshape(shape), AXES)


def place(mesh: Mesh, config: LlamaConfig) -> Callable[[str, np.ndarray[Any, Any]], jax.Array]:
    """What puts each tensor, by Meta's name, where it belongs: the `place` of `load_weights`.

    Each device gets its own part alone; the whole is on none of them.

    Raises:
        ConfigError: heads, hidden columns or vocabulary do not divide by the size of the axis `tensor`.
    """
    _check_divisible(mesh, config)

    def put(name: str, values: np.ndarray[Any, Any]) -> jax.Array:
        placed: jax.Array = jax.device_put(values, NamedSharding(mesh, partition(name)))
        return placed

    return put


def partition(name: str) -> PartitionSpec:
    """How a tensor is split, by Meta's name: query heads, hidden columns and vocabulary over `tensor`; norms whole."""
    return _SPLIT.get(name.removesuffix(".weight").rsplit(".", 1)[-1], WHOLE)


def sharded_cache(mesh: Mesh, config: LlamaConfig, batch: int, length: int, dtype: DTypeLike = np.float32) -> KVCache:
    """An empty cache: sequences over `data`, kv heads over `tensor`; made in parts, on each device its own.

    Raises:
        ConfigError: `batch` does not divide by the size of the axis `data`.
    """
    if batch % mesh.shape["data"]:
        raise ConfigError(
            f"{batch} sequences do not divide over data={mesh.shape['data']}: take a multiple, or a smaller axis."
        )
    make = jax.jit(KVCache.new, static_argnums=(0, 1, 2, 3), out_shardings=NamedSharding(mesh, CACHE))
    cache: KVCache = make(config, batch, length, np.dtype(dtype))
    return cache


def device_bytes(tree: object) -> Mapping[jax.Device, int]:
    """How many bytes of the arrays in `tree` lie on each device."""
    held: dict[jax.Device, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return held


def _check_divisible(mesh: Mesh, config: LlamaConfig) -> None:
    size = mesh.shape["tensor"]
    counts = {
        "kv heads": config.n_kv_heads,
        "query heads": config.n_heads,
        "feed-forward columns": config.ffn_dim,
        "tokens of the vocabulary": config.vocab_size,
    }
    for what, count in counts.items():
        if count % size:
            raise ConfigError(
                f"The model's {count} {what} do not divide over tensor={size}: take a smaller axis, and data=N for "
                "more sequences at once."
            )
