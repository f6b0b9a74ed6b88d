"""Write docs/rlm-commands.md from the registry of commands: `python docs/make_commands.py`. Every example is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamalab.rlm.commands import COMMANDS, SUB_COMMANDS, check_command
from llamalab.rlm.execute import Limits, Result, State, execute, sub_calls
from llamalab.rlm.grammar import fields_of
from llamalab.rlm.text import Context, Document

PAGE = Path(__file__).with_name("rlm-commands.md")
TEXT = """\
Notes of the harbor
The access code of the Blue Harbor vault is 48213.
09:12 ERROR crane 4 took 120.5 ms
09:13 INFO crane 2 took 35 ms

Nobody remembers the access code of the North Gate vault.
10:40 ERROR crane 4 took 98 ms
"""
REPLIES = {
    "map": ["Blue Harbor", "North Gate"],
    "reduce": ["Blue Harbor: 48213. North Gate: not known."],
    "llm_query": ["Both speak of an access code; only one gives it."],
    "delegate": ["not found"],
}
HEAD = f"""# The commands of a root

Made from the registry by `docs/make_commands.py`.

A root model steers a run with these commands, one JSON object at a time, and a short `thought` before it. They are
pure functions of the documents: none reads a file, reaches a network or runs code. A small model that runs here
cannot write a malformed one, because its output is held to a schema that knows which names exist and what the budget
still allows.

**Offsets** are characters, from 0; the end is not included; negative ones count from the end, as in Python. **Lines**
have the numbers that results show, from 1; both ends are included. A range that goes too far is clipped, and the
result says so.

**Sources.** `on` names what a command works on: a variable, a document (`doc1`, `doc2`, ... in the order they were
given), or `_`, the last result. Without it, a command works on all documents, one after the other. A variable that
holds matches or a list is searched piece by piece, and what is found keeps its place in the document.

**Patterns** are of [RE2](https://github.com/google/re2/wiki/Syntax): no lookaround, no back references. They match in
any case unless they say `(?-i)`; `^` and `$` are the ends of a line, and a match lies within one line. `\\w`, `\\d`
and `\\b` are of ASCII; `\\pL` is any letter. In a line of more than 1 MiB a match may end where a window of the
search does: 64 KiB after it began, or sooner where the pattern is a large one (counted repetitions, classes of
Unicode).

**Long lines** are shown in part, around what was found. `L1@5210:` stands before the part of line 1 that begins at
offset 5210 of its document; `slice` reads on there.

**Limits.** A search has {Limits().seconds:g} seconds. When they are over, what was found until then is the result,
marked partial with the position reached. {Limits().matches:,} matches are kept, further ones counted; a result shows
at most {Limits().output:,} characters.

**`${{name}}`** in a text of `set`, `print` and `final` stands for what a variable holds. What is put in is not looked
at again, and a name that is none stays as it is: `$100` is safe. In a question to a sub model it is given as data
beside the question.

**Transcripts** of the rlm-orchestrator program are read: it has the same field names, and its `llm_reduce` and
`llm_delegate` are `reduce` and `delegate` here. What it did by generating code, `aggregate` and `map` do.

The examples below were run, in this order, on this text:

```text
{TEXT}```
"""


def page() -> str:
    """The whole page: the rules, then each command with its fields and an example."""
    state = State(Context([Document.of(TEXT, "notes.txt")]))
    sections = [HEAD]
    for op in COMMANDS:
        text, state = _section(op, state)
        sections.append(text)
    return "\n".join(sections)


def _section(op: str, state: State) -> tuple[str, State]:
    said = " ".join((COMMANDS[op].__doc__ or "").split())
    rows = [_row(name, field) for name, field in fields_of(op).items()]
    table = ["| field | | what it is |", "|---|---|---|", *rows, ""]
    example = {"op": op, **COMMANDS[op].example}
    result, state = _done(op, example, state)
    shown = ["```text", json.dumps(example, ensure_ascii=False), "", *_shown(op, result), "```", ""]
    return "\n".join([f"## {op}", "", said, "", *table, *shown]), state


def _done(op: str, example: dict[str, Any], state: State) -> tuple[Result, State]:
    command = check_command(example)
    if op not in SUB_COMMANDS:
        return execute(command, state)
    plan = sub_calls(command, state)
    return plan.combine(REPLIES[op])


def _shown(op: str, result: Result) -> list[str]:
    assert result.error is None, (op, result.error)
    if result.answer is not None:
        return [f"(the run ends) {result.answer}"]
    return [line.rstrip() for line in (result.head, *result.notes, *result.text.splitlines())]


def _row(name: str, field: dict[str, Any]) -> str:
    kind = " or ".join(f"`{value}`" for value in field["enum"]) if "enum" in field else _range(field)
    if field["required"]:
        need = "required"
    else:
        need = f"default {json.dumps(field['default'])}" if field.get("default") is not None else "optional"
    return f"| `{name}` | {kind}, {need} | {field.get('description', '')} |"


def _range(field: dict[str, Any]) -> str:
    match field.get("type"):
        case "string" if "maxLength" in field:
            return f"text up to {field['maxLength']}"
        case "string":
            return "name"
        case "integer":
            return f"{field['minimum']:,} to {field['maximum']:,}"
        case "boolean":
            return "true or false"
        case _:
            return "text, or what a schema asks for"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
