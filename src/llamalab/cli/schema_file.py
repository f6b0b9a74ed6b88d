"""`--schema` and `--grammar`: what output is held to, from a file."""

from __future__ import annotations

import json
from pathlib import Path

from llamalab.cli.output import decode
from llamalab.errors import SchemaError


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
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise SchemaError(f"{file}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}.") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, brackets in brackets
        raise SchemaError(f"{file} is no JSON schema: {error}.") from None
    if not isinstance(schema, dict | bool):
        raise SchemaError(f"{file} is JSON, but no JSON schema: it must be an object.")
    return text
