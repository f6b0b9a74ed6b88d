"""How long a conversation is, where only the server knows its tokeniser: bounds from below and from above."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llamalab.engine import Message
from llamalab.errors import ContextOverflow

_WRAPPING = 64, 16  # tokens that a template may put around a conversation, and around each message: on the safe side
_SHORTEST = 0.75  # tokens for a word, at least
_WORD = re.compile(r"[^\W\d_]+")


def least_tokens(turns: Sequence[Message]) -> int:
    """Fewer tokens than this no tokeniser makes of a conversation: hardly any token has more than one word."""
    return int(_SHORTEST * sum(1 for turn in turns for _ in _WORD.finditer(str(turn["content"]))))


def most_tokens(turns: Sequence[Message]) -> int:
    """More tokens than this no tokeniser makes of a conversation: one for each byte of UTF-8, and some around it."""
    whole, each = _WRAPPING
    return whole + sum(each + len("".join(str(value) for value in turn.values()).encode()) for turn in turns)


def too_long(model: str, needed: int, available: int, said: str = "") -> ContextOverflow:
    """The error of a conversation that needs `needed` tokens or more, where a model takes `available`."""
    return ContextOverflow(
        f"The conversation needs {needed:,} tokens or more, and {model} takes {available:,}."
        f"{f' {said}' if said else ''} Shorten it, or set a larger n_ctx if the model has one.",
        needed=needed,
        available=available,
    )
