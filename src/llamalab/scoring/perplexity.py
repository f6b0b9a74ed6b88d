"""Perplexity of a text: each of its tokens is scored once, in windows of one context that overlap.

A window begins with the model's BOS where it has one. The first window scores all its tokens; each later one moves on
by `stride` tokens and scores these alone, after as many of the tokens before them as fit. Without BOS, the first token
of the text has nothing that it is conditioned on, and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llamalab.errors import ConfigError, InputError
from llamalab.scored import Scored, ScoreMode, ScoreRequest
from llamalab.scoring.policy import Policy
from llamalab.scoring.session import Session
from llamalab.scoring.store import Store, StoredScore, Wanted

Progress = Callable[[int, int], None]
"""Told how many tokens are scored, and of how many."""

_AT_ONCE = 8  # windows scored together, and then stored


@dataclass(frozen=True, slots=True)
class Window:
    """One request: what is scored, and what it stands after."""

    prefix_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model expects a text.

    Attributes:
        value: exp of the mean negative log probability of a token.
        standard_error: of `value`, as if the tokens were independent: value times that of `nats_per_token`.
        nats_per_token: mean negative log probability, nats.
        standard_error_nats: its standard error: standard deviation over the square root of the number of tokens.
        bits_per_byte: total negative log probability in bits, over the bytes of the text: comparable between
            tokenisers.
        n_tokens: scored.
        n_bytes: of the text, UTF-8.
        n_windows: passes.
        context: tokens of a window, BOS included.
        stride: tokens that a window moves on.
        stored: windows that came from the store.
        fingerprint: what decides and describes the numbers.
    """

    value: float
    standard_error: float
    nats_per_token: float
    standard_error_nats: float
    bits_per_byte: float
    n_tokens: int
    n_bytes: int
    n_windows: int
    context: int
    stride: int
    stored: int
    fingerprint: Mapping[str, Any]


def perplexity(
    policy: Policy,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    mode: ScoreMode = "strict",
    store: Store | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of `text` under the model's own distribution.

    Args:
        policy: names the model; its sampler and prompt have no part in this.
        text: to score, as plain text.
        context: tokens of a window, BOS included; None: what the engine holds.
        stride: tokens that a window moves on; None: half of `context`.
        mode: of scoring.
        store: windows that were computed before, and a place for those that are.
        progress: told about the tokens.

    Raises:
        InputError: a text of no token that can be scored.
        ConfigError: a context or stride that cannot be.
    """
    with Session([policy], mode=mode, store=store) as session:
        return _measured(session, policy, text, context, stride, progress or (lambda _done, _total: None))


def windows(ids: Sequence[int], bos: tuple[int, ...], context: int, stride: int) -> Iterator[Window]:
    """The windows of a text.

    Args:
        ids: of the text, without BOS.
        bos: what each window begins with: one token or none.
        context: tokens of a window, `bos` included.
        stride: tokens that a window moves on.

    Raises:
        ConfigError: a window that cannot hold `stride` tokens and one before them.
    """
    if not 1 <= stride < context:
        raise ConfigError(
            f"With windows of {context} tokens the stride is 1 to {context - 1}, not {stride}: at least one token "
            "stands before those that are scored."
        )
    room = context - len(bos)
    begin = 0 if bos else 1  # of what is scored: a first token without BOS stands after nothing
    end = room - stride  # so that the first window is full
    while begin < len(ids):
        end = min(len(ids), end + stride)
        yield Window((*bos, *ids[max(0, end - room) : begin]), tuple(ids[begin:end]))
        begin = end


def _measured(
    session: Session, policy: Policy, text: str, context: int | None, stride: int | None, progress: Progress
) -> Perplexity:
    mark = session.fingerprint(policy)
    info = session.tokens(policy).info
    ids = session.tokens(policy).tokenize(text)
    bos = (info.bos_id,) if info.add_bos and info.bos_id is not None else ()
    context = info.n_ctx if context is None else context
    if context > info.n_ctx:
        raise ConfigError(f"A window of {context} tokens is longer than the context of {info.n_ctx}; raise --n-ctx.")
    stride = max(1, context // 2) if stride is None else stride
    found = list(windows(ids, bos, context, stride))
    total = sum(len(window.response_ids) for window in found)
    if not total:
        raise InputError("The text has no token that can be scored.")
    values: list[float] = []
    stored = 0
    for score, was_stored in _scores(session, policy, found):
        values += [value for value in score.raw if value is not None]
        stored += was_stored
        progress(len(values), total)
    mean = -math.fsum(values) / len(values)
    error = _standard_error(values)
    return Perplexity(
        value=math.exp(mean),
        standard_error=math.exp(mean) * error,
        nats_per_token=mean,
        standard_error_nats=error,
        bits_per_byte=mean * len(values) / math.log(2) / len(text.encode()),
        n_tokens=len(values),
        n_bytes=len(text.encode()),
        n_windows=len(found),
        context=context,
        stride=stride,
        stored=stored,
        fingerprint=mark.facts,
    )


def _scores(session: Session, policy: Policy, found: Sequence[Window]) -> Iterator[tuple[StoredScore, bool]]:
    """The score of each window, and whether it was stored; the model is loaded when the first is not."""
    mark, store = session.fingerprint(policy), session.store
    waiting = iter(found)
    while part := list(islice(waiting, _AT_ONCE)):
        wanted = [Wanted(mark.key, window.prefix_ids, window.response_ids) for window in part]
        known = [None] * len(part) if store is None else store.get_many(wanted)
        missing = [number for number, score in enumerate(known) if score is None]
        fresh: dict[int, StoredScore] = {}
        if missing:
            requests = [ScoreRequest(part[number].prefix_ids, part[number].response_ids) for number in missing]
            scored = session.engine(policy).score(requests, mode=session.mode)
            fresh = dict(zip(missing, map(_stored, scored), strict=True))
            if store is not None:
                store.put_many(mark, [(wanted[number], score) for number, score in fresh.items()])
        for number, score in enumerate(known):
            yield (score, True) if score is not None else (fresh[number], False)


def _stored(scored: Scored) -> StoredScore:
    return StoredScore(scored.logprobs, scored.logprobs, scored.ranks, scored.entropies)


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
