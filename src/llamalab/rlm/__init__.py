"""Recursive language models: questions over texts that a model never sees whole.

    from llamalab import rlm

    answer = rlm.ask("What is the access code of the Blue Harbor vault?", ["big.txt"])
    print(answer.text, answer.evidence[0].line)

`ask` gives the answer, `events` what happens on the way to it. Importing this loads no model and no runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamalab.errors import EngineError
from llamalab.rlm.answer import Answer, Evidence, Route
from llamalab.rlm.event import Answered, Done, Event, Routed, Started, SubCall, Turn

if TYPE_CHECKING:
    from llamalab.rlm.config import RlmConfig
    from llamalab.rlm.providers import Pool
    from llamalab.rlm.sources import Source
    from llamalab.rlm.text import Context

__all__ = [
    "Answer",
    "Answered",
    "Done",
    "Event",
    "Evidence",
    "Route",
    "Routed",
    "Started",
    "SubCall",
    "Turn",
    "ask",
    "events",
]


def ask(
    question: str,
    sources: Sequence[Source] | Source | Context,
    *,
    config: RlmConfig | Path | str | None = None,
    root: str | None = None,
    sub: str | None = None,
    schema: Mapping[str, Any] | None = None,
    journal: Path | str | None = None,
    resume: Path | str | None = None,
    cache: Path | str | None = None,
    pool: Pool | None = None,
) -> Answer:
    """Answer a question over documents. Arguments and errors as of `events`."""
    for event in events(
        question,
        sources,
        config=config,
        root=root,
        sub=sub,
        schema=schema,
        journal=journal,
        resume=resume,
        cache=cache,
        pool=pool,
    ):
        if isinstance(event, Answered) and not event.path:
            return event.answer
    raise EngineError("A run ended without an answer.")


def events(
    question: str,
    sources: Sequence[Source] | Source | Context,
    *,
    config: RlmConfig | Path | str | None = None,
    root: str | None = None,
    sub: str | None = None,
    schema: Mapping[str, Any] | None = None,
    journal: Path | str | None = None,
    resume: Path | str | None = None,
    cache: Path | str | None = None,
    pool: Pool | None = None,
) -> Iterator[Event]:
    """Answer a question over documents, event by event. A run whose iterator is closed early ends its calls.

    Args:
        question: in the user's words.
        sources: files, folders, patterns, "-" for standard input, or documents; or a whole context.
        config: settings, or a file of them; None: pico as root and sub.
        root: model spec that steers, instead of the configured ones.
        sub: model spec for sub-questions, instead of the configured ones.
        schema: JSON schema of the answer; `Answer.value` is then of it.
        journal: file to write the run to, as it goes; it must not exist. None: nothing is written.
        resume: journal of a run of the same question that was broken off: it goes on there, in the same file.
        cache: folder in which replies are kept by content: the same call of the same model is not made twice.
        pool: the models, where they are loaded already; it stays open. `root` and `sub` cannot be given with it.

    Raises:
        InputError: documents, question or journal that cannot be used.
        ConfigError: a mistake in the configuration.
        SchemaError: a schema that cannot be compiled.
        ProviderError: no provider answers; the run can be resumed from its journal.
    """
    from llamalab.rlm.asking import Request, answer_events

    return answer_events(Request(question, sources, config, root, sub, schema, journal, resume, cache, pool))
