"""The sections of a configuration, each from the file's words to its record."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from llamalab.arena.config_file import (
    CandidatesSection,
    EstimatorsSection,
    File,
    JudgeSection,
    OracleSection,
    PromptsSection,
    ResponsesSection,
)
from llamalab.arena.config_reading import Reading, check_penalties
from llamalab.arena.settings import (
    CHATBOT_ARENA,
    CandidateSettings,
    EstimatorSettings,
    JudgeKind,
    JudgeSettings,
    OracleSettings,
    PromptSettings,
    ResponseSettings,
)
from llamalab.engine import Schema
from llamalab.engines.options import nearest
from llamalab.scored import Decoding
from llamalab.scoring.policy import Policy

DEFAULT_RANGE = (0.0, 10.0)
"""Of the scores of a judge with the general rubric."""

_FARTHEST, _NARROWEST = 1e12, 1e-9  # of ranges: squares of outcomes have to be numbers, and steps to be there
_KINDS = get_args(JudgeKind)
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def prompts(reading: Reading, given: PromptsSection) -> PromptSettings:
    """Where prompts come from."""
    if given.file is not None and given.dataset is not None:
        reading.refuse("prompts.dataset", "there is a file as well; give 'file' or 'dataset'.")
    if given.num is not None and given.num < 2:
        reading.refuse(
            "prompts.num", f"with {given.num} there is no spread to estimate an error from: give at least 2."
        )
    source = given.dataset or CHATBOT_ARENA
    if given.file is not None:
        source = str(reading.beside(given.file))
    elif given.dataset is None:
        reading.said.append(f"prompts: none are named, so they come from {CHATBOT_ARENA} on the Hugging Face hub.")
    elif reading.beside(given.dataset).exists():
        source = str(reading.beside(given.dataset))
    return PromptSettings(source, given.split, given.field, given.num, given.seed, given.stratify)


def responses(reading: Reading, given: ResponsesSection, policies: Mapping[str, Policy]) -> ResponseSettings:
    """Which responses there are."""
    if given.per_prompt < 1:
        reading.refuse("responses.per_prompt", f"it must be at least 1, not {given.per_prompt}.")
    if given.draws < 0:
        reading.refuse("responses.draws", f"it must be at least 0, not {given.draws}.")
    if given.file is None:
        if given.generated_by is not None:
            reading.refuse("responses.generated_by", "it says who wrote the responses of 'file', and there is no file.")
        return ResponseSettings(given.per_prompt, given.draws)
    place = "responses.generated_by"
    if given.generated_by is None:
        reading.refuse(
            "responses.file",
            "nothing says who wrote these responses. Add generated_by: the name of a policy, or its settings.",
        )
    if isinstance(given.generated_by, str):
        if given.generated_by not in policies:
            reading.refuse(
                place, f"there is no policy {given.generated_by!r}.{nearest(given.generated_by, list(policies))}"
            )
        writer = policies[given.generated_by]
    else:
        settings = dict(given.generated_by)
        check_penalties(reading, settings, place)
        writer = reading.policy("generated_by", settings, place)
    return ResponseSettings(given.per_prompt, given.draws, reading.beside(given.file), writer)


def judge(reading: Reading, given: JudgeSection | None, place: str, base: Policy) -> JudgeSettings:
    """A judge; where none is given, the base's model with the general rubric."""
    if given is None:
        if base.remote:
            reading.refuse(place, "the base's model runs elsewhere and cannot judge. Name a judge: kind, model, range.")
        reading.said.append(
            f"{place}: none is named, so the base's own model ({base.model}) scores each response from 0 to 10."
        )
        given = JudgeSection(kind="llm")
    kind, _, function = given.kind.partition(":")
    if kind not in _KINDS or (function and kind != "python"):
        reading.refuse(f"{place}.kind", f"there is no judge {given.kind!r}.{nearest(kind, _KINDS)}")
    if kind == "python" and not _FUNCTION.fullmatch(function):
        reading.refuse(f"{place}.kind", "a function is named as python:module.function, such as python:judges.length.")
    allowed = {"llm": ("model", "rubric", "repeats"), "logprob": ("model",), "exact_match": ("reference",)}
    for name in given.model_fields_set - {"kind", "range", *allowed.get(kind, ())}:
        reading.refuse(f"{place}.{name}", f"a judge of kind '{kind}' has no {name!r}. Take it out.")
    if given.repeats < 1:
        reading.refuse(f"{place}.repeats", f"it must be at least 1, not {given.repeats}.")
    own = {"llm": DEFAULT_RANGE if given.rubric is None else None, "exact_match": (0.0, 1.0)}.get(kind)
    if given.range is None and own is None:
        reading.refuse(
            f"{place}.range",
            f"it is missing: say between which two numbers the scores of this judge ({given.kind}) lie, as in [0, 1].",
        )
    return JudgeSettings(
        kind=cast("JudgeKind", kind),
        range=_range(reading, given.range, f"{place}.range") if given.range is not None else own or DEFAULT_RANGE,
        model=_judge_model(reading, given, f"{place}.model", base) if kind in ("llm", "logprob") else None,
        rubric=given.rubric,
        repeats=given.repeats,
        function=function or None,
        folder=reading.path.parent,
        reference=given.reference,
    )


def _judge_model(reading: Reading, given: JudgeSection, place: str, base: Policy) -> Policy:
    if given.model is None:
        if base.remote:
            reading.refuse(place, "it is missing, and the base's own model runs elsewhere. Name a model.")
        return Policy("judge", base.provider, base.model, Decoding(), template=base.template, options=base.options)
    settings = {"model": given.model} if isinstance(given.model, str) else given.model
    return reading.policy("judge", settings, place)


def oracle(reading: Reading, given: OracleSection | None, base: Policy) -> OracleSettings | None:
    """Where labels come from; None: nowhere."""
    if given is None:
        reading.said.append("oracle: there is none, so values stand on the judge's scale.")
        return None
    if (given.file is None) == (given.judge is None):
        reading.refuse("oracle", "labels come from a 'file' or from a 'judge': give one of them.")
    fraction = given.fraction
    if given.random and fraction is None and given.judge is not None:
        reading.refuse("oracle.fraction", "it is missing: say which part of the responses gets a label, as in 0.25.")
    if fraction is not None and not 0 < fraction <= 1:
        reading.refuse(
            "oracle.fraction",
            f"it is the probability with which a response gets a label: above 0 and at most 1, not {fraction:g}. "
            "Without any label, leave the section out: values then stand on the judge's scale.",
        )
    if not given.random and given.judge is not None:
        reading.refuse("oracle.random", "a judge labels a random draw; only labels in a file can be chosen by hand.")
    labeller = None if given.judge is None else judge(reading, given.judge, "oracle.judge", base)
    if given.range is None and labeller is None:
        reading.refuse("oracle.range", "it is missing: say between which two numbers the labels lie, as in [0, 1].")
    outcome = given.range or (() if labeller is None else labeller.range)
    return OracleSettings(
        range=_range(reading, outcome, "oracle.range"),
        judge=labeller,
        file=None if given.file is None else reading.beside(given.file),
        fraction=fraction or 1.0,
        seed=given.seed,
        random=given.random,
    )


def estimators(reading: Reading, given: EstimatorsSection) -> EstimatorSettings:
    """How values are estimated."""
    default = EstimatorSettings()
    names = tuple(default.names if given.names is None else given.names)
    for number, name in enumerate(names):
        if name not in default.names:
            reading.refuse(
                f"estimators.names.{number}", f"there is no estimator {name!r}.{nearest(name, default.names)}"
            )
    if not names:
        reading.refuse("estimators.names", f"give at least one of {', '.join(default.names)}.")
    if not 0 < given.level < 1:
        reading.refuse("estimators.level", f"it is between 0 and 1, as in 0.95, not {given.level:g}.")
    for name, least in (("folds", 2), ("replicates", 100)):
        if getattr(given, name) < least:
            reading.refuse(f"estimators.{name}", f"it must be at least {least}, not {getattr(given, name)}.")
    return EstimatorSettings(names, given.level, given.folds, given.replicates, given.seed, given.direct)


def candidates(reading: Reading, given: CandidatesSection | None) -> CandidateSettings | None:
    """An arena with known truth, or None."""
    if given is None:
        return None
    if given.num is not None and given.num < 2:
        reading.refuse("candidates.num", f"a policy chooses among at least 2 candidates, not {given.num}.")
    return CandidateSettings(given.num, given.seed)


def folder(reading: Reading, file: File) -> Path:
    """Where the run is kept."""
    if file.output.folder is None:
        reading.said.append("output: no folder is named, so the run is kept in arena_run.")
        return Path("arena_run")
    if reading.lines.get("output.folder") == 0:  # the command line is about where it is typed
        return Path(file.output.folder).expanduser()
    return reading.beside(file.output.folder)


def _range(reading: Reading, given: Sequence[float], place: str) -> tuple[float, float]:
    if len(given) != 2 or not all(map(math.isfinite, given)) or not given[0] < given[1]:
        reading.refuse(place, f"a range is two numbers, the smaller one first, as in [0, 10], not {list(given)!r}.")
    if max(map(abs, given)) > _FARTHEST or given[1] - given[0] < _NARROWEST:
        reading.refuse(
            place,
            f"its ends lie within {_FARTHEST:g} of 0 and at least {_NARROWEST:g} apart, unlike {list(given)!r}. Change "
            "the unit of the scores.",
        )
    return float(given[0]), float(given[1])


def stop(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Strings that end a response."""
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def schema(reading: Reading, given: str | Mapping[str, Any] | None, place: str) -> Schema | None:
    """A schema as JSON text, whatever the layout it was given in."""
    if given is None:
        return None
    if isinstance(given, str):
        file = reading.beside(given)
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            reading.refuse(place, f"{file} cannot be read: {error.strerror or error}. Give a file with a JSON schema.")
        except ValueError as error:
            reading.refuse(place, f"{file} is not valid JSON: {error}.")
    return json.dumps(given, sort_keys=True)
