"""What decides the bits of a score besides the token ids: model, runtime, machine, options, mode.

A fingerprint is taken without loading the model: files are hashed once (`checkpoints/checksum.py` keeps the sums), the
rest is asked of the runtime. `key` is a hash of what decides the bits; `facts` say the same for people, with what is
only worth knowing (threads, context) beside it.

Strict scores of llama.cpp do not depend on the number of threads or the length of the context. Those of JAX are
computed over a cache as long as the context, on as many cores as there are, so there both join the key.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from llamalab.checkpoints.checksum import sha256
from llamalab.checkpoints.locate import locate
from llamalab.checkpoints.split import model_parts
from llamalab.engines import PROVIDERS
from llamalab.engines.machine import instruction_sets, physical_cores, processor
from llamalab.errors import ModelFileError
from llamalab.scored import ScoreMode

SCHEDULES: Mapping[str, int] = {"llama_cpp": 3, "jax": 2, "transformers": 2, "meta": 2}
"""Of each runtime: to be raised by one when the order of its computations, or the reduction of its logits, changes."""

_WEIGHTS = frozenset({".safetensors", ".pth", ".json", ".model", ".gguf"})  # what of a folder makes the model
_LIBRARIES = ("*.so", "*.so.*", "*.dylib", "*.dll")
_PACKAGES = {"jax": ("jax", "jaxlib"), "transformers": ("torch", "transformers"), "meta": ("torch", "llama-models")}
_RECORDED = ("n_ctx", "n_threads", "n_seq")
_PLACES = ("n_gpu_layers", "main_gpu", "tensor_split")  # options that mean nothing without a GPU


class Scoring(Protocol):
    """What of a `Policy` is looked at here."""

    @property
    def provider(self) -> str:
        """How the model is reached."""
        ...

    @property
    def model(self) -> str:
        """The model, as the provider names it."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """Of the engine."""
        ...


@dataclass(frozen=True, slots=True)
class FileState:
    """A file of the model as it was: size in bytes, time of change in ns, inode."""

    path: Path
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What computes scores.

    Attributes:
        key: 32 hexadecimal digits; equal keys and equal ids mean equal bits.
        facts: the key and what is behind it, for people; as JSON can say it.
        files: of the model, as they were.
        storable: whether it can be known again; not so for a remote endpoint, which may change behind its address.
    """

    key: str
    facts: Mapping[str, Any]
    files: tuple[FileState, ...] = field(default=(), compare=False)
    storable: bool = True

    def check_files(self) -> None:
        """See that the model's files are those that were hashed.

        Raises:
            ModelFileError: one has changed.
        """
        for file in self.files:
            if _state(file.path) != file:
                raise ModelFileError(
                    f"{file.path} changed while it was in use, so it is not known which model the scores are of. "
                    "Run again."
                )


def fingerprint(policy: Scoring, mode: ScoreMode) -> Fingerprint:
    """The fingerprint of a policy's engine in a mode; the policy's sampler and prompt are no part of it.

    Args:
        policy: or whatever has its provider, model and options.
        mode: of scoring.

    Raises:
        ModelNotFound, ModelFileError: the model cannot be found or read.
        ConfigError: an option that the engine does not have.
    """
    provider = policy.provider
    if provider not in PROVIDERS:
        facts = {"provider": provider, "model": policy.model, "mode": mode, "options": _plain(policy.options)}
        return Fingerprint(_hash(facts), {"key": _hash(facts)} | facts, storable=False)
    path = locate(policy.model)
    files = _model_files(path)
    states = tuple(_state(file) for file in files)
    weights = {str(file.relative_to(path.parent)): sha256(file) for file in files}
    if provider == "llama_cpp":
        decides, recorded, adapters = _llama_cpp(path, policy.options, mode)
        states += tuple(_state(file) for file in adapters)
    else:
        decides, recorded = _other(provider, policy.options)
    decides |= {
        "provider": provider,
        "schedule": SCHEDULES[provider],
        "mode": mode,
        # A single file may have any name; the parts of a folder are known by theirs.
        "model_sha256": next(iter(weights.values())) if path.is_file() and len(weights) == 1 else _hash(weights),
        "numpy": version("numpy"),
        "machine": platform.machine(),
        "cpu_features": cpu_features(),
    }
    key = _hash(decides)
    facts = {"key": key, "model": policy.model, "path": str(path), "processor": processor()} | decides | recorded
    return Fingerprint(key, facts, files=states)


@cache
def cpu_features() -> str:
    """A hash of the instruction sets that this processor has: kernels are chosen by them."""
    found = instruction_sets()
    return _hash(sorted(found))[:16] if found else processor()


@cache
def llama_cpp_libraries() -> str:
    """A hash of the shared libraries that llama-cpp-python loads.

    Raises:
        ModelFileError: they are not there.
    """
    folder = os.environ.get("LLAMA_CPP_LIB_PATH")
    spec = importlib.util.find_spec("llama_cpp")
    if folder is None and (spec is None or not spec.submodule_search_locations):
        raise ModelFileError("llama-cpp-python is not installed.")
    root = Path(folder) if folder else Path((spec.submodule_search_locations or [""])[0]) / "lib"  # type: ignore[union-attr]
    found = {path.resolve() for pattern in _LIBRARIES for path in root.glob(pattern)}
    if not found:
        raise ModelFileError(f"{root} has no shared libraries of llama.cpp.")
    return _hash(sorted((path.name, sha256(path)) for path in found))


def _llama_cpp(
    path: Path, given: Mapping[str, Any], mode: ScoreMode
) -> tuple[dict[str, Any], dict[str, Any], list[Path]]:
    """What decides, what is recorded, and the files of adapters."""
    from llamalab.engines.context import context_length, on_gpu, uses_flash_attention
    from llamalab.engines.kernels import identity, kernels_for
    from llamalab.engines.options import parse_options
    from llamalab.engines.scorer import strict_options
    from llamalab.engines.weights import checked_header

    options = parse_options(given)
    used = strict_options(options) if mode == "strict" else options
    adapters = [path.expanduser() for path, _ in options.adapters]
    header = checked_header(path, vocab_only=True)
    decides: dict[str, Any] = {
        "libraries": llama_cpp_libraries(),
        "type_k": used.type_k,
        "type_v": used.type_v,
        "n_batch": used.n_batch,
        "n_ubatch": used.n_ubatch,
        "n_outputs_max": used.n_outputs_max,
        "load_mode": used.load_mode,
        "flash_attn": used.flash_attn,
        "kernels": identity(kernels_for(header, used, scoring=True)),
        "adapters": [[sha256(file), scale] for file, (_, scale) in zip(adapters, options.adapters, strict=True)],
    }
    if used.flash_attn == "auto":  # the only choice that looks at the length of the context
        decides["flash_attn"] = uses_flash_attention(header, used, context_length(header, used))
    if on_gpu(used):
        decides["gpu"] = [_plain(getattr(used, name)) for name in _PLACES]
        decides["devices"] = _ggml_devices()
    recorded = {
        "llama_cpp_python": _version("llama-cpp-python"),
        "n_ctx": options.n_ctx,
        "n_threads": options.n_threads or physical_cores(),
    }
    return decides, recorded, adapters


def _other(provider: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides and what is recorded, for the runtimes in Python: all options may decide."""
    decides: dict[str, Any] = {name: _version(name) for name in _PACKAGES[provider]}
    decides["options"] = _plain({name: value for name, value in given.items() if name != "trace"})
    # The compilers of these runtimes look at the processor's model and caches, and cut products by its cores.
    decides |= {"cpu": processor(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0}
    if provider == "jax":
        import jax

        from llamalab.llama.native_products import available

        decides["native_products"] = available()  # where it is, matrices may be widened in pieces
        device = jax.devices()[0]
        decides["device"] = [device.platform, device.device_kind, str(device.client.platform_version)]
        decides["xla_flags"] = os.environ.get("XLA_FLAGS", "")
    else:
        import torch

        decides["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return decides, {name: given.get(name) for name in _RECORDED}


def _ggml_devices() -> list[str]:
    """How ggml describes the devices that it computes on."""
    import ctypes

    from llama_cpp import _ggml

    from llamalab.engines.native import registry

    library: Any = _ggml.libggml
    library.ggml_backend_dev_count.restype = ctypes.c_size_t
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    library.ggml_backend_dev_description.restype = ctypes.c_char_p
    library.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    with registry:
        devices = [library.ggml_backend_dev_get(number) for number in range(library.ggml_backend_dev_count())]
    return [(library.ggml_backend_dev_description(device) or b"").decode("utf-8", "replace") for device in devices]


def _model_files(path: Path) -> list[Path]:
    """The files that make a model, in order."""
    if path.is_file():
        return [part.absolute() for part in model_parts(path)]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _WEIGHTS and file.is_file())
    if not found:
        raise ModelFileError(f"{path} is a folder without a model.")
    return found


def _state(path: Path) -> FileState:
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    return FileState(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    """As JSON can say it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
