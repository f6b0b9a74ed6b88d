"""A run at work: its folder, and how its files are written, completed and found to be of something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llamalab.arena.jsonl import read_lines
from llamalab.arena.manifest import FORMAT
from llamalab.arena.settings import ArenaConfig
from llamalab.errors import InputError
from llamalab.scoring.output import OutputFile
from llamalab.scoring.policy import Policy

_Rows = Callable[[int], Iterator[Mapping[str, Any]]]
"""From how many rows are there to those that are missing."""


@dataclass
class Work:
    """A run that is at work.

    Attributes:
        config: what to run.
        folder: where.
        force: files are written anew.
        progress: told about every row.
    """

    config: ArenaConfig
    folder: Path
    force: bool
    progress: Callable[[str, int, int], None]

    @cached_property
    def prompts(self) -> dict[str, Mapping[str, Any]]:
        """Rows of `prompts.jsonl` by id.

        Raises:
            InputError: the step has not been run.
        """
        path = self.folder / "prompts.jsonl"
        if not path.is_file():
            raise InputError(f"{path} is not there: run the step 'prompts' first, or leave out --only and --from.")
        return {line.text("prompt_id"): line.fields for line in read_lines(path)}

    @property
    def base(self) -> Policy:
        """The policy that wrote the logged responses."""
        return self.config.policies[self.config.base]

    @property
    def drawing(self) -> tuple[str, ...]:
        """Targets that write fresh responses."""
        return self.config.targets if self.config.responses.draws else ()

    def draws_of(self, name: str) -> Path:
        """The file of a target's fresh responses."""
        return self.folder / "draws" / f"{name}.jsonl"

    def logprobs_of(self, name: str) -> Path:
        """The file of their log probabilities."""
        return self.folder / "draws" / f"{name}.logprobs.jsonl"

    def write(self, step: str, path: Path, record: Mapping[str, Any], rows: _Rows, total: int) -> None:
        """Write the rows of a file that are not there yet.

        Raises:
            InputError: the file was made from something else.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        made_from = json.loads(json.dumps({"format": FORMAT, **record}, default=str))
        with OutputFile(path, made_from, force=self.force) as output:
            done = len(output.kept.ids)
            for row in rows(done):
                output.write(row)
                done += 1
                self.progress(step, done, total)

    def check_responses(self) -> None:
        """See that all responses are there.

        Raises:
            InputError: they are not.
        """
        count, given = len(self.prompts), self.config.responses
        path = self.folder / "responses.jsonl"
        if given.file is None:
            self.complete(path, count * given.per_prompt, "responses")
        elif not path.is_file():
            raise InputError(f"{path} is not there: run the step 'responses' first.")
        for name in self.drawing:
            self.complete(self.draws_of(name), count * given.draws, "draws")

    def complete(self, path: Path, total: int, step: str) -> None:
        """See that a file has all its rows.

        Raises:
            InputError: it has not.
        """
        there = sum(1 for _ in read_lines(path)) if path.is_file() else 0
        if there != total:
            raise InputError(f"{path} has {there} of {total} rows: run the step '{step}' to its end first.")
