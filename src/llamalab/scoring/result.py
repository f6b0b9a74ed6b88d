"""What a scored response is: one number, and every token it is the sum of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Method: TypeAlias = Literal["direct", "echo", "continuation"]
"""direct: one pass of a local engine over exact token ids; echo: an endpoint that repeats the text with its log
probabilities; continuation: two such calls, subtracted."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token of a response.

    Attributes:
        id: of the token; None where an endpoint gives only its text.
        text: its bytes as text; half a character reads as U+FFFD.
        raw: log softmax of the model's logits, nats; None where an endpoint gives only `logprob`.
        logprob: under the policy (temperature and truncation), nats; None for a token that it never gives.
        rank: how many tokens were more probable, plus 1; None where it is not known.
        entropy: of the model's distribution, nats; None where it is not known.
    """

    id: int | None
    text: str
    raw: float | None
    logprob: float | None
    rank: int | None = None
    entropy: float | None = None


@dataclass(frozen=True, slots=True)
class LogProbResult:
    """log p(response | prompt) under a policy, and what it is made of.

    Attributes:
        value: the float64 sum of the tokens' `logprob`, nats; None where the policy never gives the response.
        raw_total: the same sum of the model's own distribution (`raw`), nats; None where a token has none.
        tokens: those of the response in order, the end token included where it is scored.
        method: how it was found; never another one than was asked for.
        finished: whether the response ended by itself, so that its end belongs to it.
        n_end: how many of the tokens are the end, 0 or 1. 0 also for a finished response of a model without one.
        n_prefix: tokens that it is conditioned on.
        template: name of the chat template; None: the prompt was continued as plain text.
        agrees_jointly: whether prompt and response, tokenised in one go, have the same ids; None: not known.
        matches_text: whether the ids spell the text that was given; False only where ids and another text were given.
        fingerprint: what decides and describes the numbers: model, runtime, device, options.
        seconds: it took; 0 for a value from the store.
        stored: it comes from the store.
        drift: of fast mode: by how much it moved a token's log probability from strict mode at most, nats, in the first
            responses that were scored both ways; None in strict mode, and for what comes from the store.
    """

    value: float | None
    raw_total: float | None
    tokens: tuple[TokenScore, ...]
    method: Method
    finished: bool
    n_end: int = 0
    n_prefix: int = 0
    template: str | None = None
    agrees_jointly: bool | None = None
    matches_text: bool = True
    fingerprint: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seconds: float = 0.0
    stored: bool = False
    drift: float | None = None

    @property
    def n_tokens(self) -> int:
        """How many tokens were scored, the end included."""
        return len(self.tokens)

    @property
    def out_of_support(self) -> bool:
        """Whether the policy's truncation leaves a token of the response no probability at all."""
        return self.value is None
