"""One model behind a remote endpoint that repeats texts with log probabilities."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from llamalab.engines.connection import Connection
from llamalab.engines.endpoint import read_key
from llamalab.errors import ProviderError
from llamalab.scoring.completion import Completion, parse_completion


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
        known = PROVIDERS.get(provider)
        if known is None:
            raise ProviderError(
                f"{provider} gives no log probabilities of a text, so nothing can be scored there. Providers that may "
                f"are {', '.join(PROVIDERS)}; a model file is scored by the engines here."
            )
        address = base_url or known.base_url or os.environ.get("OPENAI_BASE_URL")
        if not address:
            raise ProviderError(
                "A policy of the provider 'openai' needs an address: give base_url (for a server on this machine e.g. "
                "http://localhost:8000/v1), or set OPENAI_BASE_URL."
            )
        key = read_key(provider, api_key_env or known.key_variable, needed=known.key_needed or api_key_env is not None)
        self.provider, self.model = provider, model
        self._connection = Connection(
            address, model=model, key=key, deadline=deadline, retries=retries, backoff=backoff
        )
        self.address = self._connection.address

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
        return parse_completion(self._connection.post("/completions", body), where=self.name)

    @property
    def name(self) -> str:
        """Model and address, for messages."""
        return self._connection.name

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
