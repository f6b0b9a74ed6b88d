"""Log probabilities of given tokens: one pass over prefix and response, logits only where they are needed."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Sequence

import numpy as np

from llamalab.engine import Scored
from llamalab.engines.native import api, decode, float_view, logits_address, native_reason
from llamalab.engines.sampling import log_sum_exp
from llamalab.errors import EngineError

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]

_WINDOW_VALUES = 2**25


class Scorer:
    """Scores on a context of its own, so that what is generated elsewhere changes nothing.

    The logits of a response are computed in windows of `window` rows; no more of them is ever held.
    """

    def __init__(self, context: int, n_vocab: int, *, window: int, n_batch: int) -> None:
        self._context = context
        self._memory = api.llama_get_memory(context)
        self._n_vocab = n_vocab
        self._n_batch = n_batch
        self._window = min(window, n_batch)
        self._lock = threading.Lock()
        self._closed = False

    @staticmethod
    def window(n_vocab: int, n_batch: int) -> int:
        """Rows that keep the logits at 128 MiB, at least 16 and at most a batch."""
        return min(n_batch, max(16, _WINDOW_VALUES // max(1, n_vocab)))

    def score(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Scored]:
        """One result for each (prefix, response)."""
        with self._lock:
            if self._closed:
                raise EngineError("This engine is closed.")
            return [self._score(prefix, response) for prefix, response in pairs]

    def close(self) -> None:
        """Wait for a call in progress; refuse later ones."""
        with self._lock:
            self._closed = True

    def _score(self, prefix: Ids, response: Ids) -> Scored:
        if not len(response):
            return Scored(logprobs=(), total=0.0)
        ids = np.concatenate([prefix, response])
        first = max(0, len(prefix) - 1)  # row whose logits predict the first token that can be scored
        api.llama_memory_clear(self._memory, False)
        values: list[float | None] = [] if len(prefix) else [None]
        at = 0
        while at < len(ids) - 1:
            # Before the response whole batches without logits; from there on windows of rows with them.
            end = min(at + self._n_batch, first) if at < first else min(at + self._window, len(ids) - 1)
            decode_rows(self._context, ids, at, end, outputs=at >= first)
            if at >= first:
                values += [self._log_prob(row, int(ids[at + row + 1])) for row in range(end - at)]
            at = end
        return Scored(logprobs=tuple(values), total=math.fsum(v for v in values if v is not None))

    def _log_prob(self, row: int, token: int) -> float:
        logits = float_view(logits_address(self._context, row), self._n_vocab)
        value = float(logits[token]) - log_sum_exp(logits)
        if not math.isfinite(value):
            raise EngineError(f"The log probability of token {token} is {value}: the model's logits are not finite.")
        return value


def decode_rows(context: int, ids: Ids, begin: int, end: int, *, outputs: bool) -> None:
    """Run ids[begin:end] at their positions in sequence 0 of `context`, with logits for every row or for none.

    Raises:
        EngineError: llama.cpp failed.
    """
    count = end - begin
    tokens = np.ascontiguousarray(ids[begin:end])
    positions = np.arange(begin, end, dtype=np.int32)
    ones = np.ones(count, np.int32)
    sequence = np.zeros(1, np.int32)
    sequences = np.full(count, sequence.ctypes.data, np.uintp)
    wanted = np.full(count, outputs, np.int8)
    integers = ctypes.POINTER(ctypes.c_int32)
    batch = api.llama_batch(
        count,
        ctypes.cast(tokens.ctypes.data, integers),
        None,
        ctypes.cast(positions.ctypes.data, integers),
        ctypes.cast(ones.ctypes.data, integers),
        ctypes.cast(sequences.ctypes.data, ctypes.POINTER(integers)),
        ctypes.cast(wanted.ctypes.data, ctypes.POINTER(ctypes.c_int8)),
    )
    status = decode(context, batch)
    if status:
        raise EngineError(f"llama_decode failed with status {status} ({native_reason()}).")
