"""From a question and the names of documents to a run: models, journal, settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llamalab.errors import ConfigError, InputError
from llamalab.rlm.budget import Budget, Limits
from llamalab.rlm.cache import with_cache
from llamalab.rlm.config import RlmConfig, default_config, load_config, with_models
from llamalab.rlm.event import Event
from llamalab.rlm.journal import Data, Differs, Tape, not_ours, resume_tape, start_tape
from llamalab.rlm.orchestrator import run
from llamalab.rlm.protocol import Protocol
from llamalab.rlm.providers import Pool, open_pool
from llamalab.rlm.sources import Opened, Source, open_sources
from llamalab.rlm.text import Context
from llamalab.rlm.tree import Settings, Tree, last_pool_state, spent_before, spent_data
from llamalab.rlm.typed import check_schema

MAX_QUESTION = 10_000
"""Longest question, characters."""
DEMONSTRATION = (
    "No model was named, so pico answers: a demonstration model of 3 million parameters, which knows single facts, "
    "counts of lines and little else. Name others in a configuration."
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks for; see `llamalab.rlm.events`."""

    question: str
    sources: Sequence[Source] | Source | Context
    config: RlmConfig | Path | str | None = None
    root: str | None = None
    sub: str | None = None
    schema: Mapping[str, Any] | None = None
    journal: Path | str | None = None
    resume: Path | str | None = None
    cache: Path | str | None = None
    pool: Pool | None = None


def answer_events(request: Request) -> Iterator[Event]:
    """The events of the run that is asked for. Errors as of `llamalab.rlm.events`."""
    question = _checked(request)
    config = _config(request)
    with ExitStack() as stack:
        opened = _opened(request.sources, stack)
        if request.schema is not None:
            check_schema(request.schema)
        tape = _tape(request, question, opened.context, config)
        stack.callback(tape.close)
        pool = _pool(request, config, stack)
        demonstration = (DEMONSTRATION,) if config.unnamed and request.pool is None else ()
        said = (*config.said, *demonstration, *opened.said)
        with _of_journal(tape, resumed=request.resume is not None):
            settings = Settings.of_data(tape.header["settings"])
            budget = Budget(settings.limits, spent=spent_before(tape))
            if (state := last_pool_state(tape)) is not None:
                pool.restore(state)
            before = begin(tape, lambda: _before(pool, budget, said))
            tree = Tree(tape, replace(settings, tolerant=before.tolerant), budget, pool)
            stack.callback(tree.cancel.set)
            yield from run(tree, question, opened.context, said=before.said)


@dataclass(frozen=True, slots=True)
class Begun:
    """What is found out before a run's first turn.

    Attributes:
        tolerant: a root's provider cannot hold a schema.
        said: what the user should know before, in sentences.
    """

    tolerant: bool
    said: tuple[str, ...]


def begin(tape: Tape, find_out: Callable[[], Data]) -> Begun:
    """What is known of models and documents before the first turn: from the journal, or found out now."""
    data = tape.effect("before", find_out)
    return Begun(data["tolerant"], tuple(data["said"]))


def settings_of(config: RlmConfig, protocol: Protocol, schema: Mapping[str, Any] | None) -> Settings:
    """What of a configuration a run goes by."""
    limits = Limits(
        config.max_iterations,
        config.max_sub_calls,
        config.max_depth,
        config.max_tokens,
        config.max_seconds,
        config.max_cost,
    )
    return Settings(
        protocol=protocol,
        output_limit=config.output_limit,
        turn_tokens=config.turn_tokens,
        sub_tokens=config.sub_tokens,
        bypass_enabled=config.bypass_enabled,
        bypass_threshold=config.bypass_threshold,
        answer_schema=None if schema is None else dict(schema),
        limits=limits,
        grounded=True,
    )


def protocol_of(config: RlmConfig) -> Protocol:
    """What roots speak: the compact protocol where pico is one of them."""
    if config.protocol != "auto":
        return config.protocol
    roots = [provider for provider in config.providers if provider.role in ("root", "both")]
    return "compact" if any(Path(provider.model).stem == "pico" for provider in roots) else "full"


def documents_of(context: Context) -> list[Data]:
    """What a journal tells of documents."""
    return [
        {"name": each.name, "sha256": each.sha256, "characters": each.n_chars, "lines": each.n_lines}
        for each in context.documents
    ]


def versions() -> Data:
    """Of what a result depends on."""
    found = {}
    for package in ("llamalab", "google-re2", "llguidance"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _checked(request: Request) -> str:
    question = request.question.strip()
    if not question:
        raise InputError("The question is empty.")
    if len(question) > MAX_QUESTION:
        raise InputError(f"The question has {len(question):,} characters; it may have {MAX_QUESTION:,}.")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise InputError("The question holds half a character (a lone surrogate).") from None
    if request.pool is not None and (request.root or request.sub):
        raise ConfigError("root and sub name models to load; they cannot be given with a pool of loaded ones.")
    if request.journal is not None and request.resume is not None:
        raise ConfigError("journal begins a new file, resume goes on in one: give one of them.")
    return question


def _config(request: Request) -> RlmConfig:
    config = request.config
    if isinstance(config, Path | str):
        config = load_config(Path(config))
    elif config is None:
        config = default_config()
    return with_models(config, root=request.root, sub=request.sub) if request.root or request.sub else config


def _opened(sources: Sequence[Source] | Source | Context, stack: ExitStack) -> Opened:
    if isinstance(sources, Context):
        return Opened(sources, ())
    opened = open_sources(sources)
    stack.callback(opened.close)
    return opened


def _pool(request: Request, config: RlmConfig, stack: ExitStack) -> Pool:
    pool = request.pool or stack.enter_context(open_pool(config))
    if request.cache is None:
        return pool
    folder = Path(request.cache).expanduser()
    return Pool([with_cache(provider, folder) for provider in pool.providers])


def _tape(request: Request, question: str, context: Context, config: RlmConfig) -> Tape:
    if request.resume is not None:
        tape = resume_tape(Path(request.resume))
        try:
            with _of_journal(tape, resumed=True):
                _check_same(tape, question, context, request)
        except BaseException:
            tape.close()
            raise
        return tape
    header = {
        "question": question,
        "documents": documents_of(context),
        "context": context.sha256,
        "folder": os.getcwd(),  # noqa: PTH109 - as it is, links and all
        "settings": settings_of(config, protocol_of(config), request.schema).as_data(),
        "providers": [
            {"name": each.name, "model": each.spec, "role": each.role, "weight": each.weight}
            for each in config.providers
        ],
        "versions": versions(),
    }
    return start_tape(None if request.journal is None else Path(request.journal).expanduser(), header)


@contextmanager
def _of_journal(tape: Tape, *, resumed: bool) -> Iterator[None]:
    """A block in which what a journal tells is done again, and goes on.

    Raises:
        InputError: it is no journal of such a run.
    """
    try:
        yield
    except Differs as error:
        raise InputError(
            f"{tape.path} cannot be resumed: what is done again comes out otherwise. {error} Was it written by "
            "another version of this program?"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if not resumed or tape.happened:  # then it is not the journal that is wrong
            raise
        raise not_ours(tape.path, error) from None


def _check_same(tape: Tape, question: str, context: Context, request: Request) -> None:
    """See that a run goes on with what it began with.

    Raises:
        InputError: it does not.
    """
    if tape.header["question"] != question:
        raise InputError(f"{tape.path} is a run of another question: {tape.header['question'][:200]!r}.")
    if tape.header["context"] != context.sha256:
        raise InputError(f"{tape.path} is a run over other documents, or they have changed since.")
    if request.schema is not None and tape.header["settings"]["answer_schema"] != dict(request.schema):
        raise InputError(f"{tape.path} is a run with another schema of the answer.")


def _before(pool: Pool, budget: Budget, said: Sequence[str]) -> Data:
    modes = pool.probe(deadline=budget.deadline)
    exact = {mode.provider: mode.mode == "exact" for mode in modes}
    for mode in modes:
        budget.charge("root", mode.usage, counted=False)
    return {
        "tolerant": not all(exact.get(provider.name, False) for provider in pool.of("root")),
        "said": [*said, *(mode.said for mode in modes if mode.mode != "exact")],
        "spent": spent_data(budget),
    }
