"""`--schema` and `--grammar`: what output is held to, from a file."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from llamalab.cli.output import decode
from llamalab.errors import SchemaError

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_MOST_DIGITS = 4000  # Python reads integers of 4,300; no schema needs one of them


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        SchemaError: it cannot be read.
        InputError: it is not UTF-8.
    """
    try:
        return decode(file.expanduser().read_bytes(), str(file))
    except OSError as error:
        raise SchemaError(f"{file} cannot be read: {error.strerror or error}.") from None


def read_schema(file: Path) -> str:
    """A JSON schema, as it stands in the file.

    Raises:
        SchemaError: it cannot be read, is not JSON, or no schema.
        InputError: it is not UTF-8.
    """
    text = read_text(file)
    try:
        schema = json.loads(text, parse_int=float)  # of any number of digits
    except json.JSONDecodeError as error:
        raise SchemaError(f"{file}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}.") from None
    except RecursionError:
        raise SchemaError(f"{file} is no JSON schema: brackets stand in brackets, hundreds deep.") from None
    if not isinstance(schema, dict | bool):
        raise SchemaError(f"{file} is JSON, but no JSON schema: it must be an object.")
    flaw = _first_flaw(text)
    if flaw is not None:
        at, what = flaw
        raise SchemaError(f"{file}, line {text.count(chr(10), 0, at) + 1}: {what}.")
    return text


def _first_flaw(text: str) -> tuple[int, str] | None:
    """What Python reads as JSON and others do not, or otherwise: where it stands, and what is wrong with it."""
    keys: list[set[str] | None] = []  # of each object that is open; None for a list
    is_key = False
    for token in _TOKEN.finditer(text):
        at, word = token.start(), token[0]
        if word in "{[":
            keys.append(set() if word == "{" else None)
            is_key = word == "{"
        elif word in "}]":
            keys.pop()
        elif word in ",:":
            is_key = word == "," and keys[-1] is not None
        elif word[0] == '"':
            seen = keys[-1] if is_key and keys else None
            if seen is not None:
                if (name := json.loads(word)) in seen:
                    return at, f"the key {json.dumps(name)[:60]} stands twice in one object"
                seen.add(name)
        elif word not in ("true", "false", "null"):
            if sum(map(str.isdigit, word)) > _MOST_DIGITS:
                return at, f"a number of {sum(map(str.isdigit, word)):,} digits is more than a schema can use"
            if not math.isfinite(float(word)):
                return at, f"{word[:60]} is no number of JSON, or too large for one"
    return None
