"""Tokens as bytes: GPT-2's printable alphabet, SentencePiece's spaces and byte tokens.

A byte-level BPE writes each byte of a token as one printable character, so that a token is always text; SentencePiece
writes a space as U+2581 and a lone byte as <0x0A>.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from llamalab.checkpoints.vocabulary import TokenType, Vocabulary

SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _alphabet() -> list[str]:
    """The character for each byte: itself where it prints, else the next one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]


ALPHABET = _alphabet()
_BYTES = {char: byte for byte, char in enumerate(ALPHABET)}


def spelled(data: bytes) -> str:
    """`data` in GPT-2's alphabet."""
    return "".join(map(ALPHABET.__getitem__, data))


def unspelled(token: str) -> bytes | None:
    """The bytes that `token` stands for; None where it is not in GPT-2's alphabet."""
    try:
        return bytes(map(_BYTES.__getitem__, token))
    except KeyError:
        return None


def byte_token(byte: int) -> str:
    """SentencePiece's token for one byte."""
    return f"<0x{byte:02X}>"


def is_byte_token(token: str) -> bool:
    """Whether `token` is written like SentencePiece's token for one byte."""
    return _BYTE.fullmatch(token) is not None


def token_bytes(vocabulary: Vocabulary, id: int) -> bytes:
    """What token `id` stands for in a text; of a control token its name; of an unused one nothing.

    As llama.cpp has it: user-defined tokens stand for themselves, in no alphabet.
    """
    token, kind = vocabulary.tokens[id], vocabulary.types[id]
    if kind == "unused":
        return b""
    if kind in ("control", "unknown", "user_defined"):
        return token.encode()
    if vocabulary.kind == "bpe":
        data = unspelled(token)
        return token.encode() if data is None else data
    byte = _BYTE.fullmatch(token) if kind == "byte" else None
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


def mergeable(kind: TokenType) -> bool:
    """Whether such a token can come from joining two others."""
    return kind == "normal"


def joins(token: str, known: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Every cut of `token` into two tokens that are in `known`, by the ids of its parts.

    Both tiktoken and SentencePiece join any neighbours whose union is a token, so these are its merges.
    """
    cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
    found = [(left, right) for left, right in cuts if left in known and right in known]
    return iter(sorted(found, key=lambda cut: (known[cut[0]], known[cut[1]])))
