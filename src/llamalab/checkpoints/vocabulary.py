"""The tokeniser of a checkpoint, whatever files it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from llamalab.errors import ModelFileError

Kind: TypeAlias = Literal["bpe", "sentencepiece"]
TokenType: TypeAlias = Literal["normal", "unknown", "control", "user_defined", "unused", "byte"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens and how text is cut into them.

    Attributes:
        kind: byte-level BPE (GPT-2, Llama 3, pico), or SentencePiece (Llama 2, Mistral).
        tokens: by id; BPE ones in GPT-2's byte alphabet, SentencePiece ones with U+2581 for a space; control tokens
            as they read.
        types: one per token.
        merges: "left right" in order of rank; BPE only.
        scores: one per token; SentencePiece only.
        pre: llama.cpp's name of the pre-tokeniser ("llama-bpe", "gpt-2", "smollm", "default", ...).
        bos_id: beginning of sequence, None where there is none.
        eos_id: end of sequence, None where there is none.
        pad_id: padding, None where there is none.
        unk_id: unknown, None where there is none.
        stop_ids: every token that ends a response.
        add_bos: the model was trained with BOS in front.
        space_prefix: a space is put in front of each run of text; SentencePiece only.
        notes: what a user should know about how it was read, one sentence each.
        files: the tokeniser's own files by name ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
            to be copied as they are; empty for a GGUF.
    """

    kind: Kind
    tokens: Sequence[str]
    types: Sequence[TokenType]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    pre: str = "default"
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    unk_id: int | None = None
    stop_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    space_prefix: bool = False
    notes: tuple[str, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def control(self) -> frozenset[int]:
        """Ids of control tokens."""
        return frozenset(i for i, kind in enumerate(self.types) if kind == "control")


def unused_name(id: int) -> str:
    """What a token is called that stands for no text: a row of the embedding without a token."""
    return f"[PAD{id}]"


def check_size(vocabulary: Vocabulary, vocab_size: int, path: Path) -> Vocabulary:
    """`vocabulary` with as many tokens as the model has embedding rows.

    Rows beyond the tokens (padding of the matrix) become unused tokens; they are never made from text.

    Args:
        vocabulary: as read.
        vocab_size: rows of the embedding.
        path: of the checkpoint, for the message.

    Raises:
        ModelFileError: more tokens than rows, with both numbers.
    """
    missing = vocab_size - len(vocabulary.tokens)
    if missing < 0:
        raise ModelFileError(
            f"{path}: the tokeniser has {len(vocabulary.tokens)} tokens and the model {vocab_size} embedding rows. "
            "The tokeniser belongs to another model."
        )
    if missing == 0:
        return vocabulary
    taken = set(vocabulary.tokens)
    names = map(unused_name, range(len(vocabulary.tokens), vocab_size))
    unused: list[TokenType] = ["unused"] * missing
    return replace(
        vocabulary,
        tokens=[*vocabulary.tokens, *(name if name not in taken else f"[UNUSED {name}]" for name in names)],
        types=[*vocabulary.types, *unused],
        scores=[*vocabulary.scores, *[-1e4] * missing] if vocabulary.scores else (),
    )
