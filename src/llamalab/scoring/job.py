"""One response on its way to a score: what is asked, the tokens that it is, and the result that its numbers make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from llamalab.engine import Message
from llamalab.errors import ContextOverflow, LlamalabError, NonFinite
from llamalab.scored import Decoding, Scored
from llamalab.scoring.fingerprint import Fingerprint
from llamalab.scoring.policy import Policy
from llamalab.scoring.result import LogProbResult, TokenScore
from llamalab.scoring.spans import Span, Tokens, span
from llamalab.scoring.store import StoredScore

Outcome: TypeAlias = LogProbResult | LlamalabError
"""Of one item: its score, or why it has none."""


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
class Job:
    """An item on its way.

    Attributes:
        number: of the item in its window.
        item: as it was given.
        tokens: of its policy's model.
        span: the tokens to score.
        sampler: under which; None: the model's own distribution.
    """

    number: int
    item: Item
    tokens: Tokens
    span: Span
    sampler: Decoding | None

    @property
    def ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What is asked of the engine: prefix and response."""
        return self.span.prefix_ids, self.span.response_ids


def sampler_of(decoding: Decoding) -> Decoding | None:
    """A decoding as one of all that mean the same; None for the model's own distribution."""
    if decoding.truncates:
        return decoding
    return None if decoding.temperature == 1 else Decoding(temperature=decoding.temperature)


def fitting(tokens: Tokens, item: Item) -> Span:
    """The span of an item, which fits into the context.

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


def by_beginning(jobs: list[list[Job]]) -> list[list[Job]]:
    """Jobs in the order in which they share most with the one before: those of one system prompt, then of one prefix,
    stand together, else they stay in their order."""
    first: dict[object, int] = {}

    def place(same: Sequence[Job]) -> tuple[int, int]:
        job = same[0]
        layout = (job.item.policy.system_prompt, job.item.policy.template)
        return first.setdefault(layout, job.number), first.setdefault(job.span.prefix_ids, job.number)

    return sorted(jobs, key=place)


def samplers_of(jobs: Sequence[Job]) -> list[Decoding]:
    """Those that an engine is asked for, each once, in order."""
    return list(dict.fromkeys(job.sampler for job in jobs if job.sampler is not None))


def score_under(scored: Scored, samplers: Sequence[Decoding], sampler: Decoding | None, seconds: float) -> StoredScore:
    """What an engine said in `seconds`, under one of the samplers that it was asked for; None: the model's own."""
    logprobs = scored.logprobs if sampler is None else scored.decoded[samplers.index(sampler)].logprobs
    return StoredScore(logprobs, scored.logprobs, scored.ranks, scored.entropies, seconds)


def outcome_of(job: Job, score: StoredScore, mark: Fingerprint, *, stored: bool) -> Outcome:
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
