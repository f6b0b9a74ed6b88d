"""Many responses under several policies: what is stored is read, engines are opened for the rest, passes are shared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol, Self, TypeVar, get_args

from llamalab.engine import Engine
from llamalab.engines import load
from llamalab.errors import ConfigError, InputError, LlamalabError
from llamalab.scored import Scored, ScoreMode, ScoreRequest
from llamalab.scoring.drift import drift
from llamalab.scoring.fingerprint import Fingerprint, fingerprint
from llamalab.scoring.job import (
    Item,
    Job,
    Outcome,
    by_beginning,
    fitting,
    outcome_of,
    sampler_of,
    samplers_of,
    score_under,
)
from llamalab.scoring.policy import Policy
from llamalab.scoring.result import LogProbResult
from llamalab.scoring.spans import Tokens, open_tokens
from llamalab.scoring.store import StoredScore, Wanted

if TYPE_CHECKING:
    from llamalab.scoring.remote import RemoteScorer
    from llamalab.scoring.store import Store

__all__ = ["Item", "Outcome", "Session", "sampler_of"]


class _Closable(Protocol):
    """Whatever is opened here."""

    def close(self) -> None:
        """Free it."""
        ...


_Kind = TypeVar("_Kind", bound=_Closable)

_WINDOW = 64
"""Items that are looked at together; those of one model and one beginning are computed one after the other."""


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
        groups: dict[object, list[Job]] = {}
        for number, item in enumerate(items):
            if item.policy.remote:
                yield number, self._remote_outcome(item)
                continue
            tokens = self.tokens(item.policy)
            try:
                found = fitting(tokens, item)
            except LlamalabError as error:
                yield number, error
            else:
                job = Job(number, item, tokens, found, sampler_of(item.policy.decoding))
                groups.setdefault(item.policy.engine_key, []).append(job)
        for jobs in groups.values():
            yield from self._group(jobs)

    def _group(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """The outcomes of jobs of one engine."""
        policy = jobs[0].item.policy
        mark = self.fingerprint(policy)
        missing: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Job]] = {}
        wanted = [Wanted(mark.key, *job.ids, job.sampler) for job in jobs]
        stored = [None] * len(jobs) if self.store is None else self.store.get_many(wanted)
        for job, score in zip(jobs, stored, strict=True):
            if score is None:
                missing.setdefault(job.ids, []).append(job)
            else:
                yield job.number, outcome_of(job, score, mark, stored=True)
        same = by_beginning(list(missing.values()))
        # A strict pass of llama.cpp is one response anyway, so each is stored as it comes.
        at_once = 1 if policy.provider == "llama_cpp" and self.mode == "strict" else _WINDOW
        for begin in range(0, len(same), at_once):
            yield from self._computed(same[begin : begin + at_once], mark).items()

    def _computed(self, jobs: Sequence[Sequence[Job]], mark: Fingerprint) -> dict[int, Outcome]:
        """Outcomes from the engine, in one call; jobs that stand together differ in their samplers alone."""
        engine = self.engine(jobs[0][0].item.policy)
        requests = [ScoreRequest(*same[0].ids, tuple(samplers_of(same))) for same in jobs]
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
                score = score_under(answer, samplers_of(same), job.sampler, seconds)
                outcome = outcome_of(job, score, mark, stored=False)
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


def _answers(engine: Engine, requests: Sequence[ScoreRequest], mode: ScoreMode) -> list[Scored | LlamalabError]:
    """What the engine says of each request; if one fails, the others are asked for alone."""
    try:
        return list(engine.score(requests, mode=mode))
    except LlamalabError as error:
        if len(requests) == 1:
            return [error]
    return [answer for request in requests for answer in _answers(engine, [request], mode)]
