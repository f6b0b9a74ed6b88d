"""Many responses under several policies: what is stored is read, engines are opened for the rest, passes are shared."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, TypeVar, get_args

from llamalab.engine import Engine, Message
from llamalab.engines import load
from llamalab.errors import ConfigError, ContextOverflow, InputError, LlamalabError, NonFinite
from llamalab.scored import Decoding, Scored, ScoreMode, ScoreRequest
from llamalab.scoring.drift import drift
from llamalab.scoring.fingerprint import Fingerprint, fingerprint
from llamalab.scoring.policy import Policy
from llamalab.scoring.result import LogProbResult, TokenScore
from llamalab.scoring.spans import Span, Tokens, open_tokens, span
from llamalab.scoring.store import StoredScore, Wanted

if TYPE_CHECKING:
    from llamalab.scoring.remote import RemoteScorer
    from llamalab.scoring.store import Store

Outcome: TypeAlias = LogProbResult | LlamalabError
"""Of one item: its score, or why it has none."""


class _Closable(Protocol):
    """Whatever is opened here."""

    def close(self) -> None:
        """Free it."""
        ...


_Kind = TypeVar("_Kind", bound=_Closable)

_WINDOW = 64
"""Items that are looked at together; those of one model and one beginning are computed one after the other."""


@dataclass(frozen=True, slots=True)
class Item:
    """One response to score.

    Attributes:
        policy: under which.
        prompt: a user's message, or a conversation; for a model without a template, text to continue.
        response: its text; may be None where `response_ids` are given.
        finished: the response ended by itself.
        response_ids: its tokens as they were generated; they win over `response`.
        tag: whatever the caller knows it by.
    """

    policy: Policy
    prompt: str | Sequence[Message]
    response: str | None
    finished: bool = True
    response_ids: Sequence[int] | None = None
    tag: Any = None


@dataclass(frozen=True, slots=True)
class _Job:
    """An item on its way: its number in the window, its span, and its sampler (None: the model's own distribution)."""

    number: int
    item: Item
    tokens: Tokens
    span: Span
    sampler: Decoding | None

    @property
    def ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.span.prefix_ids, self.span.response_ids


class Session:
    """What scores under some policies; opens each model once, when it is first needed. A context manager.

    Safe from several threads.

    Args:
        policies: those that will be asked for. Tokenisers and weights are not read before they are used.
        mode: of scoring, see `ScoreMode`.
        store: looked up first, and given every new score; the caller closes it.

    Raises:
        ConfigError: another mode.
    """

    def __init__(self, policies: Sequence[Policy], *, mode: ScoreMode = "strict", store: Store | None = None) -> None:
        if mode not in get_args(ScoreMode):
            raise ConfigError(f"mode must be {' or '.join(get_args(ScoreMode))}, not {mode!r}.")
        self.policies = tuple(policies)
        self.mode: ScoreMode = mode
        self.store = store
        self._stack = ExitStack()
        self._lock = threading.RLock()
        self._tokens: dict[object, Tokens] = {}
        self._engines: dict[object, Engine] = {}
        self._remote: dict[object, RemoteScorer] = {}
        self._fingerprints: dict[object, Fingerprint] = {}
        self._drifts: dict[object, float | None] = {}

    def score(self, items: Iterable[Item]) -> Iterator[tuple[Item, Outcome]]:
        """Score `items`; each comes back with its outcome, in the order of `items`, as soon as it and those before it
        are done.

        What is wrong with one item is its outcome, and the others go on. Results are stored as soon as they are there.

        Raises:
            ModelNotFound, ModelFileError, OutOfMemory, ConfigError: a policy's model that cannot be used at all.
            StoreError: the store cannot be read or written.
        """
        rest = iter(items)
        while window := list(islice(rest, _WINDOW)):
            done: dict[int, Outcome] = {}
            next_one = 0
            for number, outcome in self._window(window):
                done[number] = outcome
                while next_one in done:
                    yield window[next_one], done.pop(next_one)
                    next_one += 1

    def tokens(self, policy: Policy) -> Tokens:
        """Tokeniser and template of a local policy's model; opened at first use.

        Raises:
            As `open_tokens`.
        """
        return self._opened(self._tokens, policy, lambda: open_tokens(policy))

    def engine(self, policy: Policy) -> Engine:
        """The engine of a local policy; opened at first use.

        Raises:
            As `llamalab.load`.
        """
        # llama.cpp needs no context to generate in.
        options = {"n_seq": 0} if policy.provider == "llama_cpp" else {}
        return self._opened(self._engines, policy, lambda: load(policy.spec, **(options | dict(policy.options))))

    def fingerprint(self, policy: Policy) -> Fingerprint:
        """What decides the bits of a policy's scores; taken once, before its weights are read.

        Raises:
            As `fingerprint.fingerprint`.
        """
        key = policy.engine_key
        with self._lock:
            if key not in self._fingerprints:
                self._fingerprints[key] = fingerprint(policy, self.mode)
            return self._fingerprints[key]

    def close(self) -> None:
        """Close what was opened."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _opened(self, opened: dict[object, _Kind], policy: Policy, open_it: Callable[[], _Kind]) -> _Kind:
        # An endpoint's scorer knows the system prompt and the sampler as well, an engine does not.
        key = policy if policy.remote else policy.engine_key
        with self._lock:
            if key not in opened:
                opened[key] = open_it()
                self._stack.callback(opened[key].close)
            return opened[key]

    def _window(self, items: Sequence[Item]) -> Iterator[tuple[int, Outcome]]:
        """The outcomes of `items` with their numbers, in the order in which they are found."""
        groups: dict[object, list[_Job]] = {}
        for number, item in enumerate(items):
            if item.policy.remote:
                yield number, self._remote_outcome(item)
                continue
            tokens = self.tokens(item.policy)
            try:
                found = _fitting(tokens, item)
            except LlamalabError as error:
                yield number, error
            else:
                job = _Job(number, item, tokens, found, sampler_of(item.policy.decoding))
                groups.setdefault(item.policy.engine_key, []).append(job)
        for jobs in groups.values():
            yield from self._group(jobs)

    def _group(self, jobs: Sequence[_Job]) -> Iterator[tuple[int, Outcome]]:
        """The outcomes of jobs of one engine."""
        policy = jobs[0].item.policy
        mark = self.fingerprint(policy)
        missing: dict[tuple[tuple[int, ...], tuple[int, ...]], list[_Job]] = {}
        wanted = [Wanted(mark.key, *job.ids, job.sampler) for job in jobs]
        stored = [None] * len(jobs) if self.store is None else self.store.get_many(wanted)
        for job, score in zip(jobs, stored, strict=True):
            if score is None:
                missing.setdefault(job.ids, []).append(job)
            else:
                yield job.number, _outcome(job, score, mark, stored=True)
        same = _by_beginning(list(missing.values()))
        # A strict pass of llama.cpp is one response anyway, so each is stored as it comes.
        at_once = 1 if policy.provider == "llama_cpp" and self.mode == "strict" else _WINDOW
        for begin in range(0, len(same), at_once):
            yield from self._computed(same[begin : begin + at_once], mark).items()

    def _computed(self, jobs: Sequence[Sequence[_Job]], mark: Fingerprint) -> dict[int, Outcome]:
        """Outcomes from the engine, in one call; jobs that stand together differ in their samplers alone."""
        engine = self.engine(jobs[0][0].item.policy)
        requests = [ScoreRequest(*same[0].ids, tuple(_samplers(same))) for same in jobs]
        began = time.perf_counter()
        answers = _answers(engine, requests, self.mode)
        seconds = (time.perf_counter() - began) / len(requests)
        moved = self._drift(jobs[0][0].item.policy, requests, answers) if self.mode == "fast" else None
        outcomes: dict[int, Outcome] = {}
        new: list[tuple[Wanted, StoredScore]] = []
        for same, answer in zip(jobs, answers, strict=True):
            for job in same:
                if isinstance(answer, LlamalabError):
                    outcomes[job.number] = answer
                    continue
                score = _under(answer, _samplers(same), job.sampler, seconds)
                outcome = _outcome(job, score, mark, stored=False)
                if isinstance(outcome, LogProbResult):
                    new.append((Wanted(mark.key, *job.ids, job.sampler), score))
                    outcome = replace(outcome, drift=moved)
                outcomes[job.number] = outcome
        if self.store is not None and new:
            self.store.put_many(mark, new)
        return outcomes

    def _drift(
        self, policy: Policy, requests: Sequence[ScoreRequest], answers: Sequence[Scored | LlamalabError]
    ) -> float | None:
        """Of fast mode from strict; measured once for each engine, on its first responses."""
        if policy.engine_key not in self._drifts:
            self._drifts[policy.engine_key] = drift(self.engine(policy), requests, answers)
        return self._drifts[policy.engine_key]

    def _remote_outcome(self, item: Item) -> Outcome:
        from llamalab.scoring.remote import RemoteScorer

        if item.response is None or item.response_ids is not None:
            return InputError(
                f"Policy '{item.policy.name}' is scored by an endpoint, which takes text: give the response as text "
                "and no response_ids."
            )
        scorer = self._opened(self._remote, item.policy, lambda: RemoteScorer(item.policy))
        try:
            return scorer.score(item.prompt, item.response, finished=item.finished)
        except LlamalabError as error:
            return error


def _fitting(tokens: Tokens, item: Item) -> Span:
    """The span of an item.

    Raises:
        ContextOverflow: it is longer than the context; and as `span`.
    """
    found = span(
        tokens, item.policy, item.prompt, item.response, finished=item.finished, response_ids=item.response_ids
    )
    before, after, n_ctx = len(found.prefix_ids), len(found.response_ids), tokens.info.n_ctx
    if before + after > n_ctx:
        raise ContextOverflow(
            f"The prompt has {before:,} tokens and the response {after:,}; the context of policy "
            f"'{item.policy.name}' holds {n_ctx:,}. Give the policy a larger n_ctx.",
            needed=before + after,
            available=n_ctx,
        )
    return found


def _by_beginning(jobs: list[list[_Job]]) -> list[list[_Job]]:
    """Jobs in the order in which they share most with the one before: those of one system prompt, then of one prefix,
    stand together, else they stay in their order."""
    first: dict[object, int] = {}

    def place(same: Sequence[_Job]) -> tuple[int, int]:
        job = same[0]
        layout = (job.item.policy.system_prompt, job.item.policy.template)
        return first.setdefault(layout, job.number), first.setdefault(job.span.prefix_ids, job.number)

    return sorted(jobs, key=place)


def sampler_of(decoding: Decoding) -> Decoding | None:
    """A decoding as one of all that mean the same; None for the model's own distribution."""
    if decoding.truncates:
        return decoding
    return None if decoding.temperature == 1 else Decoding(temperature=decoding.temperature)


def _samplers(jobs: Sequence[_Job]) -> list[Decoding]:
    """Those that an engine is asked for, each once, in order."""
    return list(dict.fromkeys(job.sampler for job in jobs if job.sampler is not None))


def _answers(engine: Engine, requests: Sequence[ScoreRequest], mode: ScoreMode) -> list[Scored | LlamalabError]:
    """What the engine says of each request; if one fails, the others are asked for alone."""
    try:
        return list(engine.score(requests, mode=mode))
    except LlamalabError as error:
        if len(requests) == 1:
            return [error]
    return [answer for request in requests for answer in _answers(engine, [request], mode)]


def _under(scored: Scored, samplers: Sequence[Decoding], sampler: Decoding | None, seconds: float) -> StoredScore:
    """What an engine said, under one of the samplers that it was asked for."""
    logprobs = scored.logprobs if sampler is None else scored.decoded[samplers.index(sampler)].logprobs
    return StoredScore(logprobs, scored.logprobs, scored.ranks, scored.entropies, seconds)


def _outcome(job: _Job, score: StoredScore, mark: Fingerprint, *, stored: bool) -> Outcome:
    """A job's result; `NonFinite` for a log probability that cannot be."""
    truncates = job.sampler is not None and job.sampler.truncates
    raw = [value for value in score.raw if value is not None and math.isfinite(value)]
    under = [value for value in score.logprobs if value is not None and not math.isnan(value)]
    if len(raw) < len(score.raw) or len(under) < len(score.raw) or (-math.inf in under and not truncates):
        return NonFinite(
            f"Policy '{job.item.policy.name}' gives a log probability that is not finite. The model's logits are not "
            "in order: a damaged file, or numbers too large for its type."
        )
    found, tokens = job.span, job.tokens
    scores = tuple(
        TokenScore(
            id,
            tokens.token_bytes(id, special=True).decode("utf-8", "replace"),
            raw[at],
            under[at] if under[at] > -math.inf else None,
            score.ranks[at],
            score.entropies[at],
        )
        for at, id in enumerate(found.response_ids)
    )
    return LogProbResult(
        value=None if -math.inf in under else math.fsum(under),
        raw_total=math.fsum(raw),
        tokens=scores,
        method="direct",
        finished=job.item.finished,
        n_end=found.n_end,
        n_prefix=len(found.prefix_ids),
        template=found.template,
        agrees_jointly=found.agrees_jointly,
        matches_text=found.matches_text,
        fingerprint=mark.facts,
        seconds=score.seconds,
        stored=stored,
    )
