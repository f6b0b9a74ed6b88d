"""From token bytes to readable text: whole characters only, nothing past a stop string.

A stop string ends the text where it begins. If several could, the one that is complete first counts; of
those complete at the same character, the longest. So the result does not depend on how the text was cut
into tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

_Decoder = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """Readable text of a response while its bytes arrive.

    `push` gives what became readable. Held back are the first bytes of an unfinished character and any
    text that may still turn out to be the beginning of a stop string. The pieces together are the text of
    all bytes, decoded with U+FFFD for what is not UTF-8, up to the first stop string.

    Attributes:
        passes: nothing is held back and nothing can be a stop string: whole characters may go by unseen.
        stopped: a stop string was found; everything after it is ignored.
    """

    __slots__ = ("_decoder", "_held", "_longest", "_stops", "passes", "stopped")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self.passes = not stops
        self._stops = tuple(stops)
        self._longest = max((len(s) for s in stops), default=0)
        self._decoder = _Decoder("replace")
        self._held = ""

    @property
    def pending(self) -> bool:
        """Something is held back: bytes of an unfinished character, or a possible stop string."""
        return bool(self._held) or bool(self._decoder.getstate()[0])

    def push(self, data: bytes) -> str:
        """Text that became readable with the next bytes."""
        text = self._decoder.decode(data)
        if self._stops:
            return self._release(text)
        self.passes = not self._decoder.getstate()[0]
        return text

    def finish(self) -> str:
        """The rest, when no more bytes come: half a character becomes U+FFFD."""
        text = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text += self._held
            self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        cut = find_stop(text, self._stops)
        if cut is not None:
            self.stopped = True
            self._held = ""
            return text[:cut]
        keep = possible_stop(text, self._stops, self._longest)
        self._held = text[keep:]
        return text[:keep]


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first complete stop string begins; None if there is none."""
    best: tuple[int, int] | None = None
    for stop in stops:
        begin = text.find(stop)
        if begin >= 0 and (best is None or (begin + len(stop), begin) < best):
            best = begin + len(stop), begin
    return None if best is None else best[1]


def possible_stop(text: str, stops: Sequence[str], longest: int) -> int:
    """Where the longest suffix of `text` begins that is a proper prefix of a stop string."""
    for begin in range(max(0, len(text) - longest + 1), len(text)):
        suffix = text[begin:]
        if any(stop.startswith(suffix) for stop in stops):
            return begin
    return len(text)
