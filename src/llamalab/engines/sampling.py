"""Drawing one token from a row of logits, with llama.cpp's own samplers.

The order is llama.cpp's: grammar or schema, penalties, top-k, top-p, min-p, temperature, draw. So the
truncations look at the distribution before temperature. Temperature 0 takes the most probable token after
penalties and constraints.
"""

from __future__ import annotations

import ctypes
import math
import secrets
from typing import TYPE_CHECKING, Any

import numpy as np

from llamalab.engine import GenerateRequest, SamplingParams, TokenLogprob
from llamalab.engines.native import (
    api,
    captured_stderr,
    float_view,
    forget_errors,
    logits_address,
    native_reason,
    sample,
)
from llamalab.engines.sampling_params import LARGEST_SEED, penalised
from llamalab.engines.vocabulary import Vocabulary
from llamalab.errors import SchemaError

if TYPE_CHECKING:
    from llamalab.engines.constrain import Constraint  # imports llguidance, which few runs need

Row = np.ndarray[tuple[int], np.dtype[np.float32]]

_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
_LARGE, _SPARSE = 16384, 16  # in a larger vocabulary, a draw among under 1/16 of it looks at those alone


class DeadEndError(Exception):
    """The constraint allows no token at all."""


class Sampler:
    """The sampler chain of one response and what is reported of its draws.

    Attributes:
        seed: of the draws.
        constraint: the schema's state, None without a schema.
        chain: address of llama.cpp's sampler chain.
        plain: a draw is no more than `native.sample` on the chain.
    """

    __slots__ = (
        "_array",
        "_candidates",
        "_chain",
        "_explicit",
        "_grammar",
        "_greedy",
        "_ids",
        "_penalised",
        "_pointer",
        "_size",
        "_top",
        "_views",
        "_window",
        "chain",
        "constraint",
        "plain",
        "seed",
    )

    def __init__(
        self, request: GenerateRequest, vocabulary: Vocabulary, constraint: Constraint | None, *, n_ctx: int
    ) -> None:
        params = request.params
        self.constraint = constraint
        self.seed = params.seed if params.seed is not None else secrets.randbelow(LARGEST_SEED + 1)
        self._size = vocabulary.size
        self._top = request.logprobs
        self._greedy = params.temperature == 0
        self._grammar = request.grammar is not None
        # A grammar's dead end would end the process inside llama.cpp, so its draws are looked at first.
        self._explicit = self._grammar or (request.logprobs is not None and not self._greedy)
        self._candidates: np.ndarray[Any, Any] | None = None
        self._views: dict[int, Row] = {}
        self._penalised = penalised(params)
        self._window = n_ctx if params.penalty_last_n < 0 else min(n_ctx, params.penalty_last_n)
        self.plain = not self._explicit and request.logprobs is None and constraint is None
        self._chain = self._build(params, request, vocabulary)
        self.chain = ctypes.cast(self._chain, ctypes.c_void_p).value

    def draw(self, context: int, row: int) -> tuple[int, TokenLogprob | None]:
        """The next token from logits row `row` of the last decode, and its log probabilities if asked for.

        Raises:
            DeadEndError: the constraint allows nothing.
        """
        if self.plain:
            return sample(self.chain, context, row), None
        address = logits_address(context, row)
        logits = self._views.get(address)
        if logits is None:
            logits = self._views[address] = float_view(address, self._size)
        report = None if self._top is None else _Raw(logits, self._top)
        only: np.ndarray[Any, Any] | None = None
        if self.constraint is not None:
            forbidden = self.constraint.forbidden()
            if self._size > _LARGE and np.count_nonzero(forbidden) * _SPARSE > self._size * (_SPARSE - 1):
                only = np.flatnonzero(~forbidden)
            else:
                np.copyto(logits, -np.inf, where=forbidden)
        if only is not None or self._explicit:
            token, sampled = self._draw_from(logits, only)
        else:
            token, sampled = sample(self.chain, context, row), 0.0
        if self.constraint is not None:
            self.constraint.advance(token)
        return token, None if report is None else report.of(token, sampled)

    def remember(self, prompt: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
        """Let the penalties see the end of the prompt."""
        if self._penalised:
            penalties = api.llama_sampler_chain_get(self._chain, 1 if self._grammar else 0)
            for id in prompt[-self._window :].tolist():
                api.llama_sampler_accept(penalties, id)

    def free(self) -> None:
        """Free the native side; safe to call twice."""
        chain, self._chain = self._chain, None
        if chain:
            api.llama_sampler_free(chain)

    def _build(self, params: SamplingParams, request: GenerateRequest, vocabulary: Vocabulary) -> Any:
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        add = api.llama_sampler_chain_add
        if request.grammar is not None:
            try:
                add(chain, _grammar(request.grammar, vocabulary))
            except SchemaError:
                api.llama_sampler_free(chain)
                raise
        if self._penalised:
            strengths = params.repeat_penalty, params.frequency_penalty, params.presence_penalty
            add(chain, api.llama_sampler_init_penalties(self._size, self._window, *strengths))
        if self._greedy:
            add(chain, api.llama_sampler_init_greedy())
            return chain
        if params.top_k > 0:
            add(chain, api.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1:
            add(chain, api.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0:
            add(chain, api.llama_sampler_init_min_p(params.min_p, 1))
        if params.temperature != 1:
            add(chain, api.llama_sampler_init_temp(params.temperature))
        add(chain, api.llama_sampler_init_dist(self.seed))
        return chain

    def _draw_from(self, logits: Row, only: np.ndarray[Any, Any] | None) -> tuple[int, float]:
        """Draw among all tokens, or `only` some, and give the log probability of the draw.

        Raises:
            DeadEndError: every candidate has probability 0.
        """
        if self._candidates is None:
            self._candidates = np.empty(self._size, dtype=_CANDIDATE)
            self._ids = np.arange(self._size, dtype=np.int32)
            self._array = api.llama_token_data_array()
            self._pointer = ctypes.byref(self._array)
        ids, values = (self._ids, logits) if only is None else (only, logits[only])
        candidates = self._candidates[: len(ids)]
        candidates["id"], candidates["logit"], candidates["p"] = ids, values, 0
        array = self._array
        array.data = ctypes.cast(self._candidates.ctypes.data, api.llama_token_data_p)
        array.size, array.selected, array.sorted = len(ids), -1, False
        api.llama_sampler_apply(self._chain, self._pointer)
        if not 0 <= array.selected < array.size:
            raise DeadEndError
        address = ctypes.cast(array.data, ctypes.c_void_p).value
        assert address is not None
        left = np.frombuffer((ctypes.c_char * (array.size * _CANDIDATE.itemsize)).from_address(address), _CANDIDATE)
        token, logit = int(left["id"][array.selected]), float(left["logit"][array.selected])
        if logit == -math.inf:
            raise DeadEndError
        sampled = 0.0 if self._greedy or self._top is None else logit - log_sum_exp(left["logit"])
        api.llama_sampler_accept(self._chain, token)
        return token, sampled


class _Raw:
    """The model's own log probabilities of one row, normalised before a mask touches it."""

    __slots__ = ("_logits", "_sum", "_top")

    def __init__(self, logits: Row, top: int) -> None:
        self._sum = log_sum_exp(logits)
        self._logits = logits  # a mask leaves the tokens that can be drawn as they are
        self._top = _most_probable(logits, top, self._sum)

    def of(self, token: int, sampled: float) -> TokenLogprob:
        return TokenLogprob(id=token, raw=float(self._logits[token]) - self._sum, sampled=sampled, top=self._top)


def log_sum_exp(logits: np.ndarray[Any, Any]) -> float:
    """log(sum(exp(logits))): exponentials in float32, their sum in float64."""
    best = float(logits.max())
    if best == -math.inf:
        return -math.inf
    return best + math.log(float(np.exp(logits - np.float32(best)).sum(dtype=np.float64)))


def _most_probable(logits: Row, count: int, log_sum: float) -> tuple[tuple[int, float], ...]:
    """The `count` most probable tokens as (id, log probability), best first; of equals the lower id."""
    if count == 0:
        return ()
    if count < len(logits):
        floor = np.partition(logits, -count)[-count]
        ids = np.flatnonzero(logits >= floor)
    else:
        ids = np.arange(len(logits))
    order = np.lexsort((ids, -logits[ids]))[:count]
    return tuple((int(id), float(logits[id]) - log_sum) for id in ids[order])


def _grammar(text: str, vocabulary: Vocabulary) -> Any:
    """llama.cpp's sampler of a GBNF grammar with the start symbol `root`."""
    if not vocabulary.exists:
        raise SchemaError("This model file has no tokeniser, so no grammar can be enforced.")
    forget_errors()
    with captured_stderr() as lines:
        sampler = api.llama_sampler_init_grammar(vocabulary.pointer, text.encode("utf-8", "replace"), b"root")
    if sampler and not text.strip():
        api.llama_sampler_free(sampler)
        sampler = None
    if not sampler:
        said = next((line.split("error parsing grammar: ")[-1] for line in lines if line.strip()), None)
        reason = said or native_reason("it has no rule `root ::= ...`")
        raise SchemaError(f"The grammar cannot be compiled: {reason}")
    return sampler
