"""What a model on this machine is called, and what the names of GGUF files say about them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

PREFERRED_QUANTISATION = "Q4_K_M"
"""What is taken where several quantisations exist and none is named: small, and close to the original."""

_QUANTISATION = re.compile(
    r"(?<![A-Za-z0-9])"
    r"((?:UD-)?(?:I?Q[1-8](?:_[0-9KLMNSX]+)*|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32|FP16|FP32))"
    r"(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_NOT_A_MODEL = re.compile(r"(?:^|[-_.])(?:mmproj|imatrix)(?:[-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that is on this machine and has a name.

    Attributes:
        name: what to type to use it.
        source: where it was found: in the package, in the Hugging Face cache, in ollama's store, among what Meta's
            commands have downloaded.
        path: what an engine opens: a file, of a split model its first part; or a folder.
        size_bytes: of all parts.
        quantisation: e.g. "Q4_K_M"; None where neither name nor manifest tells.
    """

    name: str
    source: Literal["built-in", "hub", "ollama", "meta"]
    path: Path
    size_bytes: int
    quantisation: str | None


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model as files: a GGUF, or all parts of a split one.

    Attributes:
        parts: paths in the order of their part numbers; the first one is what an engine opens.
        size_bytes: of all parts together; None where the source does not say.
    """

    parts: tuple[str, ...]
    size_bytes: int | None

    @property
    def first(self) -> str:
        """Path of the (first) file."""
        return self.parts[0]

    @property
    def quantisation(self) -> str | None:
        """What the name says about the quantisation, e.g. "Q4_K_M"; None if nothing."""
        return quantisation_of(self.first)


def quantisation_of(path: str) -> str | None:
    """The quantisation that a file name (or, failing that, its folder) names, in upper case.

    Knows llama.cpp's type names with suffixes of any length, so that "Q3_K_L" is not cut to "Q3_K", and unsloth's
    dynamic ones ("UD-Q4_K_XL").
    """
    pure = PurePosixPath(path)
    stem = _PART.sub("", pure.name).removesuffix(".gguf")
    for text in (stem, pure.parent.name):
        found = _QUANTISATION.findall(text)
        if found:
            return str(found[-1]).upper().replace("FP16", "F16").replace("FP32", "F32")
    return None


def model_files(files: Iterable[tuple[str, int | None]]) -> list[ModelFile]:
    """Group (path, size in bytes) pairs into models: parts of one split file belong together.

    Files that are no language models (vision projectors, importance matrices, anything but GGUF) are left out, and so
    are split files of which a part is missing.
    """
    groups: dict[str, list[tuple[int, int, str, int | None]]] = {}
    for path, size in files:
        name = PurePosixPath(path).name
        if not name.lower().endswith(".gguf") or _NOT_A_MODEL.search(name):
            continue
        part = _PART.search(path)
        number, count = (int(part[1]), int(part[2])) if part else (1, 1)
        key = path[: part.start()] + f"-of-{count}" if part else path
        groups.setdefault(key, []).append((number, count, path, size))
    models = []
    for _, members in sorted(groups.items()):
        members.sort()
        if [number for number, *_ in members] == list(range(1, members[0][1] + 1)):
            sizes = [size for *_, size in members]
            total = None if any(size is None for size in sizes) else sum(size for size in sizes if size is not None)
            models.append(ModelFile(tuple(path for _, _, path, _ in members), total))
    return models


def choose(models: Sequence[ModelFile], wanted: str | None) -> list[ModelFile]:
    """The models that `wanted` names: a quantisation or a file name; None takes the preferred one, or the only one.

    Returns:
        One model where the choice is clear; none where nothing matches; several where a name fits more than one.
    """
    if wanted is None:
        preferred = [model for model in models if model.quantisation == PREFERRED_QUANTISATION]
        return preferred or list(models)
    folded = wanted.casefold()
    by_name = [m for m in models if folded in (m.first.casefold(), PurePosixPath(m.first).name.casefold())]
    return by_name or [m for m in models if m.quantisation is not None and m.quantisation.casefold() == folded]


def human_size(size_bytes: int | None) -> str:
    """A size as people read it, in decimal units: "4.9 GB"."""
    if size_bytes is None:
        return "unknown size"
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 99.5 else f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
