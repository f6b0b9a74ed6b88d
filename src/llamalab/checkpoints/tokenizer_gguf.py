"""Tokenisers in GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from llamalab.checkpoints.vocabulary import Vocabulary


def vocabulary_from_gguf(fields: Mapping[str, Any], path: Path | None = None) -> Vocabulary:
    """The tokeniser of a GGUF file.

    Args:
        fields: metadata by key: `gguf.GGUFReader.fields`, or plain values.
        path: of the file, for messages.

    Raises:
        ModelFileError: no tokeniser, a damaged one, or a kind that no Llama has.
    """
    raise NotImplementedError


def write_gguf_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Add the tokeniser's keys (all but the chat template) to a GGUF file in the making."""
    raise NotImplementedError
