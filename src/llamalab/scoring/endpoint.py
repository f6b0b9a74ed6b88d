"""One model behind a remote endpoint: HTTP, keys, retries with growing pauses, and a deadline for all of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamalab.errors import ConfigError, ProviderError
from llamalab.scoring.completion import Completion, parse_completion

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP status codes after which the same request may yet succeed."""

_LONGEST_PAUSE_S = 30.0
_SHOWN = 300  # characters of an endpoint's own message


@dataclass(frozen=True, slots=True)
class Provider:
    """Where a provider is, unless a policy says otherwise.

    Attributes:
        base_url: address in front of `/completions`; None: it has to be given.
        key_variable: environment variable that holds the key.
        key_needed: whether a request without a key is worth sending.
    """

    base_url: str | None
    key_variable: str
    key_needed: bool = True


PROVIDERS: Mapping[str, Provider] = {
    "fireworks": Provider("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "deepseek": Provider("https://api.deepseek.com/beta", "DEEPSEEK_API_KEY"),
    "openai": Provider(None, "OPENAI_API_KEY", key_needed=False),
}
"""Remote providers by name; "openai" is any endpoint of that shape."""


class Endpoint:
    """One model behind one address. Safe from several threads. A context manager: leaving it closes its connections.

    Args:
        provider: one of `PROVIDERS`.
        model: as the endpoint names it.
        base_url: address in front of `/completions`; None: the provider's, or OPENAI_BASE_URL for "openai".
        api_key_env: environment variable that holds the key; None: the provider's.
        deadline: seconds for one completion, retries included.
        retries: how often a request is sent again after a failure that may pass.
        backoff: seconds before the first retry; doubled for each further one, and drawn between half and all of that.

    Raises:
        ProviderError: no such provider; no address; no key where one is needed.
        ConfigError: a number that means nothing, or an address that is none.
    """

    def __init__(
        self,
        provider: str,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str | None = None,
        deadline: float = 120.0,
        retries: int = 4,
        backoff: float = 1.0,
    ) -> None:
        import httpx2

        known = PROVIDERS.get(provider)
        if known is None:
            raise ProviderError(f"There is no remote provider {provider!r}; known are {', '.join(PROVIDERS)}.")
        address = base_url or known.base_url or os.environ.get("OPENAI_BASE_URL")
        if not address:
            raise ProviderError(
                "A policy of the provider 'openai' needs an address: give base_url (for a server on this machine e.g. "
                "http://localhost:8000/v1), or set OPENAI_BASE_URL."
            )
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"base_url must begin with http:// or https://, not {address!r}.")
        _check_numbers(deadline=deadline, retries=retries, backoff=backoff)
        variable = api_key_env or known.key_variable
        key = os.environ.get(variable, "").strip()
        if not key and (known.key_needed or api_key_env):
            raise ProviderError(f"{provider} needs a key: set the environment variable {variable}.")
        self.provider, self.model, self.address = provider, model, address.rstrip("/")
        self._key = key
        self._variable, self._deadline, self._retries, self._backoff = variable, deadline, retries, backoff
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx2.Client(headers=headers, follow_redirects=False)
        except (UnicodeEncodeError, ValueError) as error:
            raise ProviderError(f"The key in {variable} has characters that no key has.") from error

    def complete(self, prompt: str, *, echo: bool, max_tokens: int = 1) -> Completion:
        """Continue `prompt` greedily; with `echo`, repeat it first, all with log probabilities.

        `max_tokens` is never 0: llama-cpp-python takes that for "no limit".

        Raises:
            ProviderError: the endpoint is down or slow, refuses the key or the request, or answers something else.
        """
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "top_p": 1,
            "echo": echo,
            "logprobs": 1,
            "stream": False,
        }
        return parse_completion(self._post("/completions", body), where=self.name)

    @property
    def name(self) -> str:
        """Model and address, for messages."""
        return f"{self.model} at {self.address}"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of the answer, after as many tries as retries and deadline allow."""
        import httpx2

        end = time.monotonic() + self._deadline
        pause, trouble = self._backoff, ""
        for sent in range(1, self._retries + 2):
            asked: float | None = None
            try:
                answer = self._send(path, body, end)
                if answer.status == 200:
                    return self._content(answer)
                if answer.status not in RETRIED:
                    raise ProviderError(self._refusal(answer))
                trouble = f"it answers {answer.status} ({self._said(answer)})"
                asked = _retry_after(answer)
            except httpx2.ConnectError as error:
                trouble = f"it cannot be reached ({error})"
            except httpx2.TimeoutException:
                raise ProviderError(self._gave_up(f"no answer within {self._deadline:g} seconds", sent)) from None
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                trouble = f"the connection broke ({error or type(error).__name__})"
            except httpx2.InvalidURL as error:
                raise ConfigError(f"base_url {self.address!r} is no address ({error}).") from error
            # Many clients that failed together shall not come back together.
            wait = asked if asked is not None else min(pause, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            if sent > self._retries or time.monotonic() + wait >= end:
                break
            time.sleep(wait)
            pause *= 2
        raise ProviderError(self._gave_up(trouble, sent))

    def _send(self, path: str, body: Mapping[str, Any], end: float) -> _Answer:
        """One try. Read in pieces: the library's timeout is between two of them, and ours is for all."""
        import httpx2

        left = max(end - time.monotonic(), 0.001)
        pieces: list[bytes] = []
        with self._client.stream("POST", f"{self.address}{path}", json=body, timeout=left) as response:
            for piece in response.iter_bytes():
                pieces.append(piece)
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout("The answer did not end in time.")
            return _Answer(response.status_code, response.headers, b"".join(pieces))

    def _content(self, answer: _Answer) -> Any:
        try:
            return json.loads(answer.content)
        except ValueError as error:
            raise ProviderError(f"{self.name} does not answer with JSON. Does base_url end in /v1?") from error

    def _gave_up(self, trouble: str, sent: int) -> str:
        tries = f", tried {sent} times" if sent > 1 else ""
        return f"{self.name}: {trouble}{tries}. See that it runs and base_url is right, or raise deadline or retries."

    def _refusal(self, answer: _Answer) -> str:
        status, said = answer.status, self._said(answer)
        if status in (401, 403):
            return f"{self.name} refuses the key in {self._variable} (status {status}: {said})."
        if status == 404:
            return f"{self.name}: no such model or address (status 404: {said}). base_url usually ends in /v1."
        if 300 <= status < 400:
            return f"{self.name} sends on to {answer.headers.get('location', 'nowhere')}: give that as base_url."
        return f"{self.name} refuses the request (status {status}: {said})."

    def _said(self, answer: _Answer) -> str:
        """The endpoint's own words, short, on one line, and without the key."""
        text = answer.content.decode("utf-8", "replace")
        with contextlib.suppress(ValueError, AttributeError):
            content = json.loads(text)
            detail = content.get("error", content.get("detail", content.get("message", content)))
            text = str(detail.get("message", detail) if isinstance(detail, Mapping) else detail)
        if self._key:
            text = text.replace(self._key, "(the key)")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


@dataclass(frozen=True, slots=True)
class _Answer:
    """A response to HTTP, read whole."""

    status: int
    headers: Mapping[str, str]
    content: bytes


def _check_numbers(*, deadline: float, retries: int, backoff: float) -> None:
    """Refuse options that mean nothing."""
    for name, value, least in (("deadline", deadline, 0.0), ("backoff", backoff, 0.0)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not least < value < 1e6:
            raise ConfigError(f"{name} must be a number of seconds above 0, not {value!r}.")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ConfigError(f"retries must be a whole number of at least 0, not {retries!r}.")


def _retry_after(answer: _Answer) -> float | None:
    """Seconds that the endpoint asks to wait; None where it does not say."""
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
