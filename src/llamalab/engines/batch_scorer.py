"""Log probabilities of given tokens through llama.cpp, several responses in one decode: fast, and not to the last bit.

The responses of a group are sequences over one unified cache. What all of them begin with is computed once and shared
by reference; the rest of them is packed row after row into decodes as large as there are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from llamalab.engines.native import api, float_view, logits_address
from llamalab.engines.reduction import Reduced, joined, reduce, scored
from llamalab.engines.request import Asked, Ids, common_prefix, in_order
from llamalab.engines.scorer import decode_rows
from llamalab.errors import EngineError
from llamalab.scored import Scored

SEQUENCES = 8
"""Responses in a group, at most."""

FAST_TEXTS = 2
"""Texts of full length that the cache holds."""


class BatchScorer:
    """Scores on a context of its own, with a unified cache.

    Args:
        context: llama.cpp's handle, with room for `SEQUENCES`.
        n_vocab: width of a row of logits.
        window: most rows of logits that one decode computes.
        n_batch: most tokens of one decode.
        cells: tokens that the cache holds, all sequences together.
    """

    def __init__(self, context: int, n_vocab: int, *, window: int, n_batch: int, cells: int) -> None:
        self._context = context
        self._memory = api.llama_get_memory(context)
        self._n_vocab, self._cells = n_vocab, cells
        self._n_batch, self._window = n_batch, min(window, n_batch)
        self._held: Ids = np.empty(0, np.int32)
        self._lock = threading.Lock()
        self._closed = False

    def score(self, asked: Sequence[Asked]) -> list[Scored]:
        """One result for each."""
        found: dict[int, Scored] = {}
        with self._lock:
            for group in self._groups(asked):
                if self._closed:
                    raise EngineError("This engine is closed.")
                found |= zip(group, self._together([asked[number] for number in group]), strict=True)
        return [found[number] for number in range(len(asked))]

    def close(self) -> None:
        """Wait for a call in progress; refuse later ones."""
        with self._lock:
            self._closed = True

    def _groups(self, asked: Sequence[Asked]) -> Iterator[list[int]]:
        """Neighbours in the order of their ids, as many as the cache holds."""
        group: list[int] = []
        for number in in_order(asked):
            if group and (
                len(group) == SEQUENCES or sum(asked[n].end for n in group) + asked[number].end > self._cells
            ):
                yield group
                group = []
            group.append(number)
        if group:
            yield group

    def _together(self, group: Sequence[Asked]) -> Iterator[Scored]:
        wanted = [each.ids for each in group]
        shared = min(each.first for each in group)
        for ids in wanted[1:]:
            shared = min(shared, common_prefix(wanted[0], ids))
        self._begin(wanted[0][:shared], len(group))
        # (sequence, position) of each row that is left, and which of them give logits.
        rows = np.array(
            [(number, at) for number, each in enumerate(group) for at in range(shared, each.end)], np.int32
        ).reshape(-1, 2)
        outputs = np.array([at >= group[number].first for number, at in rows], bool)
        parts: list[list[Reduced]] = [[] for _ in group]
        for begin, end in _cut(outputs, self._n_batch, self._window):
            numbers, positions = rows[begin:end].T
            tokens = np.array([wanted[number][at] for number, at in rows[begin:end]], np.int32)
            decode_rows(self._context, tokens, positions, sequences=numbers, outputs=outputs[begin:end])
            self._take(group, wanted, rows[begin:end][outputs[begin:end]], parts)
        for number in range(1, len(group)):
            api.llama_memory_seq_rm(self._memory, number, -1, -1)
        api.llama_memory_seq_rm(self._memory, 0, shared, -1)
        self._held = wanted[0][:shared]
        for each, reduced in zip(group, parts, strict=True):
            whole = joined(reduced, each.decodings)
            yield scored(whole, unscored=len(each.response) - len(whole.raw))

    def _begin(self, shared: Ids, count: int) -> None:
        """Let every sequence hold what all of them begin with.

        Nothing counts as held until the whole group is computed: what an interrupted one leaves behind is cleared.
        """
        kept = common_prefix(self._held, shared)
        self._held = self._held[:0]
        if not (kept and api.llama_memory_seq_rm(self._memory, 0, kept, -1)):
            api.llama_memory_clear(self._memory, False)
            kept = 0
        for at in range(kept, len(shared), self._n_batch):
            decode_rows(self._context, shared[at : at + self._n_batch], at, outputs=False)
        for number in range(1, count):
            api.llama_memory_seq_cp(self._memory, 0, number, -1, -1)

    def _take(self, group: Sequence[Asked], wanted: Sequence[Ids], rows: Ids, parts: list[list[Reduced]]) -> None:
        """Reduce the logits of a decode, given whose they are."""
        if not len(rows):
            return
        address = logits_address(self._context, -len(rows))  # counted from the end: the first row of logits
        logits = float_view(address, len(rows) * self._n_vocab).reshape(len(rows), self._n_vocab)
        for number in dict.fromkeys(rows[:, 0].tolist()):
            mine = rows[:, 0] == number
            tokens = wanted[number][rows[mine, 1] + 1]
            parts[number].append(reduce(logits[mine], tokens, group[number].decodings))


def _cut(outputs: Ids, n_batch: int, window: int) -> Iterator[tuple[int, int]]:
    """Decodes of at most `n_batch` rows and `window` rows with logits: (begin, end) of each."""
    begin = count = 0
    for at, output in enumerate(outputs.tolist()):
        if at - begin == n_batch or (output and count == window):
            yield begin, at
            begin, count = at, 0
        count += output
    if begin < len(outputs):
        yield begin, len(outputs)
