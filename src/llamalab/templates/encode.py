"""From the pieces of a prompt to its token ids: control tokens from the template, everything else as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llamalab.engine import Engine
from llamalab.templates import Piece
from llamalab.templates.special import SpecialStrings

_SPACES = (
    " \t\n\v\f\r\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""Unicode's white space, as tokenisers know it (Python's `strip` takes a few separators more)."""


class Encoder:
    """Tokenises prompts for one engine.

    Attributes:
        special: the strings of the engine's control tokens, the end-of-generation tokens among them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        info = engine.info
        self._ids = {self.text_of(token): token for token in sorted(info.stop_ids)} | dict(info.special_tokens)
        self.special = SpecialStrings(self._ids)
        self._control = frozenset(self._ids[string] for string in self.special.strings)
        self._spaces_taken: dict[str, tuple[bool, bool]] = {}
        self._bytes: dict[int, bytes] = {}

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Ids of `pieces`: each special one is its control token, and no other id is a control token.

        Text between two special pieces is tokenised in one go, as transformers does it.
        """
        ids: list[int] = []
        for before, piece, after in zip([None, *pieces], pieces, [*pieces[1:], None], strict=False):
            if piece.special:
                ids.append(self.id_of(piece))
            elif text := self._stripped(before, piece.text, after):
                ids += self._as_text(text, self._engine.tokenize)
        return ids

    def continued_ids(self, text: str) -> list[int]:
        """Ids of `text` as text that follows other text, tokenised on its own.

        None of them is a control token, and no space stands in front that is not in `text` (SentencePiece vocabularies
        begin each text with one).
        """
        return self._as_text(text, self._continued_ids)

    def id_of(self, piece: Piece) -> int:
        """The control token of a special piece."""
        return self._ids[piece.text]

    def text_of(self, token: int | None) -> str:
        """Text of a control token; "" for None."""
        return "" if token is None else self._engine.token_bytes(token, special=True).decode("utf-8", "replace")

    def spelled(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids` one after the other, control tokens included."""
        known = self._bytes
        for id in set(ids).difference(known):
            known[id] = self._engine.token_bytes(id, special=True)
        return b"".join([known[id] for id in ids])

    def _as_text(self, text: str, first_ids: Callable[[str], list[int]]) -> list[int]:
        """Ids of `text`, none of them a control token; `first_ids` tokenises its beginning."""
        ids = first_ids(text)
        if self._control.isdisjoint(ids):
            return ids
        # Merging characters can arrive at a control token's string: cut each such string behind its first character.
        cuts = [start + 1 for start, _ in self.special.starts(text)]
        ids = first_ids(text[: cuts[0]])
        for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
            ids += self._continued_ids(text[start:end])
        return ids

    def _continued_ids(self, text: str) -> list[int]:
        """Ids of `text` in the middle of a line: without the space that some vocabularies put in front."""
        alone = self._engine.tokenize(text)
        if self.spelled(alone) == text.encode():
            return alone
        before = self._engine.tokenize("\n")
        ids = self._engine.tokenize("\n" + text)
        return ids[len(before) :] if ids[: len(before)] == before else alone

    def _stripped(self, before: Piece | None, text: str, after: Piece | None) -> str:
        if before is not None and self._takes_spaces(before.text)[1]:
            text = text.lstrip(_SPACES)
        if after is not None and self._takes_spaces(after.text)[0]:
            text = text.rstrip(_SPACES)
        return text

    def _takes_spaces(self, special: str) -> tuple[bool, bool]:
        """Whether this control token swallows the white space before it, and after it (Phi-3's do, after)."""
        if special not in self._spaces_taken:
            tight, before, after = (
                self._engine.tokenize(text, parse_special=True)
                for text in (f"x{special}x", f"x\n{special}x", f"x{special}\nx")
            )
            self._spaces_taken[special] = (before == tight, after == tight)
        return self._spaces_taken[special]
