"""An arena from prompts to report, step by step, in a folder of files that a later run goes on with.

Every step writes its file row by row and goes on after the last whole one; a file that was made from something else is
refused, not mixed. The steps' order, seeds and files decide the results; when they ran, and how often they were
stopped, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamalab.arena import made_from, preflight, score_stage, stages
from llamalab.arena.jsonl import read_lines
from llamalab.arena.manifest import write_manifest
from llamalab.arena.settings import ArenaConfig
from llamalab.arena.work import Work
from llamalab.engines.options import nearest
from llamalab.errors import ConfigError, InputError, ProviderUnavailable

STEPS = ("prompts", "responses", "draws", "logprobs", "judge", "labels", "estimate", "report")
"""In this order."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""

_RUN: dict[str, Callable[[Work], None]] = {
    "prompts": stages.prompts,
    "responses": stages.responses,
    "draws": stages.draws,
    "logprobs": score_stage.logprobs,
    "judge": stages.judge,
    "labels": stages.labels,
    "estimate": stages.estimate,
    "report": stages.report,
}


@dataclass(frozen=True, slots=True)
class StepStatus:
    """How far a step is.

    Attributes:
        step: its name; "candidates" of an arena with known truth, whose responses are drawn from them.
        file: that it writes, in the run's folder.
        done: rows in it that have what they should.
        failed: rows with an error instead.
        left: rows that are not there yet; None: not known before the steps above are done.
    """

    step: str
    file: str
    done: int
    failed: int
    left: int | None


def run(
    config: ArenaConfig,
    only: str | None = None,
    from_: str | None = None,
    progress: Progress | None = None,
    *,
    force: bool = False,
    commands: Sequence[str] = (),
) -> Path:
    """Run an arena, or go on with it.

    Args:
        config: what to run.
        only: a single step.
        from_: the first step; the files of those above it are used as they are.
        progress: told about every row.
        force: the steps that run write their files anew.
        commands: for the report: how this was called.

    Returns:
        The folder of the run.

    Raises:
        ConfigError: no such step, the extra is not installed, something in the configuration cannot be, or a file in
            the folder was made otherwise than it says now.
        InputError: a file in the folder cannot be read, or another process is at work there.
        ProviderUnavailable: an endpoint does not answer; the rows done so far are kept.
        LlamalabError: what a step cannot go on without; the rows done so far are kept.
    """
    steps = selected(only, from_)
    preflight.require_extra()
    preflight.check(config)
    folder = config.folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made: {error.strerror or error}.") from error
    with _alone(folder):
        work = Work(config, folder, force, progress or _silent)
        made_from.check(work, made_from.needed(steps))
        if "logprobs" in steps and config.candidates is None and (force or not score_stage.is_done(work)):
            preflight.check_endpoints(config)
        for step in steps:
            if not force and step != "estimate":  # which is always made anew
                made_from.check(work, [step])
            if step == "estimate":
                write_manifest(config, folder, tuple(score_stage.notes(work)), tuple(commands))
            try:
                _what_runs(config)[step](work)
            except ProviderUnavailable as error:
                said = f"{error} The rows done so far are kept: the same command goes on."
                raise ProviderUnavailable(said, status=error.status) from None
    return folder


def selected(only: str | None, from_: str | None) -> tuple[str, ...]:
    """The steps that are asked for.

    Raises:
        ConfigError: no such step, or both.
    """
    if only is not None and from_ is not None:
        raise ConfigError("Give --only STEP or --from STEP, not both.")
    name = only or from_
    if name is None:
        return STEPS
    if name not in STEPS:
        raise ConfigError(f"There is no step {name!r}.{nearest(name, STEPS)} In order: {', '.join(STEPS)}.")
    return (name,) if only else STEPS[STEPS.index(name) :]


def check_unchanged(config: ArenaConfig) -> None:
    """See that the run in a configuration's folder was estimated with the settings that the file has now.

    Raises:
        ConfigError: it was not; names the setting, what it was and is.
    """
    made_from.check(Work(config, config.folder.expanduser(), False, _silent), ["estimate"])


def _what_runs(config: ArenaConfig) -> dict[str, Callable[[Work], None]]:
    """The steps; where the truth is known, responses are drawn from a table of scored candidates."""
    if config.candidates is None:
        return _RUN
    from llamalab.arena import known_truth

    return _RUN | {
        "responses": known_truth.responses,
        "draws": known_truth.draws,
        "logprobs": known_truth.logprobs,
    }


def status(config: ArenaConfig) -> tuple[StepStatus, ...]:
    """How far each step of a run is; nothing is loaded or changed."""
    folder = config.folder.expanduser()
    asked = _count(folder / "prompts.jsonl")
    wanted = config.prompts.num if config.prompts.num is not None else None
    prompts = asked[0] + asked[1]
    logged = prompts * config.responses.per_prompt if prompts else None
    fresh = len(config.targets) * config.responses.draws
    files = {
        "prompts": ([folder / "prompts.jsonl"], prompts or wanted),
        "responses": ([folder / "responses.jsonl"], logged),
        "draws": (
            [folder / "draws" / f"{name}.jsonl" for name in config.targets],
            fresh and logged and prompts * fresh,
        ),
        "logprobs": (
            [folder / "logprobs.jsonl", *(folder / "draws" / f"{name}.logprobs.jsonl" for name in config.targets)],
            logged and logged + prompts * fresh,
        ),
        "judge": ([folder / "judged.jsonl"], logged and logged + prompts * fresh),
        "labels": ([folder / "labels.jsonl"], None if config.oracle is not None else 0),
    }
    if config.candidates is not None:
        candidates = ([folder / "candidates.jsonl"], prompts or None)
        files = {"prompts": files.pop("prompts"), "candidates": candidates, **files}
    found = []
    for step, (paths, total) in files.items():
        done, failed = (sum(counts) for counts in zip(*map(_count, paths), strict=True))
        if step == "logprobs" and total:  # what could not be generated is not scored
            total -= sum(_count(path)[1] for path in (*files["responses"][0], *files["draws"][0]))
        left = None if total is None else max(0, total - done - failed)
        found.append(StepStatus(step, paths[0].name if len(paths) == 1 else "several", done, failed, left))
    for step, name in (("estimate", "results.json"), ("report", "report.html")):
        there = (folder / name).is_file()
        found.append(StepStatus(step, name, int(there), 0, int(not there)))
    return tuple(found)


def _count(path: Path) -> tuple[int, int]:
    """Rows of a file that are done, and that failed."""
    done = failed = 0
    if path.is_file():
        for line in read_lines(path):
            policies: Any = line.fields.get("policies")
            parts = list(policies.values()) if isinstance(policies, dict) else [line.fields]
            bad = any(part.get("error") for part in parts) or not parts
            done, failed = done + (not bad), failed + bad
    return done, failed


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder.

    Raises:
        InputError: one is there.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"Another process is at work in {folder}. Wait for it, or name another folder.") from None


def _silent(_doing: str, _done: int, _total: int) -> None:
    return
