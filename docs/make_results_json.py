"""Write docs/results-json.md from the records that `results.json` holds: `python docs/make_results_json.py`."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from llamalab.arena.results import VERSION, Results

PAGE = Path(__file__).with_name("results-json.md")
HEAD = f"""# results.json, field by field

Made from the records in `llamalab.arena.results` by `docs/make_results_json.py`. This is version {VERSION} of the
layout; `version` in the file says which one it has.

An evaluation writes `results.json` beside `report.html`, and the report holds nothing that this file does not. It is
JSON in UTF-8, one object, `Results`. A number that is not known is `null`, never 0 and never NaN. The same rows give
the same bytes, except for `created` where a time is given.

Two rules keep a program that reads it honest:

- Quote `headline`, and only that. It is `null` unless `verdict.state` is `"SHOWN"`. `values` holds every estimate, the
  refused ones too, to look at.
- Read `scale` before you compare two files. A mean judge score and a mean outcome are different things.

In Python, `llamalab.arena.results.read_results(path)` reads and checks it. A field that is missing, unknown or of
another type is an error that names it.
"""


def page() -> str:
    """The whole page: the object, then every record below it in the order of its first use."""
    return "\n".join([HEAD, *(_section(kind) for kind in _records(Results))])


def described(kind: type) -> dict[str, str]:
    """What the docstring of a record says about each of its fields."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", said) for name, said in entries}


def _section(kind: type) -> str:
    says = described(kind)
    hints = get_type_hints(kind)
    rows = [f"| `{each.name}` | {_words(hints[each.name])} | {_cell(says[each.name])} |" for each in fields(kind)]
    about = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:")[0]
    return "\n".join(
        [f"## {kind.__name__}", "", about, "", "| field | holds | what it is |", "|---|---|---|", *rows, ""]
    )


def _records(kind: type) -> list[type]:
    found = [kind]
    for each in found:  # grows while it is read
        for hint in get_type_hints(each).values():
            found += [below for below in _inside(hint) if below not in found]
    return found


def _inside(hint: Any) -> Iterator[type]:
    if is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for argument in get_args(hint):
        yield from _inside(argument)


def _words(hint: Any) -> str:
    """A type as JSON has it; a tuple has two numbers, or any number of one kind."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in arguments)
    if origin is types.UnionType:
        return " or ".join("null" if each is type(None) else _words(each) for each in arguments)
    if origin is Mapping:
        return f"object, by name: {_words(arguments[1])}"
    if arguments == (float, float):
        return "pair of numbers"
    if origin is tuple and arguments[-1] is ...:
        inner = _words(arguments[0])
        return inner.replace("pair", "list of pairs") if inner.startswith("pair") else f"list of: {inner}"
    if is_dataclass(hint) and isinstance(hint, type):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[hint]


def _cell(text: str) -> str:
    """Text that a table can hold."""
    text = re.sub(r"\b(\w+)\*\*(\w+)", r"\1^\2", text).replace("|", "\\|")
    return re.sub(r"\bNone\b", "null", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
