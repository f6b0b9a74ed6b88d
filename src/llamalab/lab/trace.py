"""A record of what decided each token that the entropix sampler drew."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamalab.llama.entropix import TokenTrace  # imports JAX

_FIRST = ("token", "logprob", "case", "temperature")


@dataclass(frozen=True, slots=True)
class TracedToken:
    """One token and what decided it.

    Attributes:
        text: what it adds to the text: nothing where it leaves a character incomplete, all of a character that it
            completes.
        decided: the sampler's measures, case and temperature.
    """

    text: str
    decided: TokenTrace

    def record(self, index: int) -> dict[str, Any]:
        """As one JSON object; `index` counts the tokens of the response from 0."""
        decided = self.decided
        names = [name for name in type(decided).__dataclass_fields__ if name not in _FIRST]
        return {
            "index": index,
            "id": decided.token,
            "text": self.text,
            "probability": math.exp(decided.logprob),
            "case": decided.case,
            "temperature": decided.temperature,
            **{name: getattr(decided, name) for name in names},
        }


class TraceRecorder:
    """Takes what the JAX engine says of each token of one response: the `trace` option of the engine.

    Args:
        file: gets a line of JSON for each token, as it comes; None: none is written.

    Attributes:
        tokens: so far.
        bytes_of: the bytes of a token, control tokens included; set it once the engine is there.
    """

    bytes_of: Callable[[int], bytes]

    def __init__(self, file: IO[str] | None = None) -> None:
        self.tokens: list[TracedToken] = []
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, _number: int, decided: TokenTrace) -> None:
        """Keep one token, and write it."""
        token = TracedToken(self._decoder.decode(self.bytes_of(decided.token)), decided)
        if self._file is not None:
            line = json.dumps(token.record(len(self.tokens)), ensure_ascii=False, allow_nan=False)
            self._file.write(line + "\n")
            self._file.flush()
        self.tokens.append(token)
