"""The manifest of a run: what was run, of which models, with which settings; and what each file of a run is made from.

It has no time and no path of the run's own folder in it: the same configuration gives the same manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llamalab.arena.settings import ArenaConfig, JudgeSettings
from llamalab.errors import InputError
from llamalab.scoring.fingerprint import fingerprint
from llamalab.scoring.policy import Policy

FORMAT = 2
"""Of the files of a run."""

_IRRELEVANT = frozenset({"n_threads", "n_seq", "load_mode"})
_SOFTWARE = ("llamalab", "llama-cpp-python", "numpy", "scipy", "cje-eval")
_ROWS = ("prompts.jsonl", "responses.jsonl", "logprobs.jsonl", "judged.jsonl", "labels.jsonl")
_CUTS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def policy_record(policy: Policy) -> dict[str, Any]:
    """Everything that decides which distribution a policy is: its model by content, not by name.

    Raises:
        ModelNotFound, ModelFileError: the model cannot be read.
    """
    facts = fingerprint(policy, "strict").facts
    template = None if policy.template is None else Path(policy.template).expanduser()
    content = template.read_bytes() if template is not None and template.is_file() else None
    options = {name: value for name, value in sorted(policy.options.items()) if name not in _IRRELEVANT}
    return {
        "provider": policy.provider,
        "model": policy.model if policy.remote else facts["model_sha256"],
        "adapters": facts.get("adapters", []),
        "decoding": dataclasses.asdict(policy.decoding),
        "system_prompt": policy.system_prompt,
        "template": policy.template if content is None else hashlib.sha256(content).hexdigest(),
        "date": policy.date,
        "options": json.loads(
            json.dumps({name: value for name, value in options.items() if name != "adapters"}, default=str)
        ),
    }


def write_manifest(config: ArenaConfig, folder: Path, notes: tuple[str, ...], commands: tuple[str, ...]) -> None:
    """Write `manifest.json`, whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    said = tuple(sentence for sentence in config.said if not sentence.startswith("output:"))
    manifest = {
        "format": FORMAT,
        "title": config.path.stem,
        **results_from(config, folder),
        "policy_facts": {name: _facts(policy) for name, policy in config.compared.items()},
        "fingerprints": {name: dict(fingerprint(policy, "strict").facts) for name, policy in config.compared.items()},
        "facts": _run_facts(config),
        "commands": list(commands),
        "notes": [*said, *notes],
    }
    write_json(folder / "manifest.json", manifest)


def results_from(config: ArenaConfig, folder: Path) -> dict[str, Any]:
    """What results are made from: the configuration, and the rows by their sums."""
    files = [*(folder / name for name in _ROWS), *sorted(folder.glob("draws/*.jsonl"))]
    return {
        "config": config.record(),
        "rows_sha256": {str(path.relative_to(folder)): found for path in files if (found := sha256_of(path))},
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    text = json.dumps(content, ensure_ascii=True, indent=1, allow_nan=False, default=str) + "\n"
    write_whole(path, text.encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and on the disk when this returns.

    Raises:
        InputError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def sha256_of(path: Path) -> str | None:
    """Of a file that is read whole; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _facts(policy: Policy) -> dict[str, str]:
    """What a policy is, in words."""
    facts = fingerprint(policy, "strict").facts
    decoding = policy.decoding
    found = {"model": f"{policy.provider}:{Path(policy.model).name}", "temperature": f"{decoding.temperature:g}"}
    found |= {name: f"{getattr(decoding, name):g}" for name, off in _CUTS.items() if getattr(decoding, name) != off}
    if policy.system_prompt is not None:
        found["system prompt"] = policy.system_prompt
    found["template"] = policy.template or "the model's own"
    if "model_sha256" in facts:
        found["model sha256"] = str(facts["model_sha256"])
    found["fingerprint"] = str(facts["key"])
    return found


def _run_facts(config: ArenaConfig) -> dict[str, str]:
    source = Path(config.prompts.source)
    found = {
        "prompts": source.name if source.is_absolute() or source.exists() else config.prompts.source,
        "judge": _judge_words(config.judge),
        "oracle": "none",
    }
    if config.oracle is not None:
        by = f"labels of {config.oracle.file.name}" if config.oracle.file else "labels"
        if config.oracle.judge is not None:
            by = _judge_words(config.oracle.judge)
        share = f", on a random {config.oracle.fraction:.3g} of the responses" if config.oracle.judge else ""
        found["oracle"] = by + (share if config.oracle.random else ", on responses chosen by hand")
    found["software"] = ", ".join(f"{name} {version(name)}" for name in _SOFTWARE)
    return found


def _judge_words(judge: JudgeSettings) -> str:
    what = {"llm": "a chat model", "logprob": "mean log probability under", "exact_match": "exact match"}
    low, high = judge.range
    by = what.get(judge.kind, f"the function {judge.function}")
    of = "" if judge.model is None else f" {judge.model.provider}:{Path(judge.model.model).name}"
    return f"{by}{of}, scores from {low:g} to {high:g}"
