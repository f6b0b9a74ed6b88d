"""GGUF models that are split into several files."""

from __future__ import annotations

import re
from pathlib import Path

from llamalab.errors import ModelFileError

_SPLIT = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_MOST_NAMES = 5


def model_parts(path: Path) -> list[Path]:
    """The files of a model: one, or all parts of a split one (`...-00001-of-00003.gguf`), in order.

    Raises:
        ModelFileError: a part is missing.
    """
    match = _SPLIT.match(path.name)
    if match is None or int(match["count"]) < 1:
        return [path]
    count = int(match["count"])
    parts = [path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelFileError(f"{path.name} is one of {count} parts; missing in {path.parent}: {_some(missing)}.")
    return parts


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
