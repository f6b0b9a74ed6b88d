"""Many responses at once: continuous batching over the parallel sequences of one llama.cpp context.

A step (`turns.py` says whose it is) is one `llama_decode` for everything in progress (the next chunks of prompts
and one token for each response), then one draw for each response.

A response that ends frees its sequence for the next one. Each sequence has a KV cache of its own; llama.cpp
computes several in one go only if they are neighbours, so when nothing waits, a gap is closed by moving
the last one into it.
"""

from __future__ import annotations

import bisect
import math
import time
from typing import cast

from llamalab.engines.batch import Batch
from llamalab.engines.native import api, decode, native_reason, sample
from llamalab.engines.request import common_prefix
from llamalab.engines.response import Ids, Response
from llamalab.engines.sampling import DeadEndError, Sampler
from llamalab.engines.turns import Turns
from llamalab.engines.vocabulary import Vocabulary
from llamalab.errors import EngineError, LlamalabError


class Scheduler(Turns):
    """The sequences of one context and who uses them. Safe from several threads."""

    def __init__(
        self, context: int, vocabulary: Vocabulary, *, n_seq: int, n_batch: int, movable: bool, keep: bool
    ) -> None:
        """Schedule over `n_seq` sequences.

        Args:
            context: llama.cpp's context.
            vocabulary: of its model.
            n_seq: sequences of the context.
            n_batch: most tokens of one decode.
            movable: a sequence's state can be copied to another one.
            keep: remember what ended responses computed and reuse common prefixes.
        """
        super().__init__(n_seq)
        self._context = context
        self._memory = api.llama_get_memory(context)
        self._vocabulary = vocabulary
        self._movable = movable and not keep
        self._keep = keep
        self._kept: list[list[int]] = [[] for _ in range(n_seq)]
        self._batch = Batch(n_batch, n_seq)

    def _step(self) -> float:
        """One decode for everything in progress, one draw for each response that gets logits; the time after."""
        if self._watching:
            with self._lock:
                self._sweep(time.monotonic())
        batch = self._batch
        if self._changed:
            with self._lock:
                self._changed = False
                self._admit()
                self._close_gaps()
            if not self._active:
                return math.inf
            rows = batch.fill(self._active)
            self._changed = not batch.steady
        else:
            rows = batch.refill()
        context = self._context
        status = decode(context, batch.native)
        if status:
            raise EngineError(f"llama_decode failed with status {status} ({native_reason()}).")
        now = time.monotonic()
        for response in rows:
            if response.chain is None:
                self._draw(response, now)
                continue
            token = sample(response.chain, context, response.row)
            reason = response.take(token, None, self._vocabulary, now)
            if reason is not None:
                self._end(response, reason)
        return now

    def _draw(self, response: Response, now: float) -> None:
        """Draw the next token of a response where that may fail, or where more than the token is wanted."""
        try:
            token, logprob = _sampler(response).draw(self._context, response.row)
            reason = response.take(token, logprob, self._vocabulary, now)
        except DeadEndError:
            self._end(response, EngineError("The schema or grammar allows none of the model's tokens here."))
        except LlamalabError as error:
            self._end(response, error)
        else:
            if reason is not None:
                self._end(response, reason)

    def _admit(self) -> None:
        """Give free sequences to those who wait longest."""
        if not (self._waiting and self._free):
            return
        while self._free and (response := self._next_waiting()) is not None:
            response.sequence = self._choose(response.prompt)
            self._free.remove(response.sequence)
            response.at = response.cached = self._reuse(response.sequence, response.prompt)
            response.started = time.monotonic()
            _sampler(response).remember(response.prompt)
            bisect.insort(self._active, response, key=lambda r: r.sequence)

    def _choose(self, prompt: Ids) -> int:
        """The free sequence that saves most: what it holds of the prompt already, less what it holds and would lose.

        A question that begins like a long conversation, and is not its next turn, leaves it alone where it can.
        """
        if not self._keep:
            return self._free[0]
        return max(self._free, key=lambda s: (2 * common_prefix(self._kept[s], prompt) - len(self._kept[s]), -s))

    def _reuse(self, sequence: int, prompt: Ids) -> int:
        """Empty a sequence but for what it shares with the prompt; number of tokens that stay."""
        # The last token of the prompt is always computed: its logits are needed.
        shared = min(common_prefix(self._kept[sequence], prompt), len(prompt) - 1) if self._keep else 0
        self._kept[sequence] = []
        if shared and api.llama_memory_seq_rm(self._memory, sequence, shared, -1):
            return shared
        api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return 0

    def _ended(self, response: Response) -> None:
        if self._keep:
            self._kept[response.sequence] = [*response.prompt.tolist(), *response.ids][: response.at]

    def _interrupted(self) -> None:
        self._kept = [[] for _ in self._kept]

    def _close_gaps(self) -> None:
        """Move the last sequences into free ones below them."""
        active = self._active
        while self._movable and active and active[-1].sequence >= len(active):
            last, gap = active.pop(), self._free.pop(0)
            api.llama_memory_seq_cp(self._memory, last.sequence, gap, -1, -1)
            bisect.insort(self._free, last.sequence)
            last.sequence = gap
            bisect.insort(active, last, key=lambda r: r.sequence)


def _sampler(response: Response) -> Sampler:
    """The responses of this engine draw with llama.cpp's samplers."""
    return cast("Sampler", response.sampler)
