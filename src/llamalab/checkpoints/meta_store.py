"""Models that Meta's own commands have downloaded: `llama-model download` and, in llama-stack, `llama model download`.

Both write one folder for each model under `checkpoints/`, called by the model's descriptor with "-" for ":", as in
`~/.llama/checkpoints/Llama3.2-1B-Instruct`. From Meta it holds `params.json`, `consolidated.NN.pth` and
`tokenizer.model`; from the hub (`--source huggingface`) the same within `original/`.
"""

from __future__ import annotations

import os
from pathlib import Path

from llamalab.checkpoints.names import LocalModel

_HOME = "~/.llama"
_VARIABLES = ("LLAMA_MODELS_CONFIG_DIR", "LLAMA_STACK_CONFIG_DIR")


def meta_stores() -> list[Path]:
    """Folders in which the two commands keep models: where the variables point to, or else in the home folder."""
    homes = [os.environ.get(name) or _HOME for name in _VARIABLES]
    return list(dict.fromkeys(Path(home).expanduser() / "checkpoints" for home in homes))


def meta_models() -> list[LocalModel]:
    """Every model in the stores whose settings and weights are there, by name."""
    found: dict[str, LocalModel] = {}
    for store in meta_stores():
        for folder in _folders(store):
            files = _weights(folder)
            if files:
                size = sum(file.stat().st_size for file in files)
                found.setdefault(folder.name, LocalModel(folder.name, "meta", folder, size, None))
    return [found[name] for name in sorted(found)]


def find_meta_model(name: str) -> LocalModel | None:
    """The model that Meta's commands know as `name`: its descriptor, or its folder. Case does not matter."""
    wanted = name.replace(":", "-").casefold()
    return next((model for model in meta_models() if model.name.casefold() == wanted), None)


def _folders(store: Path) -> list[Path]:
    try:
        return sorted(path for path in store.iterdir() if path.is_dir())
    except OSError:  # not there, or closed to this user
        return []


def _weights(folder: Path) -> list[Path]:
    """The weights of a model; none where it has no settings."""
    for place in (folder, folder / "original"):
        if (place / "params.json").is_file():
            return sorted(place.glob("consolidated.*.pth"))
    if (folder / "config.json").is_file():
        return sorted(folder.glob("*.safetensors"))
    return []
