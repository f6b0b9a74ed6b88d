"""Log probabilities of given tokens through llama.cpp: one pass, logits at the response's rows only, prefixes shared.

What comes out depends on the token ids and the configuration alone, not on what was computed before:

- Every decode is a multiple of `ROWS` rows. The kernels for quantised matrices work on blocks of rows, and what is left
  over takes other kernels, which round otherwise (0.1 nats per token for Q4_K_M). So a decode is filled up with dummy
  tokens behind its own, in the same sequence, which no earlier token sees and which are removed afterwards.
- The cache is float32 and flash attention off: both round by what else stands in the batch.
- There is one sequence, so llama.cpp never cuts a decode into other parts than these.

Requests are computed in the order of their ids: each follows the one with which it shares most, and what the cache
holds of it stays.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from llamalab.engines.native import api, decode, float_view, logits_address, native_reason
from llamalab.engines.options import Options
from llamalab.engines.reduction import Reduced, joined, reduce, scored
from llamalab.engines.request import Asked, Ids, common_prefix, in_order
from llamalab.errors import EngineError
from llamalab.scored import Scored

Array: TypeAlias = np.ndarray[Any, Any]

ROWS = 16
"""Rows of a decode come in multiples of so many."""

_WINDOW_VALUES = 3 * 2**23  # logits of one decode: 96 MiB
_STRICT_BATCH = 256  # attention scores are kept whole: 128 MiB for 32 heads at 4,096 tokens


def strict_options(options: Options) -> Options:
    """Those of an engine, as a context needs them whose values do not depend on what else it computes."""
    most = max(ROWS, min(options.n_batch, options.n_ubatch, _STRICT_BATCH) // ROWS * ROWS)
    return replace(options, type_k="f32", type_v="f32", flash_attn=False, n_batch=most, n_ubatch=most)


def score_window(n_vocab: int, options: Options) -> int:
    """Rows of logits of one decode: as the options say, or as keep them at 96 MiB; a multiple of `ROWS`."""
    most = options.n_outputs_max or _WINDOW_VALUES // max(1, n_vocab)
    return max(ROWS, min(most, options.n_batch) // ROWS * ROWS)


class Scorer:
    """Scores on a context of its own, so that what is generated elsewhere changes nothing.

    Args:
        context: llama.cpp's handle; its cache has `ROWS` cells more than any text.
        n_vocab: width of a row of logits.
        window: most rows of logits that one decode computes, a multiple of `ROWS`.
        n_batch: most tokens of one decode, a multiple of `ROWS`.
        fill: decodes are filled up to a multiple of so many rows; 1: they are left as they are.
        movable: parts of a sequence can be removed from the cache (not so in recurrent models).
    """

    def __init__(self, context: int, n_vocab: int, *, window: int, n_batch: int, fill: int, movable: bool) -> None:
        self._context = context
        self._memory = api.llama_get_memory(context)
        self._n_vocab = n_vocab
        self._n_batch, self._window = n_batch, min(window, n_batch)
        self._fill, self._movable = fill, movable
        self._held: Ids = np.empty(0, np.int32)
        self._lock = threading.Lock()
        self._closed = False

    def score(self, asked: Sequence[Asked]) -> list[Scored]:
        """One result for each."""
        found: dict[int, Scored] = {}
        with self._lock:
            for number in in_order(asked):
                if self._closed:
                    raise EngineError("This engine is closed.")
                found[number] = self._score(asked[number])
        return [found[number] for number in range(len(asked))]

    def close(self) -> None:
        """Wait for a call in progress; refuse later ones."""
        with self._lock:
            self._closed = True

    def _score(self, asked: Asked) -> Scored:
        ids, first, end = asked.ids, asked.first, asked.end
        parts: list[Reduced] = []
        at = self._resume(ids, first) if first < end else end
        while first - at >= self._fill:  # what is left of the prefix goes with the response: less is filled up
            whole = (first - at) // self._fill * self._fill
            at = self._decode(ids, at, at + _even(whole, self._n_batch), outputs=False)
        while at < end:
            begin, at = at, self._decode(ids, at, at + _even(end - at, self._window), outputs=True)
            wanted = max(begin, first)
            address = logits_address(self._context, wanted - begin)
            rows = float_view(address, (at - wanted) * self._n_vocab).reshape(at - wanted, self._n_vocab)
            parts.append(reduce(rows, ids[wanted + 1 : at + 1], asked.decodings))
        reduced = joined(parts, asked.decodings)
        return scored(reduced, unscored=len(asked.response) - len(reduced.raw))

    def _resume(self, ids: Ids, most: int) -> int:
        """Empty the cache but for what it shares with `ids`, at most `most` tokens; how many stay."""
        shared = min(common_prefix(self._held, ids), most) if self._movable else 0
        self._held = self._held[:0]
        if shared and api.llama_memory_seq_rm(self._memory, 0, shared, -1):
            return shared
        api.llama_memory_clear(self._memory, False)
        return 0

    def _decode(self, ids: Ids, begin: int, end: int, *, outputs: bool) -> int:
        """Run ids[begin:end] after what the cache holds, filled up with dummy tokens; `end`."""
        spare = -(end - begin) % self._fill
        tokens = np.concatenate([ids[begin:end], np.zeros(spare, np.int32)])
        decode_rows(self._context, tokens, begin, outputs=outputs)
        if spare and not api.llama_memory_seq_rm(self._memory, 0, end, -1):
            raise EngineError("llama.cpp did not remove the rows that a decode was filled up with.")
        self._held = ids[:end]
        return end


def _even(left: int, most: int) -> int:
    """Rows of the next decode, at most `most`, of those `left`: as many as of the others, for few rows take long each.

    [Llama 3.2 1B's shape in Q4_K_M on two cores of an Intel Xeon: 18 ms a row for 32 rows, 9 for 144.]
    """
    each = -(-left // -(-left // most))
    return min(left, most, -(-each // ROWS) * ROWS)


def decode_rows(
    context: int, tokens: Ids, positions: int | Ids, *, sequences: Ids | None = None, outputs: bool | Array
) -> None:
    """Run `tokens`.

    Args:
        context: llama.cpp's handle.
        tokens: ids, (R,).
        positions: of each; or of the first, the others following.
        sequences: of each; None: all are of sequence 0.
        outputs: whether the logits of each, or of all, are wanted.

    Raises:
        EngineError: llama.cpp failed.
    """
    count = len(tokens)
    tokens = np.ascontiguousarray(tokens)
    if isinstance(positions, int):
        positions = np.arange(positions, positions + count, dtype=np.int32)
    positions = np.ascontiguousarray(positions)
    ones = np.ones(count, np.int32)
    numbers = np.zeros(count, np.int32) if sequences is None else np.ascontiguousarray(sequences)
    addresses = (numbers.ctypes.data + 4 * np.arange(count)).astype(np.uintp)
    wanted = np.full(count, outputs, np.int8) if isinstance(outputs, bool) else outputs.astype(np.int8)
    integers = ctypes.POINTER(ctypes.c_int32)
    batch = api.llama_batch(
        count,
        ctypes.cast(tokens.ctypes.data, integers),
        None,
        ctypes.cast(positions.ctypes.data, integers),
        ctypes.cast(ones.ctypes.data, integers),
        ctypes.cast(addresses.ctypes.data, ctypes.POINTER(integers)),
        ctypes.cast(wanted.ctypes.data, ctypes.POINTER(ctypes.c_int8)),
    )
    status = decode(context, batch)
    if status:
        raise EngineError(f"llama_decode failed with status {status} ({native_reason()}).")
