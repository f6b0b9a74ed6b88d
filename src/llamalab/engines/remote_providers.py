"""Where remote models are, and how each provider speaks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from llamalab.engines.endpoint import Key, read_key
from llamalab.engines.ollama import OllamaShape
from llamalab.engines.openai import OpenAIShape
from llamalab.engines.remote_shape import Shape
from llamalab.errors import ProviderError


@dataclass(frozen=True, slots=True)
class RemoteProvider:
    """Where a provider is, and how it speaks.

    Attributes:
        base_url: address in front of every path.
        shape: of its API.
        key_variable: environment variable that holds the key.
        key_needed: whether a request without a key is worth sending.
        address_variable: environment variable that names another address; None: none.
        context_length: tokens; None: it is asked for.
    """

    base_url: str
    shape: Shape
    key_variable: str
    key_needed: bool = False
    address_variable: str | None = None
    context_length: int | None = None


PROVIDERS: Mapping[str, RemoteProvider] = {
    "ollama": RemoteProvider("http://localhost:11434", OllamaShape(), "OLLAMA_API_KEY", address_variable="OLLAMA_HOST"),
    "deepseek": RemoteProvider(
        "https://api.deepseek.com",
        OpenAIShape(means=("json", "none"), open=False),
        "DEEPSEEK_API_KEY",
        key_needed=True,
        context_length=131_072,
    ),
    "fireworks": RemoteProvider(
        "https://api.fireworks.ai/inference/v1", OpenAIShape(), "FIREWORKS_API_KEY", key_needed=True
    ),
    "openai": RemoteProvider(
        "https://api.openai.com/v1", OpenAIShape(), "OPENAI_API_KEY", address_variable="OPENAI_BASE_URL"
    ),
    "litellm": RemoteProvider("http://localhost:4000/v1", OpenAIShape(), "LITELLM_API_KEY"),
}
"""Remote providers by name; "openai" is any server of that shape."""

_OPENAI = "https://api.openai.com"
"""Where addresses of OpenAI itself begin: it wants a key, takes no fields beyond its own, and strict schemas alone."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the models of one user are.

    Attributes:
        address: in front of every path.
        key: empty where none is needed.
        shape: of the API.
        context_length: tokens; None: it is asked for.
    """

    address: str
    key: Key
    shape: Shape
    context_length: int | None


def place_of(provider: str, *, base_url: str | None, api_key_env: str | None) -> Place:
    """Where a provider's models are: as somebody says, as the environment does, or where they always are.

    Raises:
        ProviderError: no such provider, or no key where one is needed.
    """
    known = PROVIDERS.get(provider)
    if known is None:
        raise ProviderError(f"There is no remote provider {provider!r}; known are {', '.join(PROVIDERS)}.")
    address = base_url or _address_from_environment(provider, known.address_variable) or known.base_url
    official = address.startswith(_OPENAI)
    needed = known.key_needed or api_key_env is not None or official
    key = read_key(provider, api_key_env or known.key_variable, needed=needed)
    shape = OpenAIShape(means=("strict", "json", "none"), open=False) if official else known.shape
    return Place(address, key, shape, known.context_length)


def _address_from_environment(provider: str, variable: str | None) -> str | None:
    """An address that the user's environment names."""
    address = os.environ.get(variable, "").strip() if variable else ""
    if not address or provider != "ollama" or "://" in address:
        return address or None
    # OLLAMA_HOST tells the server where to listen, and clients where it does: 0.0.0.0, :8080, some-host
    host, _, port = address.rpartition(":") if ":" in address else (address, "", "")
    return f"http://{'localhost' if host in ('', '0.0.0.0') else host}:{port or 11434}"
