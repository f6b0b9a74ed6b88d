"""What a chat model that runs elsewhere can be told, and what of it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from llamalab.engine import SchemaSupport
from llamalab.engines.endpoint import check_address, check_numbers
from llamalab.errors import ConfigError

OPTIONS = ("base_url", "api_key_env", "n_ctx", "timeout", "retries", "backoff", "schema_support", "extra")
"""What `llamalab.engines.remote.RemoteChat` can be told besides provider and model."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a remote chat model that cannot be.

    Raises:
        ConfigError: a value of the wrong kind, or out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if (address := given.get("base_url")) is not None:
        check_address(address)
    check_numbers(given.get("retries", 0), {name: given.get(name, 1.0) for name in ("timeout", "backoff")})
    n_ctx = given.get("n_ctx", 1)
    if isinstance(n_ctx, bool) or not isinstance(n_ctx, int) or not 1 <= n_ctx < 2**31:
        raise ConfigError(f"n_ctx must be a positive number of tokens, not {n_ctx!r}.")
    if given.get("schema_support", "exact") not in get_args(SchemaSupport):
        raise ConfigError(f"schema_support must be exact, json or none, not {given['schema_support']!r}.")
    if not isinstance(given.get("extra", {}), Mapping):
        raise ConfigError(f"extra must be a table of fields for the request, not {given['extra']!r}.")
