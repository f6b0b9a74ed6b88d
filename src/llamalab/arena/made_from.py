"""What each file of a run is made from, and whether that is what the configuration says now.

Everything is told by content: a model, a file of prompts or a function that is replaced under its old name is another
one, and a folder that was moved is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamalab.arena import candidates
from llamalab.arena.jsonl import read_object
from llamalab.arena.judges import fingerprint
from llamalab.arena.logprobs import rows_to_score
from llamalab.arena.manifest import FORMAT, policy_record, results_from, sha256_of
from llamalab.arena.prompt_files import files_of
from llamalab.arena.settings import JudgeSettings, OracleSettings, plain
from llamalab.arena.work import Work
from llamalab.errors import ConfigError
from llamalab.scoring.output import FACTS, differences
from llamalab.scoring.policy import Policy
from llamalab.scoring.run import Plan, record_of

_ROWS = ("prompts", "responses", "draws")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "prompts": (),
    "responses": ("prompts",),
    "draws": ("prompts",),
    "logprobs": _ROWS,
    "judge": _ROWS,
    "labels": _ROWS,
    "estimate": (*_ROWS, "logprobs", "judge", "labels"),
    "report": ("estimate",),
}
"""Of each step, the steps whose files it reads, or whose files those are made from."""

_CHEAP = ("logprobs", "judge", "labels")  # nothing is made from their files but the estimate

_NAMES = ("key", "model", "path")  # of what an engine's facts tell by content as well


@dataclass(frozen=True, slots=True)
class _Made:
    """A file of a run.

    Attributes:
        step: that writes it.
        path: of the file.
        place: of the configuration that decides most of it.
        record: what it is made from.
    """

    step: str
    path: Path
    place: str
    record: Callable[[], Mapping[str, Any]]


def check(work: Work, steps: Collection[str]) -> None:
    """See that the files of some steps, where they are there, were made as the configuration says now.

    Raises:
        ConfigError: one was not; names the setting, what it was and is, the file and the remedy.
        InputError: a record cannot be read.
    """
    for made in _files(work):
        beside = _beside(made.path)
        if made.step in steps and made.path.is_file() and beside.is_file():
            before, now = read_object(beside), _as_json({"format": FORMAT, **made.record()})
            _compare(work, made, before, now)
    manifest = work.folder / "manifest.json"
    if "estimate" in steps and manifest.is_file():  # the report shows what was estimated
        before, now = read_object(manifest), _as_json(results_from(work.config, work.folder))
        made = _Made("estimate", work.folder / "results.json", "estimators", dict)
        _compare(work, made, {name: before.get(name) for name in now}, now)


def needed(steps: Collection[str]) -> set[str]:
    """The steps whose files others use as they are."""
    return {each for step in steps for each in NEEDS[step]} - set(steps)


def prompts(work: Work) -> dict[str, Any]:
    """What prompts are drawn from."""
    settings = plain(work.config.prompts)
    files = files_of(work.config.prompts.source, work.config.prompts.split)
    if files:
        settings.pop("source")
    return {"prompts": settings, "files_sha256": [sha256_of(file) for file in files]}


def responses(work: Work) -> dict[str, Any]:
    """What the base's responses are made from."""
    given = work.config.responses
    found = _written_by(work, work.config.base)
    if given.file is not None:
        return found | {"file_sha256": sha256_of(given.file)}
    return found | {"per_prompt": given.per_prompt}


def draws(work: Work, name: str) -> dict[str, Any]:
    """What fresh responses of a target are made from."""
    return _written_by(work, name) | {"per_prompt": work.config.responses.draws}


def scoring_plan(policies: Mapping[str, Policy]) -> Plan:
    """How responses are scored."""
    return Plan(policies, nested=True, tokens=True)


def judgements(work: Work) -> dict[str, Any]:
    """What judge scores are made from."""
    files = [work.folder / "responses.jsonl", *map(work.draws_of, work.drawing)]
    sums = {str(path.relative_to(work.folder)): _rows_sha256(path) for path in files}
    return {"judge": _judge(work.config.judge), "responses_sha256": sums}


def labels(work: Work, oracle: OracleSettings) -> dict[str, Any]:
    """What labels are made from."""
    found = {name: plain(getattr(oracle, name)) for name in ("range", "fraction", "seed", "random")}
    found["judge"] = None if oracle.judge is None else _judge(oracle.judge)
    found["file_sha256"] = None if oracle.file is None else sha256_of(oracle.file)
    return {"oracle": found, "responses_sha256": _rows_sha256(work.folder / "responses.jsonl")}


def candidate_table(work: Work) -> dict[str, Any]:
    """What the table of scored candidates is made from."""
    config = work.config
    oracle = None if config.oracle is None else config.oracle.judge
    return {
        "prompts_sha256": _rows_sha256(work.folder / "prompts.jsonl"),
        "num": None if config.candidates is None else config.candidates.num,
        "policies": {name: policy_record(policy) for name, policy in config.compared.items()},
        "judge": _judge(config.judge),
        "oracle": None if oracle is None else _judge(oracle),
    }


def candidate_draw(work: Work, name: str, count: int) -> dict[str, Any]:
    """What responses that are drawn from the table are made from."""
    config = work.config
    return {
        "candidates_sha256": _rows_sha256(work.folder / candidates.FILE),
        "policy": policy_record(config.policies[name]) | {"name": name},
        "per_prompt": count,
        "seed": 0 if config.candidates is None else config.candidates.seed,
    }


def candidate_logprobs(work: Work, path: Path, names: Collection[str]) -> dict[str, Any]:
    """What log probabilities that are looked up in the table are made from."""
    return {
        "candidates_sha256": _rows_sha256(work.folder / candidates.FILE),
        "responses_sha256": _rows_sha256(path),
        "policies": list(names),
    }


def _files(work: Work) -> Iterator[_Made]:
    """The files of a run that say what they are made from, in the order in which they are written."""
    config, folder = work.config, work.folder
    yield _Made("prompts", folder / "prompts.jsonl", "prompts", lambda: prompts(work))
    scored = (folder / "responses.jsonl", folder / "logprobs.jsonl", config.compared)
    fresh = [
        (work.draws_of(name), work.logprobs_of(name), {each: config.policies[each] for each in (config.base, name)})
        for name in work.drawing
    ]
    if config.candidates is not None:
        yield _Made("responses", folder / candidates.FILE, "candidates", lambda: candidate_table(work))
        counts = {config.base: config.responses.per_prompt} | dict.fromkeys(work.drawing, config.responses.draws)
        for (path, _, _), (name, count) in zip((scored, *fresh), counts.items(), strict=True):
            step = "responses" if name == config.base else "draws"
            record = _later(candidate_draw, work, name, count)
            yield _Made(step, path, f"policies.{name}", record)
    else:
        yield _Made("responses", scored[0], f"policies.{config.base}", lambda: responses(work))
        for name, (path, _, _) in zip(work.drawing, fresh, strict=True):
            yield _Made("draws", path, f"policies.{name}", _later(draws, work, name))
    for path, target, policies in (scored, *fresh):
        record = _later(_logprobs, work, path, policies)
        if config.candidates is not None:
            record = _later(candidate_logprobs, work, path, list(policies))
        yield _Made("logprobs", target, "policies", record)
    yield _Made("judge", folder / "judged.jsonl", "judge", lambda: judgements(work))
    if (oracle := config.oracle) is not None:
        yield _Made("labels", folder / "labels.jsonl", "oracle", lambda: labels(work, oracle))


def _later(function: Callable[..., dict[str, Any]], *arguments: Any) -> Callable[[], dict[str, Any]]:
    return lambda: function(*arguments)


def _logprobs(work: Work, path: Path, policies: Mapping[str, Policy]) -> dict[str, Any]:
    rows = rows_to_score(path, work.prompts) if path.is_file() else b""
    return record_of(scoring_plan(policies), rows)


def _compare(work: Work, made: _Made, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise the error of a file that was made otherwise."""
    other = list(_differences(before, now))
    if not other:
        return
    first = other[0].partition(" was ")[0]
    policies = (f"policies.{name}" for name in work.config.compared)
    place = next((each for each in policies if f"{first}.".startswith(f"{each}.")), made.place)
    remedy = f"Undo the change, or run from the step '{made.step}' with --force."
    if made.step in _CHEAP:
        remedy = f"Undo the change, or write it anew: --only {made.step} --force, then run again."
    elif made.step == "estimate":
        remedy = "Run from the step 'estimate'."
    raise ConfigError(
        f"{work.config.at(place)}: {made.path} was made with other settings ({'; '.join(other[:3])}). {remedy}"
    )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """In what two records differ; of an engine that is another one, in what."""
    old, new = before.get(FACTS, {}), now.get(FACTS, {})
    for name, policy in (before.get("policies") or {}).items() if old and new else ():
        mark, other = policy["fingerprint"], (now["policies"].get(name) or {}).get("fingerprint")
        if other is not None and mark != other and mark in old:
            one, two = ({k: v for k, v in facts.items() if k not in _NAMES} for facts in (old[mark], new[other]))
            yield from differences(one, two, f"policies.{name}")
    yield from differences(before, now)


def _written_by(work: Work, name: str) -> dict[str, Any]:
    config = work.config
    return {
        "prompts_sha256": _rows_sha256(work.folder / "prompts.jsonl"),
        "policy": policy_record(config.policies[name]) | {"seed": config.policies[name].seed, "name": name},
        "writing": plain(config.writing[name]),
    }


def _judge(settings: JudgeSettings) -> dict[str, Any]:
    """A judge, its model and its function by their contents."""
    found: dict[str, Any] = plain(settings)
    found["model"] = None if settings.model is None else policy_record(settings.model)
    return found | fingerprint(settings)


def _rows_sha256(path: Path) -> str | None:
    """Of the whole rows of a file: one that was cut off while it was written is not there."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    return hashlib.sha256(content[: content.rfind(b"\n") + 1]).hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.run.json")


def _as_json(record: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return found
