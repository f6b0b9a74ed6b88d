"""Many responses at once on the JAX Llama: continuous batching over the rows of one batch.

A step is either the prompts of those who have just got a row, or a few tokens for everybody in progress: as many as the
device computes in a blink, in one loop that does not come back to Python in between. What a response does not want any
more (it met a stop string, or was cancelled) is thrown away; how many tokens a loop takes changes none of them.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from llamalab.engine import GenerateRequest, TokenLogprob
from llamalab.engines.constrain import Constraint
from llamalab.engines.jax_options import Trace
from llamalab.engines.response import Pieces, Response
from llamalab.engines.turns import Turns
from llamalab.errors import EngineError, LlamalabError, OutOfMemory
from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.entropix import token_trace
from llamalab.llama.generate import bucket, prefill, run
from llamalab.llama.sampler import Drawn
from llamalab.llama.state import Sampler, State, empty, new_drawn
from llamalab.llama.weights import XfmrWeights

_MOST_STEPS = 16
_BLINK = 0.03  # seconds of one loop on the device: short enough for a stream that reads smoothly


@dataclass(slots=True)
class Draws:
    """How one response is drawn; what `Response` has to know of it.

    Attributes:
        request: as it was asked.
        seed: of the draws.
        constraint: the schema's state, None without a schema.
    """

    request: GenerateRequest
    seed: int
    constraint: Constraint | None
    plain: bool = False
    chain: int | None = None

    def free(self) -> None:
        """Nothing native is held."""


class JaxScheduler(Turns):
    """The rows of one batch and who uses them. Safe from several threads."""

    def __init__(
        self,
        weights: XfmrWeights,
        config: LlamaConfig,
        sampler: Sampler,
        pieces: Pieces,
        new_cache: Callable[[], KVCache],
        *,
        n_seq: int,
        n_ctx: int,
        n_batch: int,
        stop_ids: frozenset[int],
        trace: Trace | None,
    ) -> None:
        """Schedule over `n_seq` rows.

        Args:
            weights: of the model.
            config: its shape.
            sampler: how tokens are drawn.
            pieces: what they read as.
            new_cache: an empty cache of `n_seq` sequences and `n_ctx` slots.
            n_seq: rows.
            n_ctx: tokens of one row.
            n_batch: most tokens of prompts computed at once; a power of two.
            stop_ids: tokens that end a response.
            trace: called for each token that entropix decides.
        """
        super().__init__(n_seq)
        self._weights, self._config, self._sampler = weights, config, sampler
        self._pieces = pieces
        self._new_cache = new_cache
        self._n_ctx, self._n_batch = n_ctx, n_batch
        self._stop_ids = tuple(sorted(stop_ids))
        self._trace = trace
        self._seconds = math.inf  # of one step, as last measured
        self._state = self._new_state()

    def _step(self) -> float:
        try:
            with self._lock:
                if self._watching:
                    self._sweep(time.monotonic())
                self._changed = False
                begun = self._admit()
            if begun:
                self._begin(begun)
            elif self._active:
                self._go_on()
            else:
                return math.inf
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).splitlines()[0]
            if "RESOURCE_EXHAUSTED" in reason:
                raise OutOfMemory(f"The device has no memory left: {reason}. Use a smaller n_ctx or n_seq.") from error
            raise EngineError(f"JAX failed: {reason}") from error
        return time.monotonic()

    def _admit(self) -> list[Response]:
        """Give free rows to those who wait longest."""
        begun = []
        while self._free and (response := self._next_waiting()) is not None:
            response.sequence = self._free.pop(0)
            response.started = time.monotonic()
            bisect.insort(self._active, response, key=lambda r: r.sequence)
            begun.append(response)
        return begun

    def _begin(self, begun: Sequence[Response]) -> None:
        """Read the prompts and draw the first tokens, prompts of one bucket together."""
        self._report_as_asked()
        groups: dict[tuple[int, bool], list[Response]] = {}
        for response in begun:
            groups.setdefault((bucket(len(response.prompt)), response.constraint is not None), []).append(response)
        for (size, constrained), group in sorted(groups.items(), key=lambda item: item[0]):
            while group:
                # A power of two, so that few numbers of prompts are ever compiled for.
                fitting = 1 << (min(len(group), max(1, self._n_batch // size)).bit_length() - 1)
                part, group = group[:fitting], group[fitting:]
                allowed = None
                if constrained:
                    part, masks = self._allowed(part)
                    if not part:
                        continue
                    allowed = np.stack(masks)
                self._prefill(part, allowed)

    def _prefill(self, part: Sequence[Response], allowed: np.ndarray[Any, Any] | None) -> None:
        where = [response.sequence for response in part]
        self._state = prefill(
            self._weights,
            self._config,
            self._sampler,
            self._state,
            where,
            [response.prompt.tolist() for response in part],
            [_draws(response).request.params for response in part],
            [response.sampler.seed for response in part],
            chunk=self._n_batch,
            allowed_bV=allowed,
        )
        drawn, trace = jax.device_get((self._state.rows.drawn, self._state.rows.trace))
        now = time.monotonic()
        for response in part:
            response.at = len(response.prompt)
            self._take(response, drawn, trace, (response.sequence,), now)

    def _go_on(self) -> None:
        """The next tokens of everybody."""
        active = list(self._active)
        constrained = [response for response in active if response.constraint is not None]
        allowed, steps = None, 1
        if constrained:
            allowed = np.ones((self._n_seq, self._config.vocab_size), bool)
            possible, masks = self._allowed(constrained)
            for response, mask in zip(possible, masks, strict=True):
                allowed[response.sequence] = mask
            active = list(self._active)
        elif self._seconds < _BLINK:
            steps = min(_MOST_STEPS, int(_BLINK / self._seconds))
        live = np.zeros(self._n_seq, bool)
        live[[response.sequence for response in active]] = True
        began = time.monotonic()
        self._state, record = run(
            self._weights, self._config, self._sampler, self._state, live, steps, allowed, most=_MOST_STEPS
        )
        record = jax.device_get(record)
        now = time.monotonic()
        self._seconds = (now - began) / max(1, int(record.taken))
        for response in active:
            row = response.sequence
            new = int(record.length[row]) - len(response.prompt) - len(response.ids)
            for number in range(new):
                if self._take(response, record.drawn, record.trace, (number, row), now):
                    break

    def _take(self, response: Response, drawn: Drawn, trace: Any, at: tuple[int, ...], now: float) -> bool:
        """Hand a drawn token to its response; whether that ended it."""
        token = int(drawn.token[at])
        try:
            if response.constraint is not None:
                response.constraint.advance(token)
            wanted = _draws(response).request.logprobs
            logprob = None if wanted is None else _logprob(drawn, at, token, wanted)
            if self._trace is not None and trace is not None:
                self._trace(response.number, token_trace(trace, token, at))
            reason = response.take(token, logprob, self._pieces, now)
        except LlamalabError as error:
            self._end(response, error)
            return True
        if reason is not None:
            self._end(response, reason)
        return reason is not None

    def _allowed(self, responses: Sequence[Response]) -> tuple[list[Response], list[np.ndarray[Any, Any]]]:
        """Those of `responses` that can go on, and the tokens each may take next."""
        possible, masks = [], []
        for response in responses:
            assert response.constraint is not None
            try:
                mask = ~response.constraint.forbidden()
                if not mask.any():
                    raise EngineError("The schema allows none of the model's tokens here.")
            except LlamalabError as error:
                self._end(response, error)
            else:
                possible.append(response)
                masks.append(mask)
        return possible, masks

    def _interrupted(self) -> None:
        self._state = self._new_state()  # the old one may have been given away to a step that failed

    def _new_state(self) -> State:
        """An empty batch that lies where the weights do, as what steps return will: nothing is compiled twice."""
        here = self._weights.norm.sharding  # the one device, or every device of the mesh
        cache = self._new_cache()
        state = empty(self._config, self._sampler, self._n_seq, self._n_ctx, self._stop_ids or (-1,), cache=cache)
        return State(state.cache, *jax.device_put((state.rows, state.stop_ids), here))

    def _report_as_asked(self) -> None:
        """Let the sampler report as many log probabilities as somebody in progress wants, and no more."""
        asked = [n for r in self._active if (n := _draws(r).request.logprobs) is not None]
        top = None
        if asked:  # a power of two: few numbers are ever compiled for
            top = min(self._config.vocab_size, 1 << (max(asked) - 1).bit_length()) if max(asked) else 0
        if top == self._sampler.top:
            return
        self._sampler = dataclasses.replace(self._sampler, top=top)
        drawn = jax.device_put(new_drawn(self._config, self._sampler, self._n_seq), self._weights.norm.sharding)
        self._state = self._state._replace(rows=self._state.rows._replace(drawn=drawn))


def _draws(response: Response) -> Draws:
    assert isinstance(response.sampler, Draws)
    return response.sampler


def _logprob(drawn: Drawn, at: tuple[int, ...], token: int, wanted: int) -> TokenLogprob:
    top = zip(drawn.top_ids[at][:wanted].tolist(), drawn.top_logprobs[at][:wanted].tolist(), strict=True)
    return TokenLogprob(id=token, raw=float(drawn.raw[at]), sampled=float(drawn.sampled[at]), top=tuple(top))
