"""What an endpoint's failure means: whether the same request may yet succeed, and what to say of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping

from llamalab.engines.endpoint import Key
from llamalab.errors import ProviderError

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP status codes after which the same request may yet succeed."""

_SHOWN = 300  # characters of an endpoint's own message


class Passing(Exception):
    """One try failed in a way that may pass.

    Attributes:
        status: HTTP status code; None: there was no answer.
        retry_after: seconds that the endpoint asks to wait; None: it does not say.
        sent: the request may have reached the endpoint.
        final: trying again would not help: the time is up.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        sent: bool = True,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after, self.sent, self.final = status, retry_after, sent, final


def refusal(status: int, headers: Mapping[str, str], content: bytes, *, name: str, key: Key) -> Passing | ProviderError:
    """What an answer means that is none.

    Args:
        status: its HTTP status code, not 200.
        headers: of it.
        content: of it.
        name: model and address, for the message.
        key: that was sent; it is never shown.
    """
    said = _said(content, key)
    if status in RETRIED:
        return Passing(f"it answers {status} ({said})", status=status, retry_after=_retry_after(headers))
    if status in (401, 403):
        text = f"{name} refuses the key in {key.variable} (status {status}: {said})."
    elif status == 404:
        text = f"{name}: no such model or address (status 404: {said}). base_url often ends in /v1."
    elif 300 <= status < 400:
        text = f"{name} sends on to {headers.get('location', 'nowhere')}: give that as base_url."
    else:
        text = f"{name} refuses the request (status {status}: {said})."
    return ProviderError(text, status=status)


def _said(content: bytes, key: Key) -> str:
    """The endpoint's own words, short, on one line, and without the key."""
    text = content.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        found = json.loads(text)
        detail = found.get("error", found.get("detail", found.get("message", found)))
        text = str(detail.get("message", detail) if isinstance(detail, Mapping) else detail)
    if key.value:
        text = text.replace(key.value, "(the key)")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait; None where it does not say."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
