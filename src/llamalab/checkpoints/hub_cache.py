"""What the Hugging Face hub's cache holds: names of repositories, and the models found on disk.

The layout is huggingface-hub's: `models--ORG--REPO/snapshots/COMMIT/FILE`, links into `blobs/`. Read here without
importing that library, so that listing models costs no more than looking at the folders. Environment variables count
at the time of the call: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from llamalab.checkpoints.hub_folder import INDEX, indexed_files, needed_files
from llamalab.checkpoints.names import LocalModel, ModelFile, choose, model_files
from llamalab.errors import ModelFileError, ModelNotFound

_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, and which of its models: a quantisation or a file name, None where left open."""

    repo: str
    wanted: str | None

    @classmethod
    def parse(cls, name: str) -> HubName | None:
        """From `org/repo`, `org/repo:Q4_K_M` or `org/repo:file.gguf`; None if `name` has another form."""
        repo, _, wanted = name.partition(":")
        return cls(repo, wanted or None) if _REPO.fullmatch(repo) else None

    @classmethod
    def require(cls, name: str) -> HubName:
        """As `parse`.

        Raises:
            ModelNotFound: `name` has another form.
        """
        parsed = cls.parse(name)
        if parsed is None:
            raise ModelNotFound(
                f"'{name}' names no repository of the hub. Write hub:ORG/REPO or hub:ORG/REPO:QUANTISATION, "
                "for example hub:bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M."
            )
        return parsed

    @property
    def folder(self) -> str:
        """Name of the repository's folder in the cache."""
        return "models--" + self.repo.replace("/", "--")


def hub_cache() -> Path:
    """The folder in which huggingface-hub keeps downloaded files."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not cache:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        cache = (os.environ.get("HF_HOME") or f"{base}/huggingface") + "/hub"
    return Path(os.path.expandvars(cache)).expanduser()


def cached_models() -> list[LocalModel]:
    """Every complete model in the cache.

    GGUF files are named `org/repo:QUANTISATION` (`:file.gguf` where several share one); checkpoints in several files
    `org/repo`.
    """
    found = []
    for folder in sorted(hub_cache().glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        models = _models_in(folder)
        for model in models:
            quantisation = model.quantisation
            clear = quantisation is not None and len(choose(models, quantisation)) == 1
            wanted = quantisation if clear else Path(model.first).name
            found.append(LocalModel(f"{repo}:{wanted}", "hub", Path(model.first), model.size_bytes or 0, quantisation))
        checkpoint = None if models else _folder_in(folder)
        if checkpoint is not None:
            size = sum((checkpoint / file).stat().st_size for file in needed_files(_files_of(checkpoint)))
            found.append(LocalModel(repo, "hub", checkpoint, size, None))
    return found


def find_cached(name: HubName) -> list[ModelFile]:
    """The models of a repository in the cache that `name` fits, by the rule of `names.choose`; paths are absolute."""
    return choose(_models_in(hub_cache() / name.folder), name.wanted)


def cached_folder(name: HubName) -> Path | None:
    """The snapshot of a repository that holds a complete checkpoint in several files (safetensors, or Meta's)."""
    return None if name.wanted else _folder_in(hub_cache() / name.folder)


def _folder_in(repo_folder: Path) -> Path | None:
    for snapshot in _snapshots(repo_folder):
        needed = needed_files(_files_of(snapshot))
        try:
            parts = indexed_files((snapshot / INDEX).read_text(encoding="utf-8")) if INDEX in needed else set()
        except (OSError, ValueError, ModelFileError):
            continue
        if needed and parts <= set(needed):
            return snapshot
    return None


def _files_of(snapshot: Path) -> list[str]:
    return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())


def _models_in(repo_folder: Path) -> list[ModelFile]:
    """Models of one repository; where several commits have the same file, the newest download of it."""
    models: dict[str, ModelFile] = {}
    for snapshot in _snapshots(repo_folder):
        files = [path for path in snapshot.rglob("*.gguf") if path.is_file()]
        for model in model_files((str(path), path.stat().st_size) for path in files):
            models.setdefault(str(Path(model.first).relative_to(snapshot)), model)
    return [models[key] for key in sorted(models)]


def _snapshots(repo_folder: Path) -> list[Path]:
    """Folders of commits, the one that `main` points to first, then the newest first."""
    main = repo_folder / "refs" / "main"
    current = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    snapshots = [path for path in (repo_folder / "snapshots").glob("*") if path.is_dir()]
    return sorted(snapshots, key=lambda path: (path.name != current, -path.stat().st_mtime))
