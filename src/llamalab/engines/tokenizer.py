"""Text to ids and back for a checkpoint of any format, by the library that its tokeniser was made for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llamalab.checkpoints.checkpoint import Checkpoint


class Tokenizer(Protocol):
    """Text to ids and back. Nothing here adds BOS. Safe from several threads."""

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of `text`; with `parse_special` the text of a control token becomes that token."""
        ...

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of `ids`; control tokens are left out unless `special`. Broken UTF-8 becomes U+FFFD."""
        ...

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        """The bytes of one token, possibly half a character."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokeniser of `checkpoint`.

    Raises:
        ModelFileError: the files cannot be read.
        ConfigError: a library is missing, with the command that installs it.
    """
    raise NotImplementedError
