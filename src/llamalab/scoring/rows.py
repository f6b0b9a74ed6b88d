"""Rows of JSON lines: what is to be scored, read one by one; what was found, written.

A line that cannot be used does not stop the others: it becomes a `BadRow`, which says why.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from llamalab.engine import Message
from llamalab.errors import EngineError, LlamalabError, NonFinite
from llamalab.scoring.policy import Policy
from llamalab.scoring.result import LogProbResult

RowId: TypeAlias = str | int

BAD_ROW = "bad_row"
"""Type of the error of a line that cannot be used."""

_MARK = b"\xef\xbb\xbf"  # byte order mark
_LARGEST_ID = 2**31
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Row:
    """A response to score.

    Attributes:
        line: of the input, from 1.
        id: as given; without one, the line.
        prompt: text, or messages.
        response: text; None where only ids are given.
        finished: the response ended by itself.
        response_ids: its tokens, where they are known; they count, not the text.
    """

    line: int
    id: RowId
    prompt: str | tuple[Message, ...]
    response: str | None
    finished: bool = True
    response_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that cannot be used.

    Attributes:
        line: of the input, from 1.
        id: as given, where that much could be read.
        message: what is wrong with it, and what to do.
    """

    line: int
    id: RowId | None
    message: str


class _Fault(Exception):
    """What is wrong with a line."""


def read_rows(lines: Iterable[bytes]) -> Iterator[Row | BadRow]:
    """The rows of a file, in order; blank lines are none.

    A row whose id an earlier one has is a bad one: what was found could not be told apart.
    """
    seen: dict[RowId, int] = {}
    for number, line in enumerate(lines, 1):
        if is_blank(line):
            continue
        row = _parsed(number, line.removeprefix(_MARK) if number == 1 else line)
        if isinstance(row, Row):
            first = seen.setdefault(row.id, number)
            if first != number:
                message = f"The id {row.id!r} is that of line {first} too. Give each row an id of its own."
                row = BadRow(number, row.id, message)
        yield row


def is_blank(line: bytes) -> bool:
    """Whether a line is no row."""
    return not line.removeprefix(_MARK).strip()


def result_record(policy: Policy, found: LogProbResult | LlamalabError, *, tokens: bool) -> dict[str, Any]:
    """What is written of one response under one policy: a value, or a typed error.

    Args:
        policy: that it was scored under.
        found: as `Session.score` gives it.
        tokens: write each token as well.
    """
    if isinstance(found, LogProbResult):
        broken = _not_finite(policy, found)
        if broken is None:
            return _value_record(found, tokens=tokens)
        found = broken
    return error_record(error_type(found), str(found))


def error_record(kind: str, message: str) -> dict[str, Any]:
    """What is written of a response that has no value."""
    return {"logprob": None, "error": kind, "message": message}


def error_type(error: LlamalabError) -> str:
    """The name of an error in a row: that of its class, in lower case and without "Error".

    `ContextOverflow` is context_overflow, `ProviderError` is provider.
    """
    return _CAPITAL.sub("_", type(error).__name__.removesuffix("Error")).lower()


def as_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON, UTF-8; what is no proper Unicode (half a surrogate pair) is escaped."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(record, allow_nan=False)}\n".encode()


def _parsed(number: int, content: bytes) -> Row | BadRow:
    id: RowId | None = None
    try:
        fields = _fields(content)
        id = _id(fields, number)
        return Row(
            line=number,
            id=id,
            prompt=_prompt(fields),
            response=_response(fields),
            finished=_finished(fields),
            response_ids=_response_ids(fields),
        )
    except _Fault as fault:
        return BadRow(number, id, str(fault))


def _fields(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise _Fault(
            f"The line is not UTF-8 text: byte 0x{content[error.start]:02x} at offset {error.start} ({error.reason})."
        ) from None
    except json.JSONDecodeError as error:
        raise _Fault(f"The line is not valid JSON: {error.msg} at column {error.colno}.") from None
    except RecursionError:
        raise _Fault("The line is nested too deeply.") from None
    except ValueError as error:  # a number with thousands of digits
        raise _Fault(f"The line is not valid JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise _Fault(f"The line is no JSON object but {_kind(fields)}.")
    return fields


def _refuse(name: str) -> None:
    raise _Fault(f"The line is not valid JSON: {name} is no JSON number.")


def _id(fields: Mapping[str, Any], number: int) -> RowId:
    id = fields.get("id")
    if id is None:
        return number
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise _Fault(f"The field 'id' must be text or a whole number, not {_kind(id)}.")
    return id


def _prompt(fields: Mapping[str, Any]) -> str | tuple[Message, ...]:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if prompt is None and messages is None:
        raise _Fault("The field 'prompt' is missing (or 'messages', a list of role and content).")
    if prompt is not None and messages is not None:
        raise _Fault("The row has 'prompt' and 'messages'; give one of them.")
    if messages is None:
        if not isinstance(prompt, str):
            raise _Fault(f"The field 'prompt' must be text, not {_kind(prompt)}. A conversation goes into 'messages'.")
        return prompt
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise _Fault("The field 'messages' must be a list of objects with 'role' and 'content'.")
    return tuple(messages)


def _response(fields: Mapping[str, Any]) -> str | None:
    response = fields.get("response")
    if response is None and fields.get("response_ids") is None:
        raise _Fault("The field 'response' is missing.")
    if not isinstance(response, str | None):
        raise _Fault(f"The field 'response' must be text, not {_kind(response)}.")
    return response


def _finished(fields: Mapping[str, Any]) -> bool:
    finished = fields.get("finished", True)
    if not isinstance(finished, bool):
        raise _Fault(f"The field 'finished' must be true or false, not {_kind(finished)}.")
    return finished


def _response_ids(fields: Mapping[str, Any]) -> tuple[int, ...] | None:
    ids = fields.get("response_ids")
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(
        isinstance(id, int) and not isinstance(id, bool) and 0 <= id < _LARGEST_ID for id in ids
    ):
        raise _Fault("The field 'response_ids' must be a list of token ids: whole numbers of at least 0.")
    return tuple(ids)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _not_finite(policy: Policy, result: LogProbResult) -> EngineError | None:
    """A result that cannot be: minus infinity is a value only where a sampler cuts the vocabulary."""
    if result.value is None and not policy.decoding.truncates:
        return NonFinite("A token has no probability at all, though this policy cuts nothing off: the logits overflow.")
    numbers = [result.value, *(token.logprob for token in result.tokens)]
    if any(number is not None and not math.isfinite(number) for number in numbers):
        return NonFinite("A log probability is no finite number: the model's logits are not.")
    return None


def _value_record(result: LogProbResult, *, tokens: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "logprob": result.value,
        "n_tokens": result.n_tokens,
        "raw_logprob": result.raw_total,
        "out_of_support": result.out_of_support,
        "method": result.method,
        "finished": result.finished,
        "n_end": result.n_end,
        "n_prefix": result.n_prefix,
        "template": result.template,
        "agrees_jointly": result.agrees_jointly,
        "matches_text": result.matches_text,
        "fingerprint": result.fingerprint.get("key"),
    }
    if tokens:
        record["tokens"] = [
            {
                "id": token.id,
                "text": token.text,
                "raw": token.raw,
                "logprob": token.logprob,
                "rank": token.rank,
                "entropy": token.entropy,
            }
            for token in result.tokens
        ]
    return record
