"""The language of commands as a JSON schema for constrained decoding, and as the words of a prompt.

Both come from the registry. The schema is flat: one branch for each operation, its fields in order, `thought` first.
It is narrowed by what there is: names that exist, operations that may be used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from llamalab.rlm.commands import COMMANDS, FINAL_COMMANDS, MAX_ANSWER, MAX_THOUGHT, NAME, SUB_COMMANDS

_KEPT = ("type", "enum", "const", "minLength", "maxLength", "minimum", "maximum", "pattern")
_MANY = 64
_DOCUMENT = "^doc[1-9][0-9]{0,5}$"


def turn_schema(
    ops: Collection[str] = tuple(COMMANDS),
    *,
    variables: Collection[str] = (),
    documents: int = 1,
    answer: Mapping[str, Any] | None = None,
    thought: bool = True,
) -> dict[str, Any]:
    """JSON schema of one turn of the full protocol: one command.

    Args:
        ops: the operations allowed now.
        variables: names that exist. Where there are none, commands that need one are not offered.
        documents: how many there are; with two or more, `on` may name one of them.
        answer: JSON schema of a typed answer; without it an answer is text.
        thought: the root may think first, in a short text.
    """
    names = {
        "new": {"type": "string", "pattern": NAME},
        "variables": _names(variables, 0),
        "sources": _names(variables, documents if documents > 1 else 0),
        "answer": dict(answer) if answer is not None else {"type": "string", "minLength": 1, "maxLength": MAX_ANSWER},
    }
    branches = [_branch(op, names, thought=thought) for op in COMMANDS if op in ops]
    return {"anyOf": [branch for branch in branches if branch is not None]}


def allowed_ops(*, sub_calls: bool = True, last: bool = False) -> tuple[str, ...]:
    """The operations of a turn.

    Args:
        sub_calls: sub models may be asked.
        last: it is the last turn: only an answer is allowed.
    """
    return tuple(op for op in COMMANDS if (not last or op in FINAL_COMMANDS) and (sub_calls or op not in SUB_COMMANDS))


def longest_sentence(schema: Mapping[str, Any]) -> int:
    r"""Bytes of the longest text that a schema allows: no response needs more tokens.

    Every character of a string may be an escape of six bytes (\u0041). A schema without bounds (of a typed answer)
    counts as 4,096.
    """
    if "anyOf" in schema:
        return max(longest_sentence(branch) for branch in schema["anyOf"])
    if "const" in schema:
        return len(str(schema["const"])) + 2
    if "enum" in schema:
        return max(len(str(value)) for value in schema["enum"]) + 2
    match schema.get("type"):
        case "object" if schema.get("additionalProperties") is False:
            return 2 + sum(len(key) + 4 + longest_sentence(value) for key, value in schema["properties"].items())
        case "string" if "maxLength" in schema:
            return 2 + 6 * int(schema["maxLength"])
        case "string" if schema.get("pattern") in (NAME, _DOCUMENT):
            return 18
        case "integer" if "minimum" in schema and "maximum" in schema:
            return max(len(str(schema["minimum"])), len(str(schema["maximum"])))
        case "boolean" | "null":
            return 5
        case "array" if "maxItems" in schema:
            return 2 + int(schema["maxItems"]) * (1 + longest_sentence(schema.get("items", {})))
        case _:
            return 4096


def describe_commands(ops: Sequence[str] = tuple(COMMANDS)) -> str:
    """The operations in a prompt: one line each, its fields, those that may be left out with a question mark."""
    return "\n".join(_described(op) for op in ops)


@cache
def fields_of(op: str) -> dict[str, dict[str, Any]]:
    """The fields of an operation, but for its name and the thought: JSON schema, `required`, `default` and words."""
    found = COMMANDS[op].model_json_schema()
    fields = {}
    for key, field in found["properties"].items():
        if key not in ("op", "thought"):
            options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
            kept = {name: value for name, value in {**field, **options[0]}.items() if name != "anyOf"}
            fields[key] = {**kept, "required": key in found.get("required", ())}
    return fields


def _branch(op: str, names: Mapping[str, dict[str, Any] | None], *, thought: bool) -> dict[str, Any] | None:
    properties: dict[str, Any] = {}
    required = ["op"]
    if thought:
        properties["thought"] = {"type": "string", "maxLength": MAX_THOUGHT}
        required.insert(0, "thought")
    properties["op"] = {"const": op}
    for key, field in fields_of(op).items():
        schema = names[field["names"]] if "names" in field else {k: field[k] for k in _KEPT if k in field}
        if schema is not None:
            properties[key] = schema
        elif field["required"]:
            return None
        if field["required"]:
            required.append(key)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _names(variables: Collection[str], documents: int) -> dict[str, Any] | None:
    """Schema of a name that exists; None where none does."""
    names = sorted(variables)
    if documents > _MANY:
        pattern = {"type": "string", "pattern": _DOCUMENT}
        return {"anyOf": [{"enum": names}, pattern]} if names else pattern
    names += [f"doc{n}" for n in range(1, documents + 1)]
    return {"enum": names} if names else None


def _described(op: str) -> str:
    fields = [key if field["required"] else f"{key}?" for key, field in fields_of(op).items()]
    choices = [f" {key}: {'|'.join(field['enum'])}." for key, field in fields_of(op).items() if "enum" in field]
    said = " ".join((COMMANDS[op].__doc__ or "").split())
    return f"{op}({', '.join(fields)}) {said}{''.join(choices)}"
