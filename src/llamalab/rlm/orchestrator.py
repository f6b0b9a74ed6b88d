"""The loop: the root gives commands, they are done, and it is shown what they gave, until it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llamalab.rlm.config import RlmConfig
from llamalab.rlm.event import Event
from llamalab.rlm.providers import Pool
from llamalab.rlm.text import Context


def run(
    question: str,
    context: Context,
    pool: Pool,
    config: RlmConfig,
    *,
    answer_schema: Mapping[str, Any] | None = None,
) -> Iterator[Event]:
    """Answer a question over a context. Events as in `llamalab.rlm.events`."""
    raise NotImplementedError
