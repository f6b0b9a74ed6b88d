"""The rows of a run folder, as `llamalab arena run` leaves it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from llamalab.arena.cje_format import LOGGED, read_cje
from llamalab.arena.jsonl import Line, read_lines, read_object
from llamalab.arena.results import TokenRatio
from llamalab.arena.run_rows import JUDGE, ORACLE, DrawRow, LoggedRow, RunRows
from llamalab.arena.settings import EstimatorSettings
from llamalab.errors import InputError
from llamalab.ope.study import LEAST_LABEL_PROBABILITY

_Labelled: TypeAlias = tuple[float | str, float]
"""Label, or the type of the error that stands there instead; and the probability of having been labelled."""

_Scored: TypeAlias = tuple[float, int] | str
"""Log probability in nats and number of tokens; or the type of the error that stands there instead."""

_MISSING = "missing"
"""The type of error of what a run has not reached."""


def read_run(folder: Path) -> RunRows:
    """The rows of a folder: one that `llamalab arena run` wrote, or one in CJE's layout.

    Raises:
        InputError: neither is there, or a line cannot be used; it names file, line and field.
    """
    folder = folder.expanduser()
    if (folder / LOGGED).is_file():
        return read_cje(folder)
    if not (folder / "manifest.json").is_file():
        raise InputError(
            f"{folder} is no run folder: it has neither manifest.json (of llamalab arena run) nor {LOGGED} "
            "(CJE's layout). Name the folder that one of them is in."
        )
    return _read_folder(folder)


def token_ratios(rows: RunRows, wanted: Mapping[str, Collection[str]]) -> dict[tuple[str, str], tuple[TokenRatio, ...]]:
    """What each token of some responses adds to the log ratio of a policy.

    Args:
        rows: of the run.
        wanted: response ids, by policy.

    Returns:
        By policy and response id; responses without token scores are left out.
    """
    path = rows.folder / "logprobs.jsonl"
    if not any(wanted.values()) or not path.is_file():
        return {}
    found = {}
    for line in read_lines(path):
        id = str(line.fields.get("id"))
        for policy in [name for name, ids in wanted.items() if id in ids]:
            scores = line.object("policies")
            ratios = _ratios(scores.get(rows.base, {}).get("tokens"), scores.get(policy, {}).get("tokens"))
            if ratios:
                found[policy, id] = ratios
    return found


def _ratios(base: Any, target: Any) -> tuple[TokenRatio, ...]:
    """Token by token; empty where the two have other tokens."""
    if not base or not target or [each["id"] for each in base] != [each["id"] for each in target]:
        return ()
    return tuple(
        TokenRatio(
            str(ours["text"]),
            None if ours["logprob"] is None or theirs["logprob"] is None else ours["logprob"] - theirs["logprob"],
        )
        for theirs, ours in zip(base, target, strict=True)
    )


def _read_folder(folder: Path) -> RunRows:
    manifest = read_object(folder / "manifest.json")
    config = Line(folder / "manifest.json", 1, manifest).part("config")
    base, targets = config.text("base"), tuple(map(str, config.fields.get("targets", ())))
    judge_range = _range(config.part("judge"))
    oracle = config.part("oracle") if config.fields.get("oracle") else None
    outcome_range = None if oracle is None else _range(oracle)
    judged = _judged(folder, judge_range)
    labels = _labels(folder, outcome_range)
    scores = _scores(folder / "logprobs.jsonl", (base, *targets))
    drawing = targets if (config.fields.get("responses") or {}).get("draws", 1) else ()  # else such files are left over
    rows = tuple(_logged(folder, (base, *targets), scores, judged, labels))
    truth = folder / "truth.json"
    aa = folder / "aa.json"
    return RunRows(
        folder=folder,
        title=str(manifest.get("title") or folder.absolute().name),
        base=base,
        targets=targets,
        clone=config.fields.get("clone"),
        prompts=_prompts(folder / "prompts.jsonl"),
        rows=rows,
        draws={name: found for name in drawing if (found := tuple(_draws(folder, base, name, judged, labels)))},
        judge_range=judge_range,
        outcome_range=outcome_range,
        random_labels=oracle is None or bool(oracle.fields.get("random", True)),
        settings=_settings(config),
        truth=_truth(Line(truth, 1, read_object(truth))) if truth.is_file() else None,
        policy_facts=_texts_by_name(manifest.get("policy_facts")),
        facts=_texts(manifest.get("facts")),
        commands=tuple(map(str, manifest.get("commands", ()))),
        notes=tuple(map(str, manifest.get("notes", ()))),
        aa=read_object(aa) if aa.is_file() else {},
    )


def _settings(config: Line) -> EstimatorSettings:
    given = config.fields.get("estimators") or {}
    try:
        return EstimatorSettings(**{**given, "names": tuple(given["names"])} if given else {})
    except (TypeError, KeyError) as error:
        config.refuse(f"the field 'estimators' is not as llamalab arena run writes it: {error}.")


def _truth(line: Line) -> dict[str, float]:
    return {name: line.real(name) for name in line.fields}


def _logged(
    folder: Path,
    policies: tuple[str, ...],
    scores: Mapping[str, Mapping[str, _Scored]],
    judged: Mapping[str, float | str],
    labels: Mapping[str, _Labelled],
) -> Iterator[LoggedRow]:
    for line in _responses(folder / "responses.jsonl"):
        id = line.text("response_id")
        unwritten = line.fields.get("error")
        errors: dict[str, str] = {}
        logprobs, lengths = {}, {}
        for name in policies:
            value = str(unwritten) if unwritten else scores.get(id, {}).get(name, _MISSING)
            if isinstance(value, str):
                errors[name] = value
            else:
                logprobs[name], lengths[name] = value
        judge = str(unwritten) if unwritten else judged.get(id, _MISSING)
        if isinstance(judge, str):
            errors[JUDGE] = judge
        label, probability = labels.get(id, (None, None))
        if isinstance(label, str):
            errors[ORACLE] = label
        yield LoggedRow(
            response_id=id,
            prompt_id=line.text("prompt_id"),
            response="" if unwritten else line.text("response"),
            logprobs=logprobs,
            judge=None if isinstance(judge, str) else judge,
            label=None if isinstance(label, str) else label,
            probability=probability,
            generation=line.logprob_or_none("logprob"),
            lengths=lengths,
            errors=errors,
        )


def _draws(
    folder: Path,
    base: str,
    policy: str,
    judged: Mapping[str, float | str],
    labels: Mapping[str, _Labelled],
) -> Iterator[DrawRow]:
    path = folder / "draws" / f"{policy}.jsonl"
    if not path.is_file():
        return
    scored = path.with_name(f"{policy}.logprobs.jsonl")
    scores = _scores(scored, (base, policy)) if scored.is_file() else {}
    for line in _responses(path):
        id = line.text("response_id")
        unwritten = line.fields.get("error")
        judge = str(unwritten) if unwritten else judged.get(id, _MISSING)
        values = [scores.get(id, {}).get(name, _MISSING) for name in (base, policy)]
        under = [None if isinstance(value, str) else value[0] for value in values]
        yield DrawRow(
            prompt_id=line.text("prompt_id"),
            judge=None if isinstance(judge, str) else judge,
            base=under[0],
            target=under[1],
            label=label if isinstance(label := labels.get(id, (None,))[0], float) else None,
            error=judge if isinstance(judge, str) else None,
            response="" if unwritten else line.text("response"),
        )


def _responses(path: Path) -> Iterator[Line]:
    """Lines of a file of responses; an id that comes twice is a fault."""
    for _, line in _by_id(path, "response_id"):
        yield line


def _by_id(path: Path, field: str) -> Iterator[tuple[str, Line]]:
    """Lines with their ids; of two that say something of one response, nobody knows which is right."""
    seen: dict[str, int] = {}
    for line in read_lines(path):
        id = line.text(field)
        first = seen.setdefault(id, line.number)
        if first != line.number:
            line.refuse(f"the {field} {id!r} is that of line {first} too. Take one of the lines out.")
        yield id, line


def _scores(path: Path, policies: Sequence[str]) -> dict[str, dict[str, _Scored]]:
    """Of each response under each policy; the tokens, which are most of the file, are not kept."""
    return {id: {name: _scored(line.part("policies"), name) for name in policies} for id, line in _by_id(path, "id")}


def _scored(line: Line, policy: str) -> _Scored:
    if policy not in line.fields:
        return _MISSING
    value = line.part(policy)
    if value.fields.get("error"):
        return str(value.fields["error"])
    tokens = int(value.fields.get("n_tokens") or 0)
    if value.fields.get("out_of_support"):
        return -math.inf, tokens
    found = value.logprob_or_none("logprob")
    return value.real("logprob") if found is None else found, tokens


def _judged(folder: Path, judge_range: tuple[float, float]) -> dict[str, float | str]:
    """Score by response id, or the type of the error."""
    found: dict[str, float | str] = {}
    for id, line in _by_id(folder / "judged.jsonl", "response_id"):
        error = line.fields.get("error")
        found[id] = str(error) if error else line.real("score", *judge_range)
    return found


def _labels(folder: Path, outcome_range: tuple[float, float] | None) -> dict[str, _Labelled]:
    """By response id."""
    path = folder / "labels.jsonl"
    if outcome_range is None or not path.is_file():
        return {}
    found: dict[str, _Labelled] = {}
    for id, line in _by_id(path, "response_id"):
        error, probability = line.fields.get("error"), line.real("probability", 0.0, 1.0)
        if probability < LEAST_LABEL_PROBABILITY:
            line.refuse(
                f"the field 'probability' is {probability:g}; a labelled row had a chance of at least "
                f"{LEAST_LABEL_PROBABILITY:g} to be labelled."
            )
        found[id] = str(error) if error else line.real("label", *outcome_range), probability
    return found


def _range(line: Line) -> tuple[float, float]:
    value = line.fields.get("range")
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(each, int | float) for each in value):
        line.refuse("the field 'range' must be a list of the least and the largest value.")
    return float(value[0]), float(value[1])


def _prompts(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in read_lines(path):
        id = line.text("prompt_id")
        if id in found:
            line.refuse(f"the prompt_id {id!r} is that of an earlier line too. Give each prompt an id of its own.")
        found[id] = _prompt(line)
    return found


def _prompt(line: Line) -> str:
    if isinstance(line.fields.get("prompt"), str):
        return line.text("prompt")
    messages = line.fields.get("messages") or ()
    return "\n".join(str(message.get("content", "")) for message in messages)


def _texts(value: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in value.items()} if isinstance(value, dict) else {}


def _texts_by_name(value: Any) -> dict[str, dict[str, str]]:
    return {str(name): _texts(facts) for name, facts in value.items()} if isinstance(value, dict) else {}
