"""Text to ids and back for a checkpoint of any format, by the library that its tokeniser was made for.

GGUF files by llama.cpp, tokenizer.json by Hugging Face's tokenizers, Meta's tokenizer.model by tiktoken (Llama 3) or
SentencePiece (Llama 2). The way back is the same for all: the bytes of each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llamalab.checkpoints.checkpoint import Checkpoint
from llamalab.checkpoints.encoders import Encode, json_encoder, sentencepiece_encoder, tiktoken_encoder
from llamalab.checkpoints.pieces import token_bytes
from llamalab.checkpoints.vocabulary import Vocabulary
from llamalab.errors import EngineError, InputError


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
    vocabulary = checkpoint.vocabulary
    if checkpoint.format == "gguf":
        return _LlamaCpp(checkpoint)
    if "tokenizer.json" in vocabulary.files:
        return _Library(vocabulary, json_encoder(vocabulary.files["tokenizer.json"]))
    path = vocabulary.files["tokenizer.model"]
    if vocabulary.kind == "bpe":
        return _Library(vocabulary, tiktoken_encoder(path))
    control = {vocabulary.tokens[id]: id for id in vocabulary.control}
    return _Library(vocabulary, sentencepiece_encoder(path, control))


class _Library:
    """One of the libraries for the way there, the table of tokens for the way back."""

    def __init__(self, vocabulary: Vocabulary, encode: Encode) -> None:
        self._vocabulary = vocabulary
        self._encode: Encode | None = encode
        self._hidden = frozenset(i for i, kind in enumerate(vocabulary.types) if kind in ("control", "unknown"))
        self._space_prefix = vocabulary.kind == "sentencepiece" and vocabulary.space_prefix

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        encode = self._check_open()
        if not text:
            return []
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"The text is not valid Unicode: character {error.start} is the lone surrogate "
                f"U+{ord(text[error.start]):04X} (bytes that were not UTF-8 read as text?)."
            ) from error
        return encode(text, parse_special)

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        self._check_open()
        pieces: list[bytes] = []
        run_starts = self._space_prefix
        for id in ids:
            piece = self.token_bytes(id, special=special)
            if id in self._hidden:
                run_starts = self._space_prefix
            elif run_starts:
                piece, run_starts = piece.removeprefix(b" "), False
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        if not 0 <= id < len(self._vocabulary.tokens):
            raise InputError(f"Token id {id} is outside the vocabulary of {len(self._vocabulary.tokens)} tokens.")
        return b"" if id in self._hidden and not special else token_bytes(self._vocabulary, id)

    def close(self) -> None:
        self._encode = None

    def _check_open(self) -> Encode:
        if self._encode is None:
            raise EngineError("This tokenizer is closed.")
        return self._encode


class _LlamaCpp:
    """llama.cpp's own tokeniser of the file, loaded without its weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        from llamalab.engines.options import Options
        from llamalab.engines.weights import checked_header, open_weights

        self._open = False
        header = checked_header(checkpoint.path, vocab_only=True)
        self._weights = open_weights(checkpoint.path, header, Options(vocab_only=True))
        self._open = True
        self._vocabulary = self._weights.vocabulary

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        self._check_open()
        return self._vocabulary.tokenize(text, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        self._check_open()
        return self._vocabulary.detokenize(ids, special=special)

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        self._check_open()
        return self._vocabulary.bytes_of(id, special=special)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._weights.release()

    def __del__(self) -> None:  # of an engine that could not be made, or was forgotten: the memory is llama.cpp's
        self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise EngineError("This tokenizer is closed.")
