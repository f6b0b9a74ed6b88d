"""What `llamalab doctor` finds out about this installation and this machine."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeAlias

Findings: TypeAlias = tuple[dict[str, Any], list[str]]
"""Facts of one section, and its problems."""

PACKAGES = (
    "llamalab",
    "llama-cpp-python",
    "llguidance",
    "gguf",
    "numpy",
    "pydantic",
    "jinja2",
    "tokenizers",
    "huggingface-hub",
)
OPTIONAL = ("jax", "optax", "torch", "transformers")
LOW_MEMORY = 2**29


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Facts by section, and what is wrong.

    Attributes:
        facts: section to name to value; JSON types only.
        problems: what is wrong and what to do, one sentence each; empty if all is well.
    """

    facts: Mapping[str, Mapping[str, Any]]
    problems: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Look at everything; nothing that is broken stops the rest."""
    facts: dict[str, Mapping[str, Any]] = {}
    problems: list[str] = []
    for section, look in _SECTIONS.items():
        try:
            found, wrong = look()
        except Exception as error:  # noqa: BLE001  (whatever is broken here is what the doctor is to report)
            found, wrong = {}, [str(error) or repr(error)]
        facts[section] = found
        problems += wrong
    return Diagnosis(facts, tuple(problems))


def _versions() -> Findings:
    found: dict[str, Any] = {"python": f"{platform.python_version()} ({sys.executable})"}
    for name in (*PACKAGES, *OPTIONAL):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    missing = [name for name in PACKAGES if found[name] is None]
    return found, [f"The package {name} is missing. Install it with: pip install {name}." for name in missing]


def _llama_cpp() -> Findings:
    import llama_cpp.llama_cpp as api

    import llamalab.engines.native  # noqa: F401  (checks the binding's structs against the library's)

    features = (api.llama_print_system_info() or b"").decode("utf-8", "replace")
    return {
        "features": " ".join(part.strip().replace(" = 1", "") for part in features.split("|") if part.strip()),
        "gpu_offload": bool(api.llama_supports_gpu_offload()),
        "mmap": bool(api.llama_supports_mmap()),
        "mlock": bool(api.llama_supports_mlock()),
    }, []


def _native() -> Findings:
    from llamalab.engines.kernels import available
    from llamalab.native.build import compiler

    return {"compiler": compiler(), "scoring_by": "llamalab" if available() else "llama.cpp"}, []


def _machine() -> Findings:
    from llamalab.checkpoints.names import human_size
    from llamalab.engines.machine import available_memory, physical_cores

    free = available_memory()
    problems = []
    if free is not None and free < LOW_MEMORY:
        problems.append(
            f"Only {human_size(free)} of memory is free: models larger than that will not load. Close other programs, "
            "or use a smaller quantisation."
        )
    return {
        "system": platform.platform(),
        "physical_cores": physical_cores(),
        "logical_cores": os.cpu_count(),
        "memory_free_bytes": free,
    }, problems


def _folders() -> Findings:
    from llamalab.checkpoints.hub import hub_endpoint
    from llamalab.checkpoints.hub_cache import hub_cache
    from llamalab.checkpoints.ollama import ollama_stores

    cache = hub_cache()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    problems = []
    if not os.access(existing, os.W_OK):
        problems.append(f"{existing} cannot be written to: nothing can be downloaded. Set HF_HOME to another folder.")
    return {
        "hub_cache": str(cache),
        "hub_endpoint": hub_endpoint(),
        "ollama": [str(store) for store in ollama_stores() if store.is_dir()],
    }, problems


def _pico() -> Findings:
    from llamalab.checkpoints.locate import locate

    path = locate("pico")
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"path": str(path), "size_bytes": path.stat().st_size, "sha256": digest}, []


_SECTIONS: Mapping[str, Callable[[], Findings]] = {
    "versions": _versions,
    "llama.cpp": _llama_cpp,
    "kernels": _native,
    "machine": _machine,
    "folders": _folders,
    "pico": _pico,
}
