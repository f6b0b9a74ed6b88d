"""Tokenisers in Meta folders: tokenizer.model (tiktoken's or SentencePiece's), or our tokenizer.json beside."""

from __future__ import annotations

from pathlib import Path

from llamalab.checkpoints.vocabulary import Vocabulary


def vocabulary_from_meta(folder: Path) -> Vocabulary:
    """The tokeniser of a Meta folder; its chat template, if any, is found by `read_chat_template(folder)`.

    Raises:
        ModelFileError: none, or a damaged one.
    """
    raise NotImplementedError


def write_meta_tokenizer(vocabulary: Vocabulary, folder: Path, chat_template: str | None = None) -> str:
    """Write the tokeniser into a Meta folder.

    Returns:
        One sentence that says which file was written and why: `tokenizer.model` only where Meta's classes give the
        same ids by it, tokenizer.json and tokenizer_config.json otherwise.
    """
    raise NotImplementedError
