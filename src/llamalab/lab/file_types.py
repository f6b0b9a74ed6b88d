"""The types of a whole model file, as llama.cpp's quantiser offers them: "Q4_K_M", "IQ2_XXS", "F16", ..."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from llamalab.engines.native import api
from llamalab.errors import ConfigError

_PREFIXES = ("LLAMA_FTYPE_ALL_", "LLAMA_FTYPE_MOSTLY_")
_NOT_OFFERED = {"NVFP4"}
"""Has a number, but llama.cpp's quantiser does not make it: such files come from a converter."""


def _offered() -> dict[str, int]:
    found = {
        constant.removeprefix(prefix): getattr(api, constant)
        for prefix in _PREFIXES
        for constant in dir(api)
        if constant.startswith(prefix)
    }
    return {name: found[name] for name in sorted(found, key=lambda name: found[name]) if name not in _NOT_OFFERED}


FILE_TYPES: Mapping[str, int] = _offered()
"""Name to llama.cpp's number (`general.file_type`)."""


def file_type_named(name: str) -> str:
    """A type by its name, upper or lower case.

    Raises:
        ConfigError: there is none; with the nearest name.
    """
    upper = name.strip().upper().replace("-", "_")
    if upper in FILE_TYPES:
        return upper
    near = difflib.get_close_matches(upper, FILE_TYPES, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"llama.cpp quantises to no type '{name}'; there are {', '.join(FILE_TYPES)}.{hint}")
