"""Models that ollama has downloaded: read from its store, without ollama running.

The store is `manifests/HOST/NAMESPACE/NAME/TAG` (JSON, a list of layers by media type and digest) and
`blobs/sha256-...`; the layer of type `application/vnd.ollama.image.model` is a plain GGUF file.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from llamalab.checkpoints.names import LocalModel

_MODEL_LAYER = "application/vnd.ollama.image.model"
_DEFAULT_HOST = "registry.ollama.ai"
_DEFAULT_NAMESPACE = "library"

_log = logging.getLogger(__name__)


def ollama_stores() -> list[Path]:
    """Folders in which ollama keeps models: OLLAMA_MODELS, or else the user's and the Linux service's."""
    named = os.environ.get("OLLAMA_MODELS")
    if named:
        return [Path(named).expanduser()]
    return [Path("~/.ollama/models").expanduser(), Path("/usr/share/ollama/.ollama/models")]


def ollama_models() -> list[LocalModel]:
    """Every model in ollama's stores whose file is there, named as `ollama list` names it."""
    found: dict[str, LocalModel] = {}
    for store in ollama_stores():
        for manifest in _manifests(store):
            model = _read_manifest(store, manifest)
            if model is not None:
                found.setdefault(model.name, model)
    return sorted(found.values(), key=lambda model: model.name)


def find_ollama_model(name: str) -> LocalModel | None:
    """The model that ollama knows as `name`; without a tag, `latest`. Case does not matter."""
    wanted = name.casefold()
    if ":" not in wanted.rpartition("/")[2]:
        wanted += ":latest"
    return next((model for model in ollama_models() if model.name.casefold() == wanted), None)


def _manifests(store: Path) -> list[Path]:
    try:
        return sorted(path for path in (store / "manifests").glob("*/*/*/*") if path.is_file())
    except OSError as error:  # the service's store may be closed to this user
        _log.info("cannot read %s: %s", store, error)
        return []


def _read_manifest(store: Path, manifest: Path) -> LocalModel | None:
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        layers = {layer["mediaType"]: layer for layer in content["layers"]}
        if _MODEL_LAYER not in layers:
            return None
        path = _blob(store, layers[_MODEL_LAYER])
        size = path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.info("skipping ollama manifest %s: %r", manifest, error)
        return None
    return LocalModel(_display_name(manifest), "ollama", path, size, _quantisation(store, content))


def _blob(store: Path, layer: dict[str, Any]) -> Path:
    return store / "blobs" / str(layer["digest"]).replace(":", "-")


def _display_name(manifest: Path) -> str:
    host, namespace, name, tag = manifest.parts[-4:]
    if host != _DEFAULT_HOST:
        return f"{host}/{namespace}/{name}:{tag}"
    return f"{name}:{tag}" if namespace == _DEFAULT_NAMESPACE else f"{namespace}/{name}:{tag}"


def _quantisation(store: Path, manifest: dict[str, Any]) -> str | None:
    try:
        return str(json.loads(_blob(store, manifest["config"]).read_text(encoding="utf-8"))["file_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
