"""Llama 3's `tokenizer.model`: tiktoken's text format, one "base64 rank" a line, and Meta's 256 special tokens."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from pathlib import Path

from llamalab.errors import ModelFileError

_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
SPECIAL = (*_NAMED, *(f"<|reserved_special_token_{2 + i}|>" for i in range(256 - len(_NAMED))))
"""The special tokens behind the ranks, in the order of Meta's class."""

BOS, EOS, PAD, STOPS = SPECIAL[0], SPECIAL[1], SPECIAL[4], (SPECIAL[1], SPECIAL[8], SPECIAL[9])
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n?")


def is_tiktoken(path: Path) -> bool:
    """Whether `path` begins like a file of base64 tokens and their ranks."""
    with path.open("rb") as file:
        return _LINE.fullmatch(file.readline(4096)) is not None


def read_ranks(path: Path) -> list[bytes]:
    """The tokens by rank.

    Raises:
        ModelFileError: a line that is not "base64 rank", or ranks with gaps or twice; names the line.
    """
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            at, data = int(rank), base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error):
            raise ModelFileError(f'{path}, line {number}: not "base64 rank" but {line[:80]!r}.') from None
        if at in tokens or not data:
            raise ModelFileError(f"{path}, line {number}: rank {at} stands there twice, or its token is empty.")
        tokens[at] = data
    if not tokens or max(tokens) != len(tokens) - 1:
        raise ModelFileError(f"{path}: its {len(tokens)} ranks are not 0 to {len(tokens) - 1}; the file is cut off.")
    if len(set(tokens.values())) != len(tokens):
        raise ModelFileError(f"{path}: it holds the same token under two ranks.")
    return [tokens[at] for at in range(len(tokens))]


def write_ranks(path: Path, tokens: Sequence[bytes]) -> None:
    """Write `tokens` by rank."""
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    path.write_bytes(b"".join(lines))
