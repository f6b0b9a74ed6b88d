"""Judges: a score for each response, or an error that says why there is none, and never a zero in its place."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias

from llamalab.arena.settings import JudgeSettings
from llamalab.engine import Message
from llamalab.errors import ConfigError, LlamalabError, ProviderUnavailable
from llamalab.scoring.rows import error_type

Prompt: TypeAlias = str | Sequence[Message]


@dataclass(frozen=True, slots=True)
class ToJudge:
    """A response, and all that a judge may look at.

    Attributes:
        id: of the response.
        prompt: what it answers: a user's message, or a conversation.
        response: its text.
        reference: the right answer, where there is one.
        row: the whole row of its prompt and of itself.
        finished: the response ended by itself.
    """

    id: str
    prompt: Prompt
    response: str
    reference: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict, hash=False)
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """A score inside the judge's range, and why."""

    score: float
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class JudgeError:
    """Why a response has no score.

    Attributes:
        error: the kind of it: "out_of_range", "no_reference", "no_answer", "function", or that of an error of the
            model ("context_overflow", ...).
        message: what was wrong, and what to do.
    """

    error: str
    message: str


Judgement: TypeAlias = Judged | JudgeError


class Judge(Protocol):
    """What scores responses."""

    @property
    def range(self) -> tuple[float, float]:
        """Least and largest score."""
        ...

    def judge(self, items: Sequence[ToJudge]) -> Iterator[tuple[str, Judgement]]:
        """Each item's id with its judgement, in order, as soon as it is there."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def open_judge(settings: JudgeSettings) -> Judge:
    """The judge that a configuration asks for.

    Raises:
        ConfigError: a function that cannot be found, or a model that cannot judge.
        ModelFileError: a model that cannot be loaded.
    """
    if settings.kind == "llm":
        from llamalab.arena.llm_judge import open_llm_judge

        return open_llm_judge(settings)
    if settings.kind == "logprob":
        return _LogprobJudge(settings)
    if settings.kind == "exact_match":
        return _FunctionJudge(settings.range, _exact_match(settings))
    return _FunctionJudge(settings.range, _called(settings))


def fingerprint(settings: JudgeSettings) -> dict[str, str]:
    """What decides a judge's scores besides its settings: the SHA-256 of a function's file.

    Raises:
        ConfigError: the function cannot be found.
    """
    if settings.kind != "python":
        return {}
    source = getattr(_module(settings), "__file__", None)
    return {} if source is None else {"source_sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest()}


def checked(score: float, reason: str | None, range: tuple[float, float]) -> Judgement:
    """A judge's answer, if it is a number of its range."""
    low, high = range
    if math.isfinite(score) and low <= score <= high:
        return Judged(float(score), reason)
    return JudgeError(
        "out_of_range",
        f"The score {score:g} is not between {low:g} and {high:g}. Correct the judge, or the range that is declared.",
    )


class _FunctionJudge:
    """A judge that looks at one response at a time."""

    def __init__(self, range: tuple[float, float], function: Callable[[ToJudge], Judgement]) -> None:
        self.range = range
        self._function = function

    def judge(self, items: Sequence[ToJudge]) -> Iterator[tuple[str, Judgement]]:
        """See `Judge.judge`."""
        for item in items:
            yield item.id, self._function(item)

    def close(self) -> None:
        """Nothing is held."""


class _LogprobJudge:
    """The mean log probability, in nats per token, that a model gives to a response."""

    def __init__(self, settings: JudgeSettings) -> None:
        from llamalab.scoring.session import Session

        if settings.model is None:
            raise ConfigError("A judge of kind 'logprob' needs a model. Name one under judge.model.")
        self.range = settings.range
        self._policy = settings.model
        self._session = Session([settings.model])

    def judge(self, items: Sequence[ToJudge]) -> Iterator[tuple[str, Judgement]]:
        """See `Judge.judge`.

        Raises:
            ModelFileError, ConfigError, OutOfMemory: the model cannot be used at all.
            ProviderUnavailable: where it runs, nobody answers.
        """
        from llamalab.scoring.run import FATAL
        from llamalab.scoring.session import Item

        asked = [Item(self._policy, item.prompt, item.response, item.finished, tag=item.id) for item in items]
        for item, outcome in self._session.score(asked):
            if isinstance(outcome, (*FATAL, ProviderUnavailable)):
                raise outcome
            if isinstance(outcome, LlamalabError):
                yield item.tag, JudgeError(error_type(outcome), str(outcome))
            elif outcome.value is None:
                yield item.tag, JudgeError("out_of_range", "The judge's model never gives this response: no number.")
            else:
                yield item.tag, checked(outcome.value / outcome.n_tokens, None, self.range)

    def close(self) -> None:
        """Free the model."""
        self._session.close()


def _exact_match(settings: JudgeSettings) -> Callable[[ToJudge], Judgement]:
    low, high = settings.range

    def judge(item: ToJudge) -> Judgement:
        reference = item.row.get(settings.reference, item.reference)
        if not isinstance(reference, str):
            return JudgeError(
                "no_reference",
                f"The prompt has no text in its field '{settings.reference}' to compare the response with.",
            )
        return Judged(high if item.response.strip() == reference.strip() else low)

    return judge


def _called(settings: JudgeSettings) -> Callable[[ToJudge], Judgement]:
    """A user's function as a judge: whatever it raises is the row's error, and ends no run."""
    module, name = _module(settings), (settings.function or "").rpartition(".")[2]
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"The judge {settings.function}: there is no function {name!r} in {module.__file__}.")

    def judge(item: ToJudge) -> Judgement:
        try:
            found = function(item.prompt, item.response, item.row)
            score, reason = found if isinstance(found, tuple) else (found, None)
            score = float(score)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (it is not our function)
            return JudgeError("function", f"{settings.function}: {type(error).__name__}: {error}")
        return checked(score, None if reason is None else str(reason), settings.range)

    return judge


def _module(settings: JudgeSettings) -> ModuleType:
    """The module of a function: a file in the configuration's folder, else one that Python finds.

    Raises:
        ConfigError: there is none, or it cannot be imported.
    """
    name = (settings.function or "").rpartition(".")[0]
    file = settings.folder.joinpath(*name.split(".")).with_suffix(".py")
    try:
        if not file.is_file():
            return importlib.import_module(name)
        # Under a name of its own: two configurations may both have a file judge.py.
        own = f"llamalab_judge_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
        if own in sys.modules:
            return sys.modules[own]
        spec = importlib.util.spec_from_file_location(own, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is no module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[own] = module
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The judge {settings.function}: {error}. Its module is looked for in {settings.folder.absolute()} first, "
            "then where Python finds modules."
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  (a user's module can raise anything)
        kind = type(error).__name__
        raise ConfigError(f"The judge {settings.function} cannot be imported: {kind}: {error}") from None
    return module
