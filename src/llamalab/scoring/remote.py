"""Teacher forcing through a remote endpoint: `echo` and `continuation`, each only after it has been checked.

An endpoint that repeats a text with the log probability of each token can score a response. Several do that wrongly:
some are one token off, some ignore the request, one gave values that had nothing to do with those of its own
generation. So the first thing a scorer does is to let the endpoint generate a few tokens and repeat them: the values of
both must agree. An endpoint that fails is refused, and nothing else is tried in its place.

What endpoints give is the model's own distribution, so a policy with a temperature other than 1, or with a truncation,
cannot be scored here.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from llamalab.engine import Message
from llamalab.engines.options import nearest
from llamalab.errors import ConfigError, ProviderError, TokenBoundaryError
from llamalab.scoring.completion import Completion
from llamalab.scoring.echo import is_readable, logprobs_at, repeated, response_tokens, same_beginning
from llamalab.scoring.endpoint import Endpoint
from llamalab.scoring.policy import Policy
from llamalab.scoring.remote_text import CONTROL, RemoteText, remote_text
from llamalab.scoring.result import LogProbResult, Method, TokenScore

TOLERANCE = 0.25
"""Nats by which a generated token and its echo may differ: a shift costs several, other batch shapes 0.15 at most."""

_PROBES = (
    "The capital of France is",
    "Once upon a time, there was a",
    "One, two, three, four,",
    "def add(a, b):\n    return",
    "hello world",
    "To be, or not to be: that is the",
    "The quick brown fox",
    "Monday, Tuesday, Wednesday,",
)
_PROBE_TOKENS = 8
_LEAST_COMPARED = 4

_OPTIONS = ("method", "base_url", "api_key_env", "deadline", "retries", "backoff", "end")


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """Generated tokens against their own echo.

    Attributes:
        n_tokens: compared.
        largest: difference of the two log probabilities, nats.
    """

    n_tokens: int
    largest: float


class RemoteScorer:
    """Scores responses under a policy whose model runs elsewhere. Safe from several threads. A context manager.

    Args:
        policy: of a remote provider. Its options: `method`, "echo" (the default) or "continuation"; `base_url`,
            `api_key_env`, `deadline`, `retries`, `backoff` as `Endpoint` has them; `end`, the name of the token that
            ends a response, for a policy without a template that writes it.

    Raises:
        ConfigError: an option that does not exist or cannot be; a decoding that endpoints do not give.
        ProviderError: no such provider, no address, or no key.
    """

    def __init__(self, policy: Policy) -> None:
        options = dict(policy.options)
        for name in options:
            if name == "api_key":
                raise ConfigError("A key does not belong into a policy: put it into the environment (see api_key_env).")
            if name not in _OPTIONS:
                raise ConfigError(f"A {policy.provider} policy has no setting {name!r}.{nearest(name, list(_OPTIONS))}")
        method = options.pop("method", "echo")
        if method not in get_args(Method) or method == "direct":
            raise ConfigError(f"method must be echo or continuation for {policy.provider}, not {method!r}.")
        _check_decoding(policy)
        self.policy = policy
        self.method: Method = method
        self._end: str | None = options.pop("end", None)
        if self._end is not None and not isinstance(self._end, str):
            raise ConfigError(f"end must be the name of a token, not {self._end!r}.")
        self._endpoint = Endpoint(policy.provider, policy.model, **options)
        self._check: SelfCheck | None = None
        self._lock = threading.Lock()

    def score(self, prompt: str | Sequence[Message], response: str, *, finished: bool = True) -> LogProbResult:
        """log p(response | prompt).

        Args:
            prompt: a user's message or a conversation; without a template, text to continue.
            response: to score.
            finished: the response ended by itself: its end token is scored.

        Raises:
            InputError, TemplateMissing, ConfigError: as `remote_text`.
            ProviderError: the endpoint fails, or its log probabilities are not those of its own generation.
            TokenBoundaryError: prompt and response meet inside a token.
        """
        started = time.monotonic()
        text = remote_text(self.policy, prompt, response, finished=finished, end=self._end)
        check = self.self_check()
        whole = self._endpoint.complete(text.whole, echo=True)
        scored = self._echo(text, whole) if self.method == "echo" else self._continuation(text, whole)
        positions, value, drift = scored
        logprobs = logprobs_at(whole, positions, where=self._endpoint.name)
        ids = whole.ids
        tokens = tuple(
            TokenScore(None if ids is None else ids[position], whole.tokens[position], raw=logprob, logprob=logprob)
            for position, logprob in zip(positions, logprobs, strict=True)
        )
        total = math.fsum(logprobs) if value is None else value
        return LogProbResult(
            value=total,
            raw_total=total,
            tokens=tokens,
            method=self.method,
            finished=finished,
            n_end=1 if text.end else 0,
            n_prefix=whole.n_prompt - len(positions),
            template=text.template,
            agrees_jointly=True,  # the endpoint has tokenised them together
            fingerprint=self._facts(whole, check, drift),
            seconds=time.monotonic() - started,
        )

    def self_check(self) -> SelfCheck:
        """Compare generated tokens with their echo; once, before the first score.

        Raises:
            ProviderError: they differ, or cannot be compared.
        """
        with self._lock:
            if self._check is None:
                self._check = check_endpoint(self._endpoint)
            return self._check

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def __enter__(self) -> RemoteScorer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _echo(self, text: RemoteText, whole: Completion) -> tuple[range, None, None]:
        """The positions of the response."""

        def count_prompt() -> int:
            return self._endpoint.complete(text.prompt, echo=False).n_prompt

        where = self._endpoint.name
        positions = response_tokens(whole, text.prompt, text.response, text.end, where=where, count_prompt=count_prompt)
        return positions, None, None

    def _continuation(self, text: RemoteText, whole: Completion) -> tuple[range, float, float]:
        """The positions of the response, the difference of two sums, and how far the prompt's two sums are apart."""
        where = self._endpoint.name
        alone = self._endpoint.complete(text.prompt, echo=True)
        first, last = repeated(alone, text.prompt, where=where), repeated(whole, text.whole, where=where)
        by_id = alone.ids is not None and whole.ids is not None
        short, long = (alone.ids, whole.ids) if by_id else (alone.tokens, whole.tokens)
        if not same_beginning((short or ())[:first], (long or ())[:last]):
            raise TokenBoundaryError(
                f"{where}: the prompt alone has other tokens than at the beginning of prompt and response together, so "
                "the two sums have no common part to subtract. Move white space from the end of the prompt to the "
                "response, or score with a local engine."
            )
        spelled = "".join(whole.tokens[first:last])
        if all(map(is_readable, whole.tokens[first:last])) and spelled != text.response + text.end:
            raise ProviderError(f"{where} repeats the response as {spelled!r}: its tokens are not those of the text.")
        begin = next((i for i, value in enumerate(whole.logprobs) if value is not None), 0)
        sums = [
            math.fsum(logprobs_at(completion, range(begin, end), where=where))
            for completion, end in ((whole, last), (alone, first), (whole, first))
        ]
        return range(first, last), min(sums[0] - sums[1], 0.0), abs(sums[2] - sums[1])

    def _facts(self, whole: Completion, check: SelfCheck, drift: float | None) -> Mapping[str, Any]:
        facts = {
            "provider": self.policy.provider,
            "model": self.policy.model,
            "address": self._endpoint.address,
            "answered_by": whole.model,
            "self_check_tokens": check.n_tokens,
            "self_check_nats": check.largest,
        }
        return facts if drift is None else facts | {"prompt_drift_nats": drift}


def check_endpoint(endpoint: Endpoint) -> SelfCheck:
    """Let an endpoint generate greedily, repeat what it generated, and compare the log probabilities.

    Raises:
        ProviderError: they differ by more than `TOLERANCE`, with the reason where it is known; or the endpoint's tokens
            cannot be compared.
    """
    compared, largest = 0, 0.0
    seen: set[str] = set()
    for probe in _PROBES:
        generated = endpoint.complete(probe, echo=False, max_tokens=_PROBE_TOKENS)
        tokens = _readable_beginning(generated.tokens)
        if not tokens:
            continue
        try:
            echoed = endpoint.complete(probe + "".join(tokens), echo=True)
            positions = response_tokens(echoed, probe, "".join(tokens), where=endpoint.name)
        except TokenBoundaryError:
            continue
        for number, position in enumerate(positions):
            if number == len(tokens) or not _is_same(generated, number, echoed, position):
                break
            value, echo = generated.logprobs[number], echoed.logprobs[position]
            if value is None or echo is None:
                raise ProviderError(f"{endpoint.name} gives no log probability for the token {tokens[number]!r}.")
            if not abs(value - echo) <= TOLERANCE:
                raise ProviderError(_fault(endpoint, generated, echoed, number, position))
            compared, largest = compared + 1, max(largest, abs(value - echo))
            # A value of exactly 0 is what endpoints write that have none.
            seen |= {tokens[number]} if value else set()
        if compared >= _LEAST_COMPARED and len(seen) > 2:
            return SelfCheck(compared, largest)
    raise ProviderError(
        f"{endpoint.name} cannot be checked: of what it generates, too few tokens come back as the same tokens with "
        f"log probabilities of their own ({compared} compared, {len(seen)} different). It is not used for scoring."
    )


def _is_same(generated: Completion, number: int, echoed: Completion, position: int) -> bool:
    """Whether a generated token came back as the same token, as far as the endpoint shows it."""
    if generated.ids is not None and echoed.ids is not None:
        return generated.ids[number] == echoed.ids[position]
    return generated.tokens[number] == echoed.tokens[position]


def _fault(endpoint: Endpoint, generated: Completion, echoed: Completion, number: int, position: int) -> str:
    """Why an endpoint is refused: one token off, where the values say so."""
    value, echo = generated.logprobs[number], echoed.logprobs[position]
    what = (
        f"it generated {generated.tokens[number]!r} with a log probability of {value:.4f}, and gives the same token, "
        f"repeated, {echo:.4f}"
    )
    if _is_shifted(generated, echoed, number, position):
        return (
            f"{endpoint.name} is refused: the log probabilities that it repeats are shifted by one token ({what}). "
            "llama-cpp-python does that for models without a BOS token. Score with a local engine: provider llama_cpp."
        )
    return (
        f"{endpoint.name} is refused: the log probabilities that it repeats are not those of its own generation "
        f"({what}). Scores from it would be wrong, and nothing would show it."
    )


def _is_shifted(generated: Completion, echoed: Completion, number: int, position: int) -> bool:
    """Whether the echo's values are those of a neighbour: the numbers themselves, or the distributions."""
    value = generated.logprobs[number]
    neighbours = [echoed.logprobs[near] for near in (position - 1, position + 1) if 0 <= near < len(echoed.logprobs)]
    if any(near is not None and value is not None and abs(near - value) < TOLERANCE / 10 for near in neighbours):
        return True
    # The distribution after the token before, given as that of the token before: it has the value that was to be here.
    there = echoed.tops[position - 1].get(generated.tokens[number]) if echoed.tops and position else None
    return there is not None and value is not None and abs(there - value) <= TOLERANCE


def _readable_beginning(tokens: Sequence[str]) -> list[str]:
    """The first tokens, up to one that cannot be sent back as text."""
    found: list[str] = []
    for token in tokens:
        if not is_readable(token) or CONTROL.search("".join([*found, token])):
            break
        found.append(token)
    return found


def _check_decoding(policy: Policy) -> None:
    """Refuse samplers under which endpoints give no log probabilities.

    Raises:
        ConfigError: says which setting, and why.
    """
    decoding = policy.decoding
    if decoding.temperature != 1:
        raise ConfigError(
            f"Policy '{policy.name}' has temperature {decoding.temperature:g}, and the log probabilities of repeated "
            f"tokens that {policy.provider} gives are those of the model itself, temperature 1. Those at another one "
            "cannot be computed from them (that needs the logits of all tokens); score with a local engine."
        )
    if decoding.truncates:
        raise ConfigError(
            f"Policy '{policy.name}' truncates its distribution (top_k, top_p or min_p), and the log probabilities of "
            f"repeated tokens that {policy.provider} gives are those of the whole one. Score with a local engine."
        )
