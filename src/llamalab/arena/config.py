"""The configuration of an arena: read from YAML, checked, and what is left open filled and said.

Every mistake is a `ConfigError` with file, line and name of the setting, and what to write instead.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError

from llamalab.arena.config_file import (
    CandidatesSection,
    EstimatorsSection,
    File,
    JudgeSection,
    OracleSection,
    PolicySection,
    PromptsSection,
    ResponsesSection,
)
from llamalab.arena.refusals import check_policies
from llamalab.arena.settings import (
    CHATBOT_ARENA,
    ArenaConfig,
    CandidateSettings,
    EstimatorSettings,
    JudgeKind,
    JudgeSettings,
    OracleSettings,
    PromptSettings,
    ResponseSettings,
    Writing,
    at,
)
from llamalab.engine import Decoding, Schema
from llamalab.engines.options import nearest
from llamalab.errors import ConfigError, LlamalabError
from llamalab.scoring.policy import Policy, make_policy
from llamalab.scoring.settings_file import lines_of, read_settings

DEFAULT_RANGE = (0.0, 10.0)
"""Of the scores of a judge with the general rubric."""

_BASE = "p0"
_KINDS = get_args(JudgeKind)
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_PENALTIES = {"repeat_penalty": 1.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
_WRITING = ("max_tokens", "stop", "schema")

_Section = TypeVar("_Section", bound=BaseModel)


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> ArenaConfig:
    """The configuration in a YAML file.

    Models, prompts and labels need not exist before they are used.

    Args:
        path: of the file.
        overrides: settings that the command line gives, by their dotted names ("prompts.num"); they win.

    Raises:
        ConfigError: the file cannot be read, or a setting has a wrong name, value or neighbour.
    """
    path = path.expanduser()
    reading = _Reading(path, lines_of(path))
    content = read_settings(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings: it needs at least a section 'policies'.")
    content = _overridden(content, overrides or {}, reading.lines)
    file = reading.parsed(File, content, "")
    policies, writing = _policies(reading, file.policies, file.responses)
    base, targets = _roles(reading, file, list(policies))
    config = ArenaConfig(
        path=path,
        policies=policies,
        writing=writing,
        base=base,
        targets=targets,
        clone=None,
        prompts=_prompts(reading, file.prompts),
        responses=_responses(reading, file.responses, policies),
        judge=_judge(reading, file.judge, "judge", policies[base]),
        oracle=_oracle(reading, file.oracle, policies[base]),
        estimators=_estimators(reading, file.estimators),
        candidates=_candidates(reading, file.candidates),
        folder=_folder(reading, file),
        lines=reading.lines,
        said=tuple(reading.said),
    )
    return check_policies(config)


@dataclass(slots=True)
class _Reading:
    """A file on its way to a configuration.

    Attributes:
        path: of the file.
        lines: of its settings.
        said: what was left open, and how it was filled.
    """

    path: Path
    lines: dict[str, int]
    said: list[str] = field(default_factory=list)

    def refuse(self, place: str, what: str) -> NoReturn:
        """Raise the error of one setting."""
        raise ConfigError(f"{at(self.path, self.lines, place)}: {what}")

    def parsed(self, kind: type[_Section], content: Any, place: str) -> _Section:
        """A section of the file."""
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            fault = error.errors()[0]
            names = [str(part) for part in fault["loc"] if "[" not in str(part) and part != "str"]  # of unions
            where = ".".join([place, *names] if place else names)
            if fault["type"] == "extra_forbidden":
                self.refuse(where, f"there is no setting {names[-1]!r} here.{nearest(names[-1], _known(kind, names))}")
            if fault["type"] == "missing":
                self.refuse(where, f"the setting {names[-1]!r} is missing.")
            message = fault["msg"].removeprefix("Value error, ")
            self.refuse(where, f"it cannot be {fault['input']!r}: {message[0].lower()}{message[1:]}.")

    def beside(self, name: str) -> Path:
        """A path of the file; a relative one starts at the file's own folder."""
        path = Path(name).expanduser()
        return path if path.is_absolute() else self.path.parent / path

    def policy(self, name: str, settings: Mapping[str, Any], place: str) -> Policy:
        """A policy from its settings."""
        try:
            return make_policy(name, settings)
        except LlamalabError as error:
            named = [key for key in settings if re.search(rf"\b{re.escape(key)}\b", str(error))]
            self.refuse(f"{place}.{named[0]}" if named else place, str(error))


def _overridden(content: dict[Any, Any], overrides: Mapping[str, Any], lines: dict[str, int]) -> dict[str, Any]:
    """The content with what the command line gives; such a setting stands on line 0."""
    changed = {str(key): value for key, value in content.items()}
    for place, value in overrides.items():
        section, _, name = place.partition(".")
        if name:
            inner = changed.get(section)
            value = {**(inner if isinstance(inner, dict) else {}), name: value}
        changed[section] = value
        for each in [each for each in lines if each.startswith(f"{place}.")]:
            del lines[each]
        lines[place] = 0
    return changed


def _known(kind: type[BaseModel], names: Sequence[str]) -> list[str]:
    """Names of the section that an unknown name stands in."""
    for name in names[:-1]:
        inner = kind.model_fields[name].annotation if name in kind.model_fields else None
        found = [each for each in (inner, *get_args(inner)) if isinstance(each, type) and issubclass(each, BaseModel)]
        if found:
            kind = found[0]
    return list(kind.model_fields)


def _policies(
    reading: _Reading, given: Mapping[str, Any], responses: ResponsesSection
) -> tuple[dict[str, Policy], dict[str, Writing]]:
    if not given:
        reading.refuse("policies", "there is no policy: each stands here under a name of its own, with its model.")
    policies, writing = {}, {}
    common = Writing(
        responses.max_tokens, _stop(responses.stop), _schema(reading, responses.schema_, "responses.schema")
    )
    for key, settings in given.items():
        name, place = str(key), f"policies.{key}"
        if not re.fullmatch(r"[\w.+-]+", name) or name in (".", ".."):
            reading.refuse(place, "its name may have letters, digits and . _ + - only: files are named by it.")
        if not isinstance(settings, dict):
            reading.refuse(place, f"its settings are a mapping (model: ..., temperature: ...), not {settings!r}.")
        rest = {str(each): value for each, value in settings.items()}
        _check_penalties(reading, rest, place)
        own = {each: rest.pop(each) for each in _WRITING if each in rest}
        section = reading.parsed(PolicySection, own, place)
        writing[name] = Writing(
            section.max_tokens or common.max_tokens,
            common.stop if section.stop is None else _stop(section.stop),
            common.schema if section.schema_ is None else _schema(reading, section.schema_, f"{place}.schema"),
        )
        policies[name] = reading.policy(name, rest, place)
    return policies, writing


def _check_penalties(reading: _Reading, settings: dict[str, Any], place: str) -> None:
    """Take penalties that are off out of a policy's settings.

    Raises:
        ConfigError: one that is on.
    """
    for name, off in _PENALTIES.items():
        if settings.pop(name, off) not in (None, off):
            reading.refuse(
                f"{place}.{name}",
                "a policy with a repetition penalty cannot be scored: what it does to a token depends on which tokens "
                f"came before, and no scorer repeats that. Leave {name} out, or set it to {off:g}.",
            )


def _roles(reading: _Reading, file: File, names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Base and targets."""
    base = file.base
    if base is None:
        base = _BASE if _BASE in names else names[0]
        reading.said.append(f"base: no policy is named, so it is '{base}'.")
    if base not in names:
        reading.refuse("base", f"there is no policy {base!r}.{nearest(base, names)}")
    targets = file.targets
    if targets is None:
        targets = [name for name in names if name != base]
    for number, name in enumerate(targets):
        if name not in names:
            reading.refuse(f"targets.{number}", f"there is no policy {name!r}.{nearest(name, names)}")
        if name == base:
            reading.refuse(f"targets.{number}", f"'{name}' is the base; its value is always there. Take it out.")
        if name in targets[:number]:
            reading.refuse(f"targets.{number}", f"'{name}' is there twice. Take one out.")
    if not targets:
        reading.refuse(
            "targets" if file.targets is not None else "policies",
            "there is no policy to compare the base with. Add one under 'policies'.",
        )
    return base, tuple(targets)


def _prompts(reading: _Reading, given: PromptsSection) -> PromptSettings:
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


def _responses(reading: _Reading, given: ResponsesSection, policies: Mapping[str, Policy]) -> ResponseSettings:
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
        _check_penalties(reading, settings, place)
        writer = reading.policy("generated_by", settings, place)
    return ResponseSettings(given.per_prompt, given.draws, reading.beside(given.file), writer)


def _judge(reading: _Reading, given: JudgeSection | None, place: str, base: Policy) -> JudgeSettings:
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


def _judge_model(reading: _Reading, given: JudgeSection, place: str, base: Policy) -> Policy:
    if given.model is None:
        if base.remote:
            reading.refuse(place, "it is missing, and the base's own model runs elsewhere. Name a model.")
        return Policy("judge", base.provider, base.model, Decoding(), template=base.template, options=base.options)
    settings = {"model": given.model} if isinstance(given.model, str) else given.model
    return reading.policy("judge", settings, place)


def _oracle(reading: _Reading, given: OracleSection | None, base: Policy) -> OracleSettings | None:
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
    judge = None if given.judge is None else _judge(reading, given.judge, "oracle.judge", base)
    if given.range is None and judge is None:
        reading.refuse("oracle.range", "it is missing: say between which two numbers the labels lie, as in [0, 1].")
    outcome = (
        _range(reading, given.range, "oracle.range") if given.range is not None else judge.range if judge else None
    )
    file = None if given.file is None else reading.beside(given.file)
    return OracleSettings(outcome or DEFAULT_RANGE, judge, file, fraction or 1.0, given.seed, given.random)


def _estimators(reading: _Reading, given: EstimatorsSection) -> EstimatorSettings:
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


def _candidates(reading: _Reading, given: CandidatesSection | None) -> CandidateSettings | None:
    if given is None:
        return None
    if given.num is not None and given.num < 2:
        reading.refuse("candidates.num", f"a policy chooses among at least 2 candidates, not {given.num}.")
    return CandidateSettings(given.num, given.seed)


def _folder(reading: _Reading, file: File) -> Path:
    if file.output.folder is None:
        reading.said.append("output: no folder is named, so the run is kept in arena_run.")
        return Path("arena_run")
    if reading.lines.get("output.folder") == 0:  # the command line is about where it is typed
        return Path(file.output.folder).expanduser()
    return reading.beside(file.output.folder)


def _range(reading: _Reading, given: Sequence[float], place: str) -> tuple[float, float]:
    if len(given) != 2 or not all(map(math.isfinite, given)) or not given[0] < given[1]:
        reading.refuse(place, f"a range is two numbers, the smaller one first, as in [0, 10], not {list(given)!r}.")
    return float(given[0]), float(given[1])


def _stop(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def _schema(reading: _Reading, given: str | Mapping[str, Any] | None, place: str) -> Schema | None:
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
