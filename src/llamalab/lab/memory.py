"""What a GGUF model needs in memory before it is loaded: weights, their copies, KV cache, buffers, the process itself.

Two accounts side by side: a formula over the header (`memory_formula.py`), and llama.cpp's own layout of a context
that it does not allocate (`memory_dry_run.py`). The estimate takes the second. `memory_measure.py` says what a process
really took.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llamalab.checkpoints.gguf_file import joined_tensors, read_gguf_parts
from llamalab.checkpoints.stored import Stored
from llamalab.engines import machine
from llamalab.engines.context import context_length, sequences, uses_flash_attention
from llamalab.engines.gguf_header import CACHE_TYPES
from llamalab.engines.native import api
from llamalab.engines.options import Options, parse_options
from llamalab.engines.weights import checked_header, weight_bytes
from llamalab.errors import ConfigError, OutOfMemory
from llamalab.lab.memory_child import Child
from llamalab.lab.memory_copies import copied_bytes
from llamalab.lab.memory_estimate import Estimate, Measured, Part
from llamalab.lab.memory_formula import (
    Buffers,
    Setting,
    buffers,
    cache_layers,
    largest,
    sizes,
    windowed_saving,
    work_bytes,
)
from llamalab.lab.memory_weights import place

_WORTH_SAYING = 64 * 2**20

_STRETCH = 4  # times the context it was trained for: so far RoPE is stretched in use; beyond it is a slip of the pen


def estimate(path: Path, *, measure: bool = False, **options: Any) -> Estimate:
    """What the model in `path` needs; see `ModelMemory.estimate` for `options`.

    Args:
        path: a GGUF file; of a split model, any part.
        measure: load the model as well, fill its context, and say what that took.
        options: n_ctx, n_seq, kv_type, flash_attn, n_batch, n_ubatch, gpu_layers.

    Raises:
        As `ModelMemory`.
    """
    with ModelMemory(path) as memory:
        return memory.estimate(measure=measure, **options)


class ModelMemory:
    """A model file whose memory is looked at. A context manager: leaving it ends the process that llama.cpp runs in.

    Args:
        path: a GGUF file; of a split model, any part.

    Raises:
        ModelNotFound: no such file.
        ModelFileError: not a GGUF file, damaged, cut off, a part missing, or of an architecture llama.cpp cannot run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.header = checked_header(self.path, vocab_only=False)
        files = read_gguf_parts(self.path, lazy=True)
        self.fields: Mapping[str, Any] = files[0].fields
        self.tensors: dict[str, Stored] = joined_tensors(files)
        self.sizes = sizes(self.header, self.fields, self.tensors)
        self.n_layers = largest(self.fields.get(f"{self.header.architecture}.block_count"))
        self._child = Child(self.path)

    def __enter__(self) -> ModelMemory:
        return self

    def __exit__(self, *exception: object) -> None:
        self._child.__exit__(*exception)

    @cached_property
    def process(self) -> Mapping[str, int]:
        """Python, llama.cpp and the vocabulary without the model: {"peak", "anonymous", "file"}, bytes."""
        return self._child.ask("process")

    @cached_property
    def copies(self) -> dict[str, int]:
        """Bytes of the copy of each tensor that llama.cpp holds twice on this processor."""
        return self.copies_of(self.tensors)

    def copies_of(self, tensors: Mapping[str, Stored]) -> dict[str, int]:
        """The same for other tensors, as those of another quantisation."""
        # The process is measured before anything else happens in it.
        assert self.process
        return copied_bytes(tensors, lambda kinds: self._child.ask("copied", kinds=list(kinds))["shares"])

    def setting(
        self,
        *,
        n_ctx: int | None = None,
        n_seq: int = 1,
        kv_type: str = "f16",
        flash_attn: bool | str = "auto",
        n_batch: int = 512,
        n_ubatch: int = 512,
        on_gpu: bool = False,
    ) -> Setting:
        """What the engine makes of its options.

        Args:
            n_ctx: tokens of one sequence; None: the engine's default.
            n_seq: sequences at the same time.
            kv_type: of the KV cache, see `Options.type_k`.
            flash_attn: see `Options.flash_attn`.
            n_batch: most tokens given to llama.cpp at once.
            n_ubatch: most tokens computed at once.
            on_gpu: whether layers are on a GPU: there llama.cpp takes flash attention unless it is told not to.

        Raises:
            ConfigError: an option that cannot be, or a context far longer than the model was trained for.
        """
        if kv_type not in CACHE_TYPES:
            raise ConfigError(f"kv_type must be one of {', '.join(CACHE_TYPES)}, not {kv_type!r}.")
        if n_seq == 0:
            raise ConfigError("n_seq must be 1 or more, not 0.")
        given: dict[str, Any] = {"n_seq": n_seq, "type_k": kv_type, "type_v": kv_type, "flash_attn": flash_attn}
        given |= {"n_ctx": n_ctx, "n_batch": n_batch, "n_ubatch": n_ubatch, "n_gpu_layers": None if on_gpu else 0}
        options = parse_options(given)
        trained = self.header.context_length
        if n_ctx is not None and trained and n_ctx > _STRETCH * trained:
            raise ConfigError(
                f"n_ctx={n_ctx} is more than {_STRETCH} times the {trained} tokens of context that {self.path.name} "
                "was trained for."
            )
        n_ctx = context_length(self.header, options)
        return Setting(
            n_ctx=n_ctx,
            n_seq=n_seq,
            type_k=kv_type,
            type_v=kv_type,
            flash_attn=flash_attn is not False if on_gpu else uses_flash_attention(self.header, options, n_ctx),
            n_batch=options.n_batch,
            n_ubatch=options.n_ubatch,
        )

    def estimate(self, *, gpu_layers: int = 0, measure: bool = False, **options: Any) -> Estimate:
        """What an engine with these options needs once its context is full.

        Args:
            gpu_layers: layers on a GPU, the output counting as the last one; -1 for all.
            measure: run it as well, and say what that took.
            options: see `setting`.

        Raises:
            ConfigError: an option that cannot be, or a context far longer than the model was trained for.
            ModelFileError: llama.cpp cannot run the model.
            OutOfMemory: what is to be measured does not fit.
            EngineError: llama.cpp ended its process.
        """
        gpu_layers = self.n_layers + 1 if gpu_layers < 0 else min(gpu_layers, self.n_layers + 1)
        setting = self.setting(on_gpu=gpu_layers > 0, **options)
        process = self.process
        formula = buffers(self.header, self.sizes, setting)
        laid_out = Buffers(**self._child.ask("dry_run", options=asdict(setting)))
        first = self.n_layers + 1 - gpu_layers
        weights = place(self.tensors, self.copies, first=first)
        work = 0 if first <= 0 else self.work_bytes(setting)
        parts = (
            # Where the system does not split it, the peak will do.
            Part("process", None, None, process["anonymous"] + process["file"] or process["peak"], 0),
            Part("weights", weights.mapped + weights.vram, None, weights.mapped, weights.vram),
            Part("copies", None, None, weights.copies, 0),
            Part("KV cache", formula.kv, laid_out.kv, *self._split_cache(setting, formula, laid_out, first)),
            Part("compute", formula.compute, laid_out.compute, *self._split_compute(setting, laid_out, first)),
            Part("output", formula.output, laid_out.output, laid_out.output or 0, 0),
            Part("work area", work, None, work, 0),
        )
        needed = sum(part.ram for part in parts)
        without_mmap = needed - weights.mapped + weights.read
        # While it loads, the whole file is mapped and all copies are made, but there is no context yet.
        loading = parts[0].ram + weight_bytes(self.path) + weights.copies
        return Estimate(
            path=self.path,
            architecture=self.header.architecture,
            n_layers=self.n_layers,
            gpu_layers=gpu_layers,
            setting=setting,
            parts=parts,
            total=max(needed, loading, process["peak"]),
            vram=sum(part.vram for part in parts),
            reclaimable=weights.mapped + process["file"],
            without_mmap=without_mmap,
            measured=self.measure(setting, without_mmap) if measure else None,
            notes=tuple(self._notes(setting, formula, laid_out, gpu_layers)),
        )

    def measure(self, setting: Setting, needed: int) -> Measured:
        """What a process takes that runs the model: one of its own, so that nothing else is counted.

        Args:
            setting: what is asked of the model.
            needed: bytes that have to be free for it.

        Raises:
            OutOfMemory: they are not, or the model does not fit after all.
            EngineError: the process ended.
        """
        free = machine.available_memory()
        if free is not None and needed > free:
            raise OutOfMemory(
                f"{self.path.name} cannot be measured here: {needed / 2**30:.2f} GiB have to stay in memory, and "
                f"{free / 2**30:.2f} GiB are free."
            )
        with Child(self.path) as child:
            return Measured(**child.ask("fill", options=asdict(setting)))

    def work_bytes(self, setting: Setting, tensors: Mapping[str, Stored] | None = None) -> int:
        """Work area of the CPU backend, for this model or for one with other tensors."""
        chosen = self.tensors if tensors is None else tensors
        return work_bytes(self.sizes, setting, {t.dtype for t in chosen.values() if len(t.shape) > 1})

    def _split_cache(self, setting: Setting, formula: Buffers, laid_out: Buffers, first: int) -> tuple[int, int]:
        """(RAM, VRAM): by layers where the formula knows them, else by their number."""
        total = laid_out.kv or 0
        if first > self.n_layers:
            return total, 0
        if formula.kv is None or self.sizes.n_states:
            on_gpu = round(total * (self.n_layers - max(0, first)) / max(1, self.n_layers))
            return total - on_gpu, on_gpu
        layers = cache_layers(self.header, setting)
        return sum(layers[: max(0, first)]), sum(layers[max(0, first) :])

    def _split_compute(self, setting: Setting, laid_out: Buffers, first: int) -> tuple[int, int]:
        """(RAM, VRAM): a buffer on each side that computes layers; of a model wholly on a GPU, the input stays."""
        total = laid_out.compute or 0
        if first > self.n_layers:
            return total, 0
        return (total, total) if first > 0 else (4 * setting.tokens * (self.sizes.dim + setting.cells), total)

    def _flash_saving(self, setting: Setting, laid_out: Buffers) -> int:
        if setting.flash_attn:
            return 0
        other = replace(setting, flash_attn=True)
        compute = int(self._child.ask("dry_run", options=asdict(other))["compute"])
        return (laid_out.compute or 0) - compute + self.work_bytes(setting) - self.work_bytes(other)

    def _notes(self, setting: Setting, formula: Buffers, laid_out: Buffers, gpu_layers: int) -> Iterator[str]:
        arch, trained = self.header.architecture, self.header.context_length
        if trained and setting.n_ctx > trained:
            yield f"The model was trained for {trained} tokens of context, less than n_ctx={setting.n_ctx}."
        if formula.kv is None:
            yield f"The formula does not know the caches of the architecture {arch!r}; llama.cpp's layout alone counts."
        elif formula.compute is None:
            yield f"The formula does not know the computation of the architecture {arch!r}; llama.cpp's layout counts."
        default = sequences(self.header, Options(type_k=setting.type_k, type_v=setting.type_v), setting.n_ctx)
        if default != setting.n_seq:
            yield (
                f"For {setting.n_seq} sequence{'s' * (setting.n_seq > 1)}; the engine's own default here is {default}, "
                "each with a KV cache of its own."
            )
        saving = self._flash_saving(setting, laid_out)
        if saving > _WORTH_SAYING:
            yield f"With flash attention (--flash-attn on) it would be {saving / 2**20:.0f} MiB less."
        saving = windowed_saving(self.header, self.fields, setting)
        if saving:
            yield (
                f"{saving / 2**20:.0f} MiB of the KV cache lie outside sliding windows; the engine keeps them, so that "
                "prompts that begin alike share their beginning."
            )
        if gpu_layers and not api.llama_supports_gpu_offload():
            yield "This llama.cpp has no GPU support: the split is computed, for a machine that has one."
