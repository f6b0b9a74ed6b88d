"""How fast would a model be here that is not here yet: random weights of its shape, on as many layers as fit."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamalab.checkpoints.folders import cache_folder
from llamalab.checkpoints.stored import byte_size
from llamalab.engines.machine import available_memory
from llamalab.errors import ConfigError, OutOfMemory
from llamalab.lab.bench import run
from llamalab.lab.bench_setup import Result, Setup, plan
from llamalab.lab.shapes import Shape
from llamalab.lab.synth import planned_types, write_synthetic

_MEMORY_SHARE = 0.6
"""Of the free memory, for weights: some types are kept twice, and caches need room too."""

_DISK_SPARE = 2**30


@dataclass(frozen=True, slots=True)
class Fit:
    """Which layers of a shape are measured.

    Attributes:
        layers: one number, all of them, where the model fits; else two, for the step from one to the other.
        size_bytes: of the weights of the whole model.
    """

    layers: tuple[int, ...]
    size_bytes: int


def fit(shape: Shape, type: str, *, memory: int | None, disk: int, most: int | None = None) -> Fit:
    """How many layers fit.

    Args:
        shape: of the model.
        type: of its file, such as "Q4_K_M".
        memory: bytes free; None where it is not known.
        disk: bytes free.
        most: layers to measure at most; None: as many as fit.

    Raises:
        OutOfMemory: not even two layers fit.
        ConfigError: `most` is less than 2 and less than the model has.
    """
    types, sizes = planned_types(shape, type), shape.tensors
    inside = [0] * shape.n_layers
    outside = 0
    for name, kind in types.items():
        n_bytes = byte_size(kind, sizes[name])
        if name.startswith("blk."):
            inside[int(name.split(".")[1])] += n_bytes
        else:
            outside += n_bytes
    total = outside + sum(inside)
    room = disk - _DISK_SPARE if memory is None else min(int(_MEMORY_SHARE * memory), disk - _DISK_SPARE)
    layer = max(inside)
    fitting = min(shape.n_layers, max(0, room - outside) // layer) if total > room else shape.n_layers
    if most is not None:
        fitting = min(fitting, most)
    if fitting == shape.n_layers:
        return Fit((shape.n_layers,), total)
    if fitting < 2:
        if most is not None and most < 2:
            raise ConfigError(f"What {most} layers take does not tell what {shape.n_layers} take; measure 2 or more.")
        raise OutOfMemory(
            f"Two layers of {shape.name} in {type} take {(outside + 2 * layer) / 2**30:.1f} GiB and there is room for "
            f"{max(0, room) / 2**30:.1f} GiB. Choose a smaller type, or free memory and disk."
        )
    return Fit((fitting // 2, fitting), total)


def run_shape(
    shape: Shape,
    type: str,
    setups: Callable[[Sequence[str]], list[Setup]] = plan,
    *,
    most: int | None = None,
    keep: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Result]:
    """Write the model, or as much of it as fits, and measure it.

    Args:
        shape: of the model.
        type: of its file, such as "Q4_K_M".
        setups: what to measure, given specs.
        most: layers to measure at most.
        keep: leave the files in the cache folder, for another run.
        progress: is told what is being done.

    Yields:
        Results of the whole model: measured where all layers fit; else each repetition's time per token is continued
        along the line through two numbers of layers.
    """
    folder = cache_folder("synthetic")
    found = fit(shape, type, memory=available_memory(), disk=shutil.disk_usage(folder).free, most=most)
    measured: list[list[Result]] = []
    for layers in found.layers:
        part = dataclasses.replace(shape, n_layers=layers)
        with _file(part, type, folder, keep=keep, progress=progress) as path:
            measured.append(list(run(setups([f"llama_cpp:{path}"]), progress)))
    name = f"{shape.name} {type} (random weights)"
    for results in zip(*measured, strict=True):
        if len(results) == 1:
            yield dataclasses.replace(results[0], model=name, spec=shape.name)
        else:
            yield _extrapolated(name, shape, found, results)


@contextlib.contextmanager
def _file(shape: Shape, type: str, folder: Path, *, keep: bool, progress: Callable[[str], None]) -> Iterator[Path]:
    path = folder / f"{shape.name}-{shape.n_layers}-layers-{type}.gguf"
    made = not path.exists()
    try:
        if made:
            what = f"writing {shape.n_layers} layers of {shape.name} in {type}"
            write_synthetic(shape, path, type, progress=lambda done, of: progress(f"{what}: {done / of:.0%}"))
        yield path
    finally:
        if made and not keep:
            path.unlink(missing_ok=True)


def _extrapolated(name: str, shape: Shape, found: Fit, results: Sequence[Result]) -> Result:
    """A token takes the time of what is outside the layers, and of each layer: a line in their number."""
    (few, many), (first, second) = found.layers, results
    rates = []
    for a, b in zip(first.rates, second.rates, strict=True):
        layer = (1 / b - 1 / a) / (many - few)
        rates.append(1 / max(1 / b + layer * (shape.n_layers - many), 1e-9))
    return dataclasses.replace(
        second,
        model=name,
        spec=shape.name,
        n_params=shape.n_params,
        size_bytes=found.size_bytes,
        rates=tuple(rates),
        first_token=tuple(second.tokens * second.n_seq / rate for rate in rates) if second.first_token else (),
        peak_bytes=None,
        estimate_bytes=None,
        extrapolated=f"{few} and {many} of {shape.n_layers} layers",
    )
