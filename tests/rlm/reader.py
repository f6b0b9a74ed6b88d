"""A root that reads: it knows of a run only what stands in the messages that it is sent, as a model does.

`read` takes the text of a conversation apart by what the system prompt says of it; a `Plan` gives the next command from
that. The state of the run, its events and its journal are out of reach: the code may run in another process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Command: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Listed:
    """A line of data: which document (0: not said), its number, where in the text it begins (-1: not said)."""

    document: int
    number: int
    at: int
    text: str


@dataclass(frozen=True)
class Seen:
    """A result as it was shown.

    Attributes:
        head: the line in the program's own words, "" where there is none.
        lines: of data.
        notes: below it.
        error: in place of all that.
    """

    head: str
    lines: tuple[Listed, ...]
    notes: tuple[str, ...]
    error: str

    @property
    def number(self) -> str:
        """That the head tells: "12 matches in hits", "mean: 3.5 (of 7 numbers)"."""
        found = re.match(r"(?:[a-z]+: )?(-?[0-9.]+)", self.head)
        assert found is not None, self.head
        return found[1]


@dataclass(frozen=True)
class Read:
    """What a root knows.

    Attributes:
        question: that is asked.
        operations: their names, as the system prompt lists them.
        documents: name, lines, characters, in order.
        said: the root's own commands.
        results: of them.
        last: only an answer is allowed now.
    """

    question: str
    operations: tuple[str, ...]
    documents: tuple[tuple[str, int, int], ...]
    said: tuple[Command, ...]
    results: tuple[Seen, ...]
    last: bool


Plan: TypeAlias = Callable[[Read], Command]


def read(messages: Sequence[Mapping[str, Any]]) -> Read:
    """Take a conversation apart."""
    system, first, *rest = (str(message["content"]) for message in messages)
    fence, *lines = first.splitlines()
    fence = fence.removeprefix("Fence: ")
    documents = [re.fullmatch(r'doc\d+: (".*"), (\d+) lines, (\d+) characters', line) for line in lines]
    last = bool(rest) and "Only final is allowed now" in rest[-1]
    return Read(
        question=next(line.removeprefix("Question: ") for line in lines if line.startswith("Question: ")),
        operations=tuple(re.findall(r"^([a-z_]+)\(", system, re.MULTILINE)),
        documents=tuple((json.loads(found[1]), int(found[2]), int(found[3])) for found in documents if found),
        said=tuple(json.loads(text) for text in rest[0::2]),
        results=tuple(_seen(text, fence) for text in rest[1::2]),
        last=last,
    )


def _seen(text: str, fence: str) -> Seen:
    if text.startswith("error: "):
        return Seen("", (), (), text)
    head, data, after = text, "", ""
    if fence in text:
        head, data, after = (part.strip("\n") for part in text.split(fence))
    said = [line for line in (*head.splitlines(), *after.splitlines()) if line]
    notes = tuple(line.removeprefix("note: ") for line in said if line.startswith("note: "))
    heads = [line for line in head.splitlines() if line and not line.startswith("note: ")]
    return Seen(heads[0] if heads else "", tuple(map(_listed, data.splitlines())), notes, "")


def _listed(line: str) -> Listed:
    found = re.match(r"(?:doc(\d+) )?L(\d+)(?:@(\d+))?: (.*)", line) or re.match(r"()(\d+)()(?:): (.*)", line)
    if found is None:
        return Listed(0, 0, -1, line)
    return Listed(int(found[1] or 0), int(found[2]), int(found[3] or -1), found[4])
