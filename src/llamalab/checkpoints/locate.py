"""From what a user types to a model's file: a path, `pico`, `hub:...`, or a name that this machine knows."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from llamalab.checkpoints.hub import download as download_from_hub
from llamalab.checkpoints.hub_cache import HubName, cached_folder, cached_models, find_cached, hub_cache
from llamalab.checkpoints.meta_store import find_meta_model, meta_models, meta_stores
from llamalab.checkpoints.names import LocalModel
from llamalab.checkpoints.ollama import find_ollama_model, ollama_models, ollama_stores
from llamalab.errors import ModelFileError, ModelNotFound

PICO = Path(__file__).parent.parent / "models" / "pico.gguf"
"""The built-in model."""

_HUB_PREFIX = "hub:"


def locate(name: str, *, download: bool = True, progress: bool = True) -> Path:
    """The file (or folder) behind `name`.

    Looked up in this order: `pico`; `hub:org/repo[:quantisation]`, downloaded if it must be; an existing path; a model
    in the Hugging Face cache, as `org/repo`, `org/repo:quantisation` or by its file name; a model in ollama's store,
    as `llama3.2:3b`; one that Meta's commands have downloaded, as `Llama3.2-1B-Instruct`.

    Args:
        name: what the user typed; `~` is the home folder.
        download: whether `hub:` may use the network; if not, only the cache counts.
        progress: show a bar while downloading, if standard error is a terminal.

    Returns:
        An existing path; of a split model its first part; of a checkpoint in several files its folder.

    Raises:
        ModelNotFound: nothing has that name. The message says where it was looked for, and the nearest names.
        ModelFileError: the built-in model is missing from the installation.
        ProviderError: the download failed.
    """
    if name == "pico":
        return _pico()
    if name.startswith(_HUB_PREFIX):
        return _from_hub(HubName.require(name.removeprefix(_HUB_PREFIX)), download=download, progress=progress)
    path = Path(name).expanduser()
    if name and path.exists():
        return path
    if _looks_like_path(name):
        raise ModelNotFound(_no_such_file(path))
    return _by_name(name)


def local_models() -> list[LocalModel]:
    """Every model on this machine that has a name: built in, in the hub's cache, in ollama's store, in Meta's."""
    pico = [LocalModel("pico", "built-in", PICO, PICO.stat().st_size, "Q8_0")] if PICO.is_file() else []
    return [*pico, *cached_models(), *ollama_models(), *meta_models()]


def _pico() -> Path:
    if not PICO.is_file():
        raise ModelFileError(
            f"The built-in model is missing from this installation ({PICO}). Install llamalab again, or name another "
            "model; `llamalab models` lists what is here."
        )
    return PICO


def _from_hub(name: HubName, *, download: bool, progress: bool) -> Path:
    if download:
        return download_from_hub(name, progress=progress)
    cached = find_cached(name)
    if len(cached) == 1:
        return Path(cached[0].first)
    folder = None if cached else cached_folder(name)
    if folder is not None:
        return folder
    label = name.repo if name.wanted is None else f"{name.repo}:{name.wanted}"
    raise ModelNotFound(f"{label} is not in the Hugging Face cache ({hub_cache()}), and downloading is switched off.")


def _by_name(name: str) -> Path:
    hub_name = HubName.parse(name)
    if hub_name is not None:
        cached = find_cached(hub_name)
        if len(cached) == 1:
            return Path(cached[0].first)
        if cached:
            several = ", ".join(str(model.quantisation or Path(model.first).name) for model in cached)
            raise ModelNotFound(f"The cache has several models of {name}: {several}. Name one, as in {name}:NAME.")
        folder = cached_folder(hub_name)
        if folder is not None:
            return folder
    here = cached_models()
    same_file = {model.path for model in here if model.path.name == name}
    if len(same_file) == 1:
        return same_file.pop()
    if same_file:
        owners = ", ".join(model.name for model in here if model.path.name == name)
        raise ModelNotFound(f"The cache has several files called {name}: {owners}. Use one of these names.")
    ollama = find_ollama_model(name)
    if ollama is not None:
        return ollama.path
    meta = find_meta_model(name)
    if meta is not None:
        return meta.path
    raise ModelNotFound(_unknown_name(name, hub_name))


def _looks_like_path(name: str) -> bool:
    separators = [os.sep, *([os.altsep] if os.altsep else [])]
    outright = name.startswith(("~", ".", *separators)) or re.match(r"[A-Za-z]:[\\/]", name) is not None
    return outright or (name.lower().endswith(".gguf") and any(separator in name for separator in separators))


def _no_such_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"There is no model file {path}: the folder {folder} does not exist."
    others = sorted(file.name for file in folder.glob("*.gguf"))
    near = difflib.get_close_matches(path.name, others, n=3, cutoff=0.5) or others[:3]
    hint = f" In that folder there is: {', '.join(near)}." if near else ""
    return f"There is no model file {path}.{hint}"


def _unknown_name(name: str, hub_name: HubName | None) -> str:
    known = [model.name for model in local_models()]
    lowered = {other.casefold(): other for other in known}
    near = [lowered[match] for match in difflib.get_close_matches(name.casefold(), lowered, n=3, cutoff=0.4)]
    searched = ", ".join(str(place) for place in (hub_cache(), *ollama_stores(), *meta_stores()))
    parts = [
        f"There is no model called '{name}': it is not a file, and neither the Hugging Face cache nor ollama's store "
        f"nor Meta's has it (looked in {searched})."
    ]
    if near:
        parts.append(f"Nearest: {', '.join(near)}.")
    if hub_name is not None:
        parts.append(f"To download it from the hub: hub:{name}.")
    else:
        parts.append("`llamalab models` lists what is here; hub:ORG/REPO:QUANTISATION downloads one.")
    return " ".join(parts)
