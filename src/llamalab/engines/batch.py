"""The native batch: which tokens of which responses one `llama_decode` computes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from llamalab.engines.native import api
from llamalab.engines.response import Response


class Batch:
    """One reusable native batch; rows in the order of their sequences, as llama.cpp wants them.

    Attributes:
        capacity: most rows.
        native: the struct that `llama_decode` takes.
        steady: the last `fill` gave every response one row for one generated token.
    """

    def __init__(self, capacity: int, n_seq: int) -> None:
        self.capacity = capacity
        self._token = np.zeros(capacity, np.int32)
        self._position = np.zeros(capacity, np.int32)
        self._count = np.ones(capacity, np.int32)
        self._sequence = np.zeros(capacity, np.uintp)  # addresses into `_numbers`
        self._output = np.zeros(capacity, np.int8)
        self._numbers = np.arange(n_seq, dtype=np.int32)
        self._addresses = [self._numbers.ctypes.data + 4 * i for i in range(n_seq)]
        self._counting = np.arange(capacity, dtype=np.int32)
        self._tokens_now, self._positions_now = self._token.data, self._position.data
        self._rows: list[Response] = []
        self.steady = False

        def pointer(array: np.ndarray[Any, Any], kind: Any) -> object:
            return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

        self.native = api.llama_batch(
            0,
            pointer(self._token, ctypes.c_int32),
            None,
            pointer(self._position, ctypes.c_int32),
            pointer(self._count, ctypes.c_int32),
            pointer(self._sequence, ctypes.POINTER(ctypes.c_int32)),
            pointer(self._output, ctypes.c_int8),
        )

    def fill(self, active: Sequence[Response]) -> list[Response]:
        """Write the next tokens of everybody; those who get a row of logits, `row` set."""
        budget = self.capacity - sum(1 for r in active if r.ids)
        n = 0
        rows: list[Response] = []
        for response in active:
            address = self._addresses[response.sequence]
            at = response.at
            count = 1 if response.ids else min(len(response.prompt) - at, budget)
            if not count:
                continue
            end = n + count
            if response.ids:
                self._token[n] = response.ids[-1]
                self._position[n] = at
            else:
                budget -= count
                self._token[n:end] = response.prompt[at : at + count]
                np.add(self._counting[:count], at, out=self._position[n:end])
            self._sequence[n:end] = address
            self._output[n:end] = 0
            response.at = at + count
            if response.at >= len(response.prompt):
                self._output[end - 1] = 1
                response.row = end - 1
                rows.append(response)
            n = end
        self.native.n_tokens = n
        self._rows = rows
        self.steady = len(rows) == n == len(active) and all(r.ids for r in rows)
        return rows

    def refill(self) -> list[Response]:
        """As `fill`, after a `steady` batch for the same responses: only tokens and positions change."""
        for n, response in enumerate(self._rows):
            self._tokens_now[n] = response.ids[-1]
            self._positions_now[n] = response.at
            response.at += 1
        return self._rows
