"""The compact protocol: three commands, a prompt of a few lines, results of one or two.

It is what the built-in model was trained in; golden files hold it fixed. Its commands are sentences of the full
language (`llamalab.rlm.commands`) as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from llamalab.errors import InputError
from llamalab.rlm.search import Line

MAX_TEXT = 200
"""Longest search text, characters."""
MAX_ANSWER = 400
"""Longest answer, characters."""
MAX_SHOWN = 160
"""Longest line in a result block, characters; the rest is cut and marked."""
LINES_SHOWN = 2
"""Lines in a result block of the compact protocol."""
NOT_FOUND = "not found"
"""The answer when the text does not say."""

Name: TypeAlias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,15}$")]
"""A variable."""


class _Command(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Find(_Command):
    """Look for the lines that hold `text`; `store` keeps all matches under a name."""

    op: Literal["find"] = "find"
    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
    store: Name | None = None


class Count(_Command):
    """Count what was stored: `what` is always the number of matching lines here."""

    op: Literal["count"] = "count"
    on: Name
    what: Literal["matches"] = "matches"


class Final(_Command):
    """Give the answer and end."""

    op: Literal["final"] = "final"
    answer: Annotated[str, Field(min_length=1, max_length=MAX_ANSWER)]


Command: TypeAlias = Find | Count | Final
COMMANDS: dict[str, type[Find] | type[Count] | type[Final]] = {"find": Find, "count": Count, "final": Final}
_PARSER: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="op")])

COMPACT_PROMPT = """\
You answer a question about a text you cannot see. Give one JSON command at a time.
{"op":"find","text":"..."} shows the best lines; with "store":"hits" it keeps all matches.
{"op":"count","on":"hits","what":"matches"} counts them.
{"op":"final","answer":"..."} ends. Answer "not found" if the text does not say."""
"""System message of a root in the compact protocol."""


def parse_command(text: str) -> Command:
    """Read one command.

    Raises:
        InputError: not JSON, an unknown operation, an unknown, missing or ill-typed field.
    """
    try:
        return _PARSER.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"not a command: {first['msg']}{f' (at {where})' if where else ''}") from None


def write_command(command: Command) -> str:
    """The one way a command is written: fields in order, no white space, absent fields left out."""
    return json.dumps(command.model_dump(exclude_none=True), ensure_ascii=False, separators=(",", ":"))


def command_schema(ops: Sequence[str] = tuple(COMMANDS), variables: Iterable[str] | None = None) -> dict[str, Any]:
    """JSON schema of one command, for constrained decoding. Fields come in the order given here.

    Args:
        ops: the operations allowed now.
        variables: names that `on` may take; None allows any name. With no names `count` is not offered.
    """
    names = None if variables is None else sorted(variables)
    name: dict[str, Any] = {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,15}$"}
    existing: dict[str, Any] = name if names is None else {"enum": names}
    branches = {
        "find": [
            _object(op={"const": "find"}, text=_text(MAX_TEXT)),
            _object(op={"const": "find"}, text=_text(MAX_TEXT), store=name),
        ],
        "count": [_object(op={"const": "count"}, on=existing, what={"const": "matches"})] if names != [] else [],
        "final": [_object(op={"const": "final"}, answer=_text(MAX_ANSWER))],
    }
    return {"anyOf": [branch for op in ops for branch in branches[op]]}


def first_message(question: str, *, lines: int, characters: int) -> str:
    """The user's message that opens a run: the size of the text, and the question."""
    return f"Text: {lines} lines, {characters} characters.\nQuestion: {question}"


def find_block(matches: Sequence[Line], total: int, *, store: str | None = None, fence: str = "") -> str:
    """The result of `find`: how many lines match, and the best of them, one line each.

    Args:
        matches: best first; `LINES_SHOWN` are shown.
        total: matching lines in the whole text.
        store: name they were kept under.
        fence: where given, stands alone on a line before and after the shown lines. Lines of the text need
            none to be told apart: each stands behind its number, and none can begin a line of its own.
    """
    head = f"{total} {'match' if total == 1 else 'matches'}" + (f" in {store}" if store else "")
    shown = [f"L{line.number}: {_cut(line.text)}" for line in matches[:LINES_SHOWN]]
    return "\n".join([head, *([fence, *shown, fence] if fence and shown else shown)])


def count_block(n: int) -> str:
    """The result of `count`."""
    return f"count: {n}"


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": longest}


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
