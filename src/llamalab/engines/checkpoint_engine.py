"""What every engine over an opened checkpoint has, whoever computes: its tokeniser, its description, its end."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from llamalab.checkpoints.checkpoint import Checkpoint
from llamalab.engine import ModelInfo
from llamalab.engines.tokenizer import Tokenizer
from llamalab.errors import EngineError

DEFAULT_CONTEXT = 4096
"""Tokens of a sequence where nobody asked for a number, and the model was trained for as many."""


class CheckpointEngine(ABC):
    """Half an engine. A context manager: leaving it closes the engine.

    Attributes:
        info: what the loaded model is.
        notes: what a user should know about how it was read, one sentence each.
    """

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer, notes: Sequence[str]) -> None:
        self.info = info
        self.notes = tuple(notes)
        self._tokenizer = tokenizer
        self._lock = threading.RLock()
        self._closed = False

    @abstractmethod
    def _free(self) -> None:
        """Let go of weights and caches."""

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of `text`, no BOS; with `parse_special` the text of a control token becomes that token."""
        self._check_open()
        return self._tokenizer.tokenize(text, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of `ids`; control tokens are left out unless `special`. Broken UTF-8 becomes U+FFFD."""
        self._check_open()
        return self._tokenizer.detokenize(ids, special=special)

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        """The bytes of one token, possibly half a character."""
        self._check_open()
        return self._tokenizer.token_bytes(id, special=special)

    def close(self) -> None:
        """Free everything. Any later call raises `EngineError`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._tokenizer.close()
                self._free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("This engine is closed.")


def describe(checkpoint: Checkpoint, *, provider: str, n_ctx: int, size_bytes: int) -> ModelInfo:
    """What a checkpoint is once it is loaded into `size_bytes` of memory."""
    vocabulary = checkpoint.vocabulary
    return ModelInfo(
        name=checkpoint.name,
        provider=provider,
        path=str(checkpoint.path),
        architecture="llama",
        n_params=checkpoint.n_params,
        size_bytes=size_bytes,
        context_length=checkpoint.config.max_seq_len,
        n_ctx=n_ctx,
        n_vocab=checkpoint.config.vocab_size,
        bos_id=vocabulary.bos_id,
        eos_id=vocabulary.eos_id,
        stop_ids=vocabulary.stop_ids,
        add_bos=vocabulary.add_bos,
        special_tokens={vocabulary.tokens[id]: id for id in sorted(vocabulary.control)},
        chat_template=checkpoint.chat_template,
        sampling=dict(checkpoint.sampling),
    )
