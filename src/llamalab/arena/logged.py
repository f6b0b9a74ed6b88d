"""Responses that were written elsewhere, read into rows of `responses.jsonl`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from llamalab.arena.generation import response_id
from llamalab.arena.jsonl import Line, read_lines
from llamalab.errors import InputError

_REASONS = ("stop", "length", "deadline", "cancelled")


def read_responses(path: Path, prompts: Collection[str], base: str) -> list[dict[str, Any]]:
    """The responses of a file to the prompts that were drawn, in its order; those to other prompts are left out.

    A line is {"prompt_id", "response"}, and where they are known "response_id", "response_ids" (tokens), "finished" (it
    ended by itself; true unless "finish_reason" is "length"), "logprob" and "raw_logprob" (nats, at most 0).

    Raises:
        InputError: the file cannot be read, a line cannot be used, or no response is left; names file, line and field.
    """
    found: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    draws: dict[str, int] = {}
    for line in read_lines(path, growing=False):
        prompt = _id(line, "prompt_id")
        draw = draws[prompt] = draws.get(prompt, -1) + 1
        id = _id(line, "response_id") if line.fields.get("response_id") is not None else response_id(base, prompt, draw)
        first = seen.setdefault(id, line.number)
        if first != line.number:
            line.refuse(f"the response_id {id!r} is that of line {first} too. Give each response an id of its own.")
        if prompt not in prompts:
            continue
        found.append({"response_id": id, "prompt_id": prompt, "policy": base, "draw": draw, **_said(line)})
    if not found:
        raise InputError(f"{path} has no response to any of the prompts: compare 'prompt_id' here and in the prompts.")
    return found


def _said(line: Line) -> dict[str, Any]:
    reason = line.fields.get("finish_reason", "stop")
    if reason not in _REASONS:
        line.refuse(f"the field 'finish_reason' must be one of {', '.join(_REASONS)}, and is {reason!r}.")
    finished = line.fields.get("finished", reason == "stop")
    if not isinstance(finished, bool):
        line.refuse(f"the field 'finished' must be true or false, and is {finished!r}.")
    ids = line.fields.get("response_ids")
    if ids is not None and not (isinstance(ids, list) and all(isinstance(id, int) and id >= 0 for id in ids)):
        line.refuse("the field 'response_ids' must be a list of token ids: whole numbers of at least 0.")
    return {
        "response": line.text("response"),
        "response_ids": ids,
        "finish_reason": reason,
        "finished": finished,
        "logprob": line.number_or_none("logprob", most=0.0),
        "raw_logprob": line.number_or_none("raw_logprob", most=0.0),
    }


def _id(line: Line, name: str) -> str:
    value = line.fields.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        line.refuse(f"the field '{name}' must be text or a whole number, and is {value!r}.")
    return str(value)
