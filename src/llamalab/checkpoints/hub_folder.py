"""Which files of a repository make up a checkpoint that is a folder: Hugging Face's safetensors, or Meta's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from llamalab.errors import ModelFileError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_PART = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_SHARD = re.compile(r"consolidated\.\d+\.pth")
_TOKENISERS = ("tokenizer.json", "tokenizer.model")
_BESIDE = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Small files that are taken where they exist."""


def needed_files(files: Iterable[str]) -> list[str]:
    """The files of one checkpoint in a repository, weights first, and last the one without which it is none.

    In that order a download that was cut off is never taken for a whole one. Safetensors are preferred: Meta's files,
    at the top or in `original/`, are the same weights once more.

    Returns:
        Paths within the repository; none where settings, weights or tokeniser are missing.
    """
    here = set(files)
    beside = [name for name in (*_TOKENISERS, *_BESIDE) if name in here]
    weights = [WHOLE] if WHOLE in here else sorted(name for name in here if _PART.fullmatch(name))
    if weights and "config.json" in here and here & set(_TOKENISERS) and (WHOLE in here or INDEX in here):
        return [*weights, *([] if WHOLE in here else [INDEX]), *beside, "config.json"]
    for folder in ("", "original/"):
        shards = sorted(name for name in here if name.startswith(folder) and _SHARD.fullmatch(name[len(folder) :]))
        tokenisers = [folder + name for name in _TOKENISERS if folder + name in here]
        if shards and tokenisers and f"{folder}params.json" in here:
            return [*shards, *dict.fromkeys([*tokenisers, *beside]), f"{folder}params.json"]
    return []


def indexed_files(index: str) -> set[str]:
    """The files that the text of an index names.

    Raises:
        ModelFileError: it is no index.
    """
    try:
        return {str(name) for name in json.loads(index)["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{INDEX} is damaged: {error!r}.") from error
