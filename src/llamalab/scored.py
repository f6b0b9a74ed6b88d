"""What is asked of an engine that scores a response, and what it says: log probabilities, token by token.

Units: log probabilities are natural logarithms (nats).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

ScoreMode: TypeAlias = Literal["strict", "fast"]
"""strict: the same ids and configuration give the same bits, whatever else is scored or was; fast: several responses
share a batch, and the last digits depend on which."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a policy turns logits into the distribution that it draws from.

    Attributes:
        temperature: above 0; logits are divided by it.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set whose mass reaches p; 1 keeps all.
        min_p: keep tokens at least this fraction as probable as the best; 0 keeps all.
        order: whether the truncations look at the distribution before temperature (llama.cpp) or after it
            (transformers, vLLM).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    order: Literal["truncate_first", "temperature_first"] = "truncate_first"

    @property
    def truncates(self) -> bool:
        """Whether there are tokens that it never gives."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One response to score: log p(response | prefix).

    Attributes:
        prefix_ids: what it is conditioned on; may be empty only for a response whose first token is not to be scored
            (it gets None).
        response_ids: to score.
        decodings: samplers under which it is scored besides the model's own distribution; all from one pass.
    """

    prefix_ids: Sequence[int]
    response_ids: Sequence[int]
    decodings: tuple[Decoding, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodedScore:
    """Log probabilities of the tokens of one response under a sampler.

    Attributes:
        logprobs: nats; -inf for a token that the sampler never gives; None where `Scored.logprobs` is.
        total: their float64 sum, nats.
    """

    logprobs: tuple[float | None, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model says of the tokens of one response.

    Attributes:
        logprobs: log softmax of the model's logits at each response token, nats; the first is None
            if the prefix was empty.
        total: their float64 sum, nats.
        ranks: how many tokens were more probable, plus 1; None as in `logprobs`.
        entropies: of the model's distribution at each token, nats; None as in `logprobs`.
        decoded: the same tokens under each sampler of the request.
    """

    logprobs: tuple[float | None, ...]
    total: float
    ranks: tuple[int | None, ...] = ()
    entropies: tuple[float | None, ...] = ()
    decoded: tuple[DecodedScore, ...] = ()
