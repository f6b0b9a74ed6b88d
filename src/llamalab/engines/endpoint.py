"""What a user says of an endpoint: its address, its key, and how long to wait for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from llamalab.errors import ConfigError, ProviderError


@dataclass(frozen=True, slots=True)
class Key:
    """A secret, and where it came from. Shown without the secret.

    Attributes:
        variable: environment variable that holds it.
        value: the secret; empty: there is none.
    """

    variable: str
    value: str

    def __repr__(self) -> str:
        return f"Key({self.variable!r}, {'set' if self.value else 'not set'})"


def read_key(provider: str, variable: str, *, needed: bool) -> Key:
    """The key in an environment variable.

    Raises:
        ProviderError: it is needed and not there.
    """
    value = os.environ.get(variable, "").strip()
    if not value and needed:
        raise ProviderError(f"{provider} needs a key: set the environment variable {variable}.")
    return Key(variable, value)


def check_address(address: str) -> str:
    """A base_url without the slash at its end.

    Raises:
        ConfigError: it is no address, or has a password in it.
    """
    if not isinstance(address, str) or not address.startswith(("http://", "https://")):
        raise ConfigError(f"base_url must begin with http:// or https://, not {address!r}.")
    if "@" in urlsplit(address).netloc:
        raise ConfigError("base_url has a name or password in it, which would end up in logs. Put it into a proxy.")
    return address.rstrip("/")


def check_numbers(retries: object, seconds: Mapping[str, object]) -> None:
    """Refuse options that mean nothing: a number of retries, and numbers of seconds by name.

    Raises:
        ConfigError: one of them.
    """
    for name, value in seconds.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < 1e6:
            raise ConfigError(f"{name} must be a number of seconds above 0, not {value!r}.")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ConfigError(f"retries must be a whole number of at least 0, not {retries!r}.")
