"""What is checked of a request before any work is done, whatever the runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from llamalab.engine import GenerateRequest, SamplingParams
from llamalab.engines.sampling_params import check_sampling
from llamalab.errors import ConfigError, ContextOverflow, InputError
from llamalab.scored import Decoding, ScoreMode, ScoreRequest

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One response to score, checked.

    Attributes:
        prefix: ids it is conditioned on.
        response: ids to score.
        decodings: samplers under which it is scored besides the model's own distribution.
    """

    prefix: Ids
    response: Ids
    decodings: tuple[Decoding, ...]

    @property
    def ids(self) -> Ids:
        """All of them."""
        return np.concatenate([self.prefix, self.response])

    @property
    def first(self) -> int:
        """The position whose logits predict the first token that can be scored."""
        return max(0, len(self.prefix) - 1)

    @property
    def end(self) -> int:
        """After the position whose logits predict the last token."""
        return len(self.prefix) + len(self.response) - 1


def in_order(asked: Sequence[Asked]) -> list[int]:
    """Numbers of requests in the order of their ids: each after the one with which it shares most."""
    return sorted(range(len(asked)), key=lambda number: asked[number].ids.astype(">i4").tobytes())


def common_prefix(held: Sequence[int] | Ids, ids: Ids) -> int:
    """Number of equal tokens at the beginning of both."""
    length = min(len(held), len(ids))
    if not length:
        return 0
    differ = np.asarray(held[:length], dtype=np.int32) != ids[:length]
    return int(differ.argmax()) if differ.any() else length


def check_request(number: int, request: GenerateRequest, *, n_ctx: int) -> None:
    """Refuse a request that cannot be run.

    Raises:
        InputError: an empty prompt.
        ContextOverflow: a prompt that leaves no room for a token.
        ConfigError: settings that mean nothing; a schema and a grammar.
    """
    length = len(request.prompt_ids)
    if not length:
        raise InputError(f"Request {number}, prompt: a prompt needs at least one token.")
    check_sampling(request.params)
    if length + (request.params.max_tokens != 0) > n_ctx:
        raise ContextOverflow(
            f"The prompt has {length} tokens, the context {n_ctx}, and the reply needs at least one. "
            "Shorten it, or load the model with a larger n_ctx.",
            needed=max(length, n_ctx + 1),
            available=n_ctx,
        )
    if request.schema is not None and request.grammar is not None:
        raise ConfigError("A request has a schema or a grammar, not both.")
    logprobs = request.logprobs
    if logprobs is not None and (isinstance(logprobs, bool) or not isinstance(logprobs, int) or logprobs < 0):
        raise ConfigError(f"logprobs must be None or a whole number of at least 0, not {logprobs!r}.")


def check_score(number: int, request: ScoreRequest, *, n_ctx: int, n_vocab: int) -> Asked:
    """A request with its ids as arrays.

    Raises:
        ContextOverflow: prefix and response together longer than the context.
        InputError: an id outside the vocabulary.
        ConfigError: a decoding that means nothing.
    """
    needed = len(request.prefix_ids) + len(request.response_ids)
    if needed > n_ctx:
        raise ContextOverflow(
            f"Request {number}: prefix and response have {needed} tokens, the context {n_ctx}. "
            "Load the model with a larger n_ctx.",
            needed=needed,
            available=n_ctx,
        )
    for decoding in request.decodings:
        check_decoding(decoding)
    return Asked(
        checked_ids(request.prefix_ids, n_vocab, f"Request {number}, prefix"),
        checked_ids(request.response_ids, n_vocab, f"Request {number}, response"),
        tuple(request.decodings),
    )


def check_mode(mode: ScoreMode) -> None:
    """Refuse a mode that does not exist.

    Raises:
        ConfigError: names those that do.
    """
    if mode not in get_args(ScoreMode):
        raise ConfigError(f"mode must be {' or '.join(get_args(ScoreMode))}, not {mode!r}.")


def check_decoding(decoding: Decoding) -> None:
    """Refuse a decoding that is no distribution.

    Raises:
        ConfigError: names the field.
    """
    if not (isinstance(decoding.temperature, int | float) and 0 < decoding.temperature < math.inf):
        zero = " At temperature 0 one token has all the mass, and log probabilities say nothing."
        raise ConfigError(
            f"temperature must be above 0 to score under, not {decoding.temperature!r}."
            f"{zero if decoding.temperature == 0 else ''}"
        )
    if decoding.order not in ("truncate_first", "temperature_first"):
        raise ConfigError(f"order must be truncate_first or temperature_first, not {decoding.order!r}.")
    check_sampling(SamplingParams(top_k=decoding.top_k, top_p=decoding.top_p, min_p=decoding.min_p))


def checked_ids(ids: Sequence[int], size: int, what: str) -> Ids:
    """`ids` as an int32 array.

    Args:
        ids: of tokens.
        size: of the vocabulary.
        what: they are, for the message.

    Raises:
        InputError: something that is no integer, or an id outside the vocabulary, with its position.
    """
    try:
        array = np.asarray(ids if isinstance(ids, np.ndarray | list | tuple) else list(ids))
    except (ValueError, OverflowError) as error:
        raise InputError(f"{what}: token ids must be integers ({error}).") from error
    if array.size == 0:
        return np.empty(0, dtype=np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{what}: token ids must be a flat list of integers.")
    outside = (array < 0) | (array >= size)
    if outside.any():
        at = int(outside.argmax())
        raise InputError(f"{what}: token id {array[at]} at position {at} is outside the vocabulary of {size} tokens.")
    return array.astype(np.int32)


def checked_text(ids: Sequence[int], size: int, *, n_ctx: int) -> Ids:
    """The ids of a text that is computed whole.

    Raises:
        InputError: no token, or an id outside the vocabulary of `size`.
        ContextOverflow: more than `n_ctx`.
    """
    tokens = checked_ids(ids, size, "ids")
    if not len(tokens):
        raise InputError("ids: at least one token is needed.")
    if len(tokens) > n_ctx:
        raise ContextOverflow(
            f"The text has {len(tokens)} tokens, the context {n_ctx}. Load the model with a larger n_ctx.",
            needed=len(tokens),
            available=n_ctx,
        )
    return tokens
