"""What an estimate of memory says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llamalab.lab.memory_formula import Setting


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that takes memory, bytes.

    Attributes:
        name: "process", "weights", "copies", "KV cache", "compute", "output" or "work area".
        formula: from the header alone; None where the formula does not know the architecture.
        dry_run: as llama.cpp lays it out; None where it reports none.
        ram: the estimate's share in the machine's memory.
        vram: the estimate's share in the GPU's.
    """

    name: str
    formula: int | None
    dry_run: int | None
    ram: int
    vram: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What a process had in memory that loaded the model and filled its context, bytes.

    Attributes:
        peak: most at any moment.
        anonymous: at the end, memory that only this process has; 0 where the system does not tell.
        file: at the end, pages of files; 0 where the system does not tell.
    """

    peak: int
    anonymous: int
    file: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model needs.

    Attributes:
        path: of the model file.
        architecture: as the header names it.
        n_layers: of the model.
        gpu_layers: of these and the output, on a GPU, the last ones first.
        setting: what was asked of it.
        parts: each thing that takes memory.
        total: bytes of RAM at the peak.
        vram: bytes of a GPU's memory.
        reclaimable: bytes of `total` that are pages of files: the system may drop them and read them again.
        without_mmap: bytes that have to stay in RAM: all that is taken where the file is read instead of mapped
            (load_mode="read"), as pages of weights that llama.cpp has copied are not looked at again.
        measured: what a real run took, if one was asked for.
        notes: what the numbers do not say.
    """

    path: Path
    architecture: str
    n_layers: int
    gpu_layers: int
    setting: Setting
    parts: tuple[Part, ...]
    total: int
    vram: int
    reclaimable: int
    without_mmap: int
    measured: Measured | None = None
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float | None:
        """(total - measured peak) / measured peak; None without a measurement."""
        return None if self.measured is None else self.total / self.measured.peak - 1
