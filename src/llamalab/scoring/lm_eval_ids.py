"""The harness's rules for how a text becomes tokens: which ids its contexts and continuations are.

White space at the end of a context belongs to the continuation. The text of a control token is one only where a chat
template wrote it, so what templates wrote is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamalab.chat import EngineChat
from llamalab.errors import InputError
from llamalab.templates import Piece


class HarnessIds:
    """Texts of the harness to ids.

    Args:
        chat: tokeniser and template of the model.
    """

    def __init__(self, chat: EngineChat) -> None:
        self._chat = chat
        self._rendered: dict[str, list[Piece]] = {}

    def remember(self, pieces: list[Piece]) -> str:
        """The text of a conversation; where it comes back as a context, these are its pieces."""
        text = "".join(piece.text for piece in pieces)
        self._rendered[text] = pieces
        return text

    def text(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self._chat.encoder.encode([Piece(text, special=False)]) if text else []

    @property
    def prefix_id(self) -> int:
        """What a text without a context stands after.

        Raises:
            InputError: the model has neither BOS nor EOS.
        """
        info = self._chat.engine.info
        # Where a file names no BOS, llama.cpp takes an ordinary token for one.
        found = info.bos_id if info.bos_id in info.special_tokens.values() else info.eos_id
        if found is None:
            raise InputError(
                f"{info.name} has neither BOS nor EOS, so a text without a context has no first probability."
            )
        return found

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of its continuation.

        Both are tokenised together, and cut where the tokens of the context end. Where they have no such place, since a
        token reaches over it, each is tokenised on its own.

        Raises:
            InputError: an empty continuation.
        """
        if not continuation:
            raise InputError(
                f"A continuation is empty (its context ends in {context[-40:]!r}): it has no token to score."
            )
        encoder = self._chat.encoder
        if not context:
            ids = encoder.encode([Piece(continuation, special=False)])
            return ([self.prefix_id], ids) if ids[0] != self.prefix_id else (ids[:1], ids[1:])
        before = context.rstrip()
        continuation, pieces = context[len(before) :] + continuation, self._pieces(context)
        if before != context:
            pieces = _without(pieces, len(context) - len(before))
        prefix = self._chat.piece_ids(pieces) if pieces else [self.prefix_id]
        whole = self._chat.piece_ids(followed_by(pieces, continuation)) if pieces else []
        if pieces and whole[: len(prefix)] == prefix and len(whole) > len(prefix):
            return prefix, whole[len(prefix) :]
        return prefix, encoder.continued_ids(continuation)

    def context(self, context: str) -> list[int]:
        """Ids of a context; of an empty one, what a text stands after."""
        return self._chat.piece_ids(self._pieces(context)) if context else [self.prefix_id]

    def _pieces(self, context: str) -> list[Piece]:
        """A context, cut at the control tokens that a template wrote; what the harness has added to it is text."""
        if context in self._rendered:
            return self._rendered[context]
        known = max((text for text in self._rendered if context.startswith(text)), key=len, default="")
        added = context[len(known) :]
        return followed_by(self._rendered[known], added) if known else [Piece(added, special=False)]


def followed_by(pieces: Sequence[Piece], text: str) -> list[Piece]:
    """`pieces` with ordinary text behind them."""
    if not text:
        return list(pieces)
    if pieces and not pieces[-1].special:
        return [*pieces[:-1], Piece(pieces[-1].text + text, special=False)]
    return [*pieces, Piece(text, special=False)]


def _without(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """`pieces` without their last `count` characters."""
    kept = list(pieces)
    while count and kept:
        text = kept.pop().text
        if len(text) > count:
            kept.append(Piece(text[:-count], special=False))
        count -= min(count, len(text))
    return kept
