"""Tokenisers in Hugging Face folders: tokenizer.json, tokenizer_config.json, generation_config.json."""

from __future__ import annotations

from pathlib import Path

from llamalab.checkpoints.vocabulary import Vocabulary


def vocabulary_from_huggingface(folder: Path) -> Vocabulary:
    """The tokeniser of a Hugging Face folder.

    Raises:
        ModelFileError: no tokenizer.json, a damaged one, or a kind that cannot be expressed elsewhere.
    """
    raise NotImplementedError


def read_chat_template(folder: Path) -> str | None:
    """Jinja source from chat_template.jinja or tokenizer_config.json; None where neither has one."""
    raise NotImplementedError


def write_huggingface_tokenizer(vocabulary: Vocabulary, folder: Path, chat_template: str | None = None) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json into `folder`."""
    raise NotImplementedError
