"""The commands a root model may give: one registry, from which come the parser, the schema, the prompt and the docs.

A command is one JSON object: a short `thought`, the operation, its fields. The language is finite: every text has a
longest length, every number a range. Field names are those of the program that gave rise to this one, so that its
transcripts can be read; where it wrote an operation otherwise, `ALIASES` says how.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from llamalab.errors import InputError

MAX_THOUGHT = 200
MAX_TEXT = 200
MAX_PROMPT = 800
MAX_ANSWER = 1000
MAX_OFFSET = 10**10
"""Longest texts, characters, and furthest offset."""
MAX_COMMAND = 64 << 10
"""Longest reply that is looked at, characters."""

ALIASES = {"llm_reduce": "reduce", "llm_delegate": "delegate"}
"""Other names of operations."""

NAME = "^[a-z][a-z0-9_]{0,15}$"
"""Names that the schema lets a root give; the parser takes longer ones and capitals too."""

Store: TypeAlias = Annotated[
    str | None,
    Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_]{0,31}$",
        description="keep the result under this name",
        json_schema_extra={"names": "new"},
    ),
]
On: TypeAlias = Annotated[
    str | None,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,31}$",
        description="a variable, doc1, doc2, ..., or _ for the last result; without it, the whole text",
        json_schema_extra={"names": "sources"},
    ),
]
Known: TypeAlias = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,31}$",
        description="a variable",
        json_schema_extra={"names": "variables"},
    ),
]
Offset: TypeAlias = Annotated[int, Field(ge=-MAX_OFFSET, le=MAX_OFFSET)]
Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Prompt: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
Pattern: TypeAlias = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_TEXT,
        description="a regular expression of RE2, in any case; matches lie within a line",
    ),
]


class _Command(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    example: ClassVar[dict[str, Any]]
    """For the docs: this command, on the text of `docs/make_commands.py`."""

    thought: Annotated[str, Field(max_length=MAX_THOUGHT)] | None = None


class Slice(_Command):
    """Read characters: from `start` up to, not including, `end`; negative ones count from the end."""

    example = {"start": 0, "end": 60}
    op: Literal["slice"] = "slice"
    start: Annotated[Offset, Field(description="first character, from 0")]
    end: Annotated[Offset | None, Field(description="after the last; without it, to the end")] = None
    on: On = None
    store: Store = None


class Lines(_Command):
    """Read lines by their numbers, from `start` to `end`, both included; negative ones count from the end."""

    example = {"start": 2, "end": 3}
    op: Literal["lines"] = "lines"
    start: Annotated[Offset | None, Field(description="first line, from 1")] = None
    end: Annotated[Offset | None, Field(description="last line")] = None
    on: On = None
    store: Store = None


class Find(_Command):
    """Look for lines with a phrase, in any case; where none has it, for lines with all its words. Best first."""

    example = {"text": "access code", "store": "hits"}
    op: Literal["find"] = "find"
    text: Annotated[Text, Field(description="words to look for, no pattern")]
    how: Annotated[
        Literal["phrase", "all", "any"] | None, Field(description="only the phrase, all its words, or any of them")
    ] = None
    on: On = None
    store: Store = None


class Regex(_Command):
    """Find all matches of a pattern, in order."""

    example = {"pattern": "ERROR.*", "store": "errors"}
    op: Literal["regex"] = "regex"
    pattern: Pattern
    on: On = None
    store: Store = None


class Count(_Command):
    """Count lines, characters, words, or the pieces that a search found."""

    example = {"what": "matches", "on": "errors"}
    op: Literal["count"] = "count"
    what: Annotated[Literal["lines", "chars", "words", "matches"], Field(description="what to count")]
    on: On = None
    store: Store = None


class Split(_Command):
    """Cut at every occurrence of a delimiter; the pieces make a list."""

    example = {"delimiter": "\n\n", "store": "parts"}
    op: Literal["split"] = "split"
    delimiter: Annotated[str, Field(min_length=1, max_length=20, description="a text, no pattern")]
    on: On = None
    store: Store = None


class Len(_Command):
    """Count characters."""

    example: ClassVar[dict[str, Any]] = {}
    op: Literal["len"] = "len"
    on: On = None
    store: Store = None


class IndexTerms(_Command):
    """List the terms that occur most, with how often."""

    example = {"pattern": "all_caps", "min_count": 1}
    op: Literal["index_terms"] = "index_terms"
    pattern: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_TEXT,
            description="proper_nouns, titles, all_caps, or a regular expression",
        ),
    ] = "proper_nouns"
    min_count: Annotated[int, Field(ge=1, le=1_000_000, description="leave out rarer ones")] = 2
    max_terms: Annotated[int, Field(ge=1, le=500, description="at most so many")] = 500
    include_lines: Annotated[bool, Field(description="with the numbers of the first lines of each")] = False
    on: On = None
    store: Store = None


class Aggregate(_Command):
    """Compute over what a group of a pattern matches, everywhere."""

    example = {"pattern": "took ([0-9.]+) ms", "what": "mean"}
    op: Literal["aggregate"] = "aggregate"
    pattern: Pattern
    what: Annotated[
        Literal["count", "sum", "min", "max", "mean", "unique", "top"],
        Field(description="unique lists the different values, top the most frequent ones with their counts"),
    ]
    group: Annotated[
        int | None, Field(ge=0, le=20, description="of the pattern; without it the first, or the whole match")
    ] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="values that are listed")] = 20
    on: On = None
    store: Store = None


class Set(_Command):
    """Keep a text of your own under a name; ${name} in it stands for a variable."""

    example = {"name": "note", "value": "vault: 48213"}
    op: Literal["set"] = "set"
    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z][A-Za-z0-9_]{0,31}$", description="of the variable", json_schema_extra={"names": "new"}
        ),
    ]
    value: Annotated[str, Field(max_length=MAX_PROMPT, description="its text")]


class Get(_Command):
    """Look at a variable."""

    example = {"name": "errors"}
    op: Literal["get"] = "get"
    name: Known


class Print(_Command):
    """Look at a variable, or at a text with ${name} for variables."""

    example = {"value": "${note}, ${errors}"}
    op: Literal["print"] = "print"
    value: Annotated[str | None, Field(max_length=MAX_PROMPT, description="a text")] = None
    var: Annotated[Known | None, Field()] = None


class Map(_Command):
    """Ask a sub model about each piece, in parallel: each match or item of `on`, or chunks of a text."""

    example = {"prompt": "Who is named here? One name or none.", "on": "hits", "store": "names"}
    op: Literal["map"] = "map"
    prompt: Annotated[Prompt, Field(description="the question; it sees only its piece")]
    chunk_size: Annotated[int, Field(ge=200, le=100_000, description="characters of a chunk of a text")] = 4000
    limit: Annotated[int, Field(ge=1, le=1000, description="pieces at most")] = 50
    on: On = None
    store: Store = None


class Reduce(_Command):
    """Have a sub model go through all of a text in chunks, and bring the findings together into one."""

    example = {"directive": "List the vaults and their codes.", "store": "summary"}
    op: Literal["reduce"] = "reduce"
    directive: Annotated[Prompt, Field(description="what to find or keep")]
    chunk_size: Annotated[int, Field(ge=200, le=100_000, description="characters of a chunk")] = 10_000
    overlap: Annotated[int, Field(ge=0, le=10_000, description="characters that a chunk repeats of the one before")] = (
        500
    )
    on: On = None
    store: Store = None


class LlmQuery(_Command):
    """Ask a sub model one question; it sees only the question, and what `on` names."""

    example = {"prompt": "Which of these is newer?", "on": "hits", "store": "newer"}
    op: Literal["llm_query"] = "llm_query"
    prompt: Annotated[Prompt, Field(description="the question")]
    on: Annotated[On, Field(description="a variable or document that is given with it")] = None
    store: Store = None


class Delegate(_Command):
    """Give a task to a run of its own, over the same text or over what `on` names."""

    example = {"task": "What is the access code of the North Gate vault?", "store": "code"}
    op: Literal["delegate"] = "delegate"
    task: Annotated[Prompt, Field(description="a question, complete in itself")]
    max_iterations: Annotated[int, Field(ge=1, le=50, description="turns it may take")] = 10
    on: On = None
    store: Store = None


class Final(_Command):
    """Give the answer and end; ${name} in it stands for a variable."""

    example = {"answer": "48213"}
    op: Literal["final"] = "final"
    answer: Annotated[JsonValue, Field(description="the answer", json_schema_extra={"names": "answer"})]


class FinalVar(_Command):
    """Answer with a variable, and end."""

    example = {"name": "code"}
    op: Literal["final_var"] = "final_var"
    name: Known


Command: TypeAlias = (
    Slice | Lines | Find | Regex | Count | Split | Len | IndexTerms | Aggregate | Set | Get | Print
    | Map | Reduce | LlmQuery | Delegate | Final | FinalVar
)  # fmt: skip
COMMANDS: dict[str, type[Command]] = {
    kind.model_fields["op"].default: kind
    for kind in (
        Slice, Lines, Find, Regex, Count, Split, Len, IndexTerms, Aggregate, Set, Get, Print,
        Map, Reduce, LlmQuery, Delegate, Final, FinalVar,
    )
}  # fmt: skip
"""All operations, in the order of the prompt."""
SUB_COMMANDS = frozenset({"map", "reduce", "llm_query", "delegate"})
"""Those that ask sub models."""
FINAL_COMMANDS = frozenset({"final", "final_var"})
"""Those that end a run."""

_MOST_DIGITS = 1000  # of an integer; Python reads no more than 4,300
_PARSER: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="op")])


def parse_command(text: str) -> Command:
    """Read one command.

    Raises:
        InputError: not one JSON object, a key twice, an unknown operation, an unknown, missing or ill-typed field.
    """
    if len(text) > MAX_COMMAND:
        raise InputError(f"not a command: {len(text)} characters; a command has at most {MAX_COMMAND}")
    try:
        found = strict_json(text)
        text.encode()
    except RecursionError:
        raise InputError("not a command: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"not a command: {str(error)[:200]}") from None
    return check_command(found)


def check_command(found: object) -> Command:
    """A command from a JSON value that was read.

    Raises:
        InputError: as `parse_command`.
    """
    if isinstance(found, dict):
        found = {key: value for key, value in found.items() if value is not None}
        alias = ALIASES.get(str(found.get("op")))
        if alias is not None:
            found = {**found, "op": alias}
            found.pop("levels", None)  # which of its languages a nested run may use; here there is one
        op = found.get("op")
        if isinstance(op, str) and op not in COMMANDS:
            raise InputError(f"not a command: there is no operation {op[:40]!r}; there are {', '.join(COMMANDS)}")
    try:
        command = _PARSER.validate_python(found)
        json.dumps(command.model_dump(), ensure_ascii=False, allow_nan=False).encode()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:100]
        raise InputError(f"not a command: {first['msg']}{f' (at {where})' if where else ''}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a command: {str(error)[:200]}") from None
    return command


def write_command(command: Command) -> str:
    """The one way a command is written: fields in order, no white space, what was not given left out."""
    fields = {"op": command.op, **command.model_dump(exclude_unset=True, exclude_none=True, exclude={"op", "thought"})}
    thought = {} if command.thought is None else {"thought": command.thought}
    return json.dumps({**thought, **fields}, ensure_ascii=False, separators=(",", ":"))


def strict_json(text: str) -> Any:
    """A JSON value in which no key of an object stands twice, and every number is one.

    Raises:
        ValueError: it is none; says what is wrong.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_number, parse_int=_integer)


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")
