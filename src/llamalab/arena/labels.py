"""Oracle labels: on responses drawn with a known probability, or from a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamalab.arena.judges import Judged, ToJudge, open_judge
from llamalab.arena.settings import OracleSettings
from llamalab.errors import InputError
from llamalab.ope.study import LEAST_LABEL_PROBABILITY


def label(
    responses: Sequence[ToJudge], settings: OracleSettings, done: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Rows of labels, in the order of the responses: {"response_id", "label", "probability"}; or, where the oracle
    failed on a response that was drawn, {"response_id", "probability", "error", "message"}.

    Args:
        responses: all logged ones.
        settings: where labels come from.
        done: ids of responses whose rows are written.

    Raises:
        InputError: the file of labels cannot be used; names its line.
        ConfigError: the oracle cannot be opened.
    """
    if settings.file is not None:
        found = read_labels(settings.file, responses, settings)
        for item in responses:
            if item.id in found and item.id not in done:
                yield {"response_id": item.id, **found[item.id]}
        return
    if settings.judge is None:
        return
    wanted = [item for item in drawn(responses, settings.fraction, settings.seed) if item.id not in done]
    if not wanted:
        return
    with closing(open_judge(settings.judge)) as oracle:
        for id, judgement in oracle.judge(wanted):
            row: dict[str, Any] = {"response_id": id}
            if isinstance(judgement, Judged):
                yield row | {"label": judgement.score, "probability": settings.fraction}
            else:
                row |= {"probability": settings.fraction}
                yield row | {"error": judgement.error, "message": judgement.message}


def drawn(responses: Sequence[ToJudge], fraction: float, seed: int) -> list[ToJudge]:
    """The responses to label: each is drawn on its own with probability `fraction`, by its id and the seed alone."""
    return [item for item in responses if uniform(seed, item.id) < fraction]


def uniform(seed: int, id: str) -> float:
    """A number in [0, 1) that looks random and is the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def read_labels(path: Path, responses: Sequence[ToJudge], settings: OracleSettings) -> dict[str, dict[str, float]]:
    """Label and probability of each response that a file of labels names.

    A line is {"response_id", "label"}, with "probability" where it is not the same for all. A response may also be
    named by "prompt_id", if the prompt has one response only: a label belongs to a response, not to a prompt.

    Raises:
        InputError: the file cannot be read, or a line cannot be used.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return _read(file, str(path), _Names.of(responses), settings)
    except OSError as error:
        raise InputError(f"The labels {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None


@dataclass(frozen=True, slots=True)
class _Names:
    """By what responses can be named: ids, and the ids of each prompt's responses."""

    ids: frozenset[str]
    of_prompt: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, responses: Sequence[ToJudge]) -> _Names:
        prompts: dict[str, list[str]] = {}
        for item in responses:
            prompts.setdefault(str(item.row.get("prompt_id")), []).append(item.id)
        return cls(frozenset(item.id for item in responses), prompts)

    def response(self, row: Mapping[str, Any], where: str) -> str:
        """The id of the response that a row is about."""
        if (id := row.get("response_id")) is not None:
            if id not in self.ids:
                raise InputError(f"{where}: there is no response {id!r} in this run.")
            return str(id)
        if (prompt := row.get("prompt_id")) is None:
            raise InputError(f"{where}: neither 'response_id' nor 'prompt_id' says which response the label is of.")
        found = self.of_prompt.get(str(prompt), ())
        if len(found) != 1:
            raise InputError(
                f"{where}: prompt {prompt!r} has {len(found)} responses, so the label needs a 'response_id'."
                if found
                else f"{where}: there is no prompt {prompt!r} in this run."
            )
        return found[0]


def _read(lines: Iterable[str], path: str, names: _Names, settings: OracleSettings) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    first: dict[str, int] = {}
    low, high = settings.range
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not valid JSON: {error}.") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: a label is an object with 'response_id' and 'label'.")
        id = names.response(row, where)
        if first.setdefault(id, number) != number:
            raise InputError(f"{where}: response {id!r} has a label in line {first[id]} already. Remove one of them.")
        value = _number(row.get("label"), "label", where)
        if not low <= value <= high:
            raise InputError(f"{where}: the label {value:g} is not between {low:g} and {high:g}, the range in oracle.")
        chance = _number(row.get("probability", settings.fraction), "probability", where)
        if not LEAST_LABEL_PROBABILITY <= chance <= 1:
            raise InputError(
                f"{where}: the probability {chance:g} of being labelled is not between {LEAST_LABEL_PROBABILITY:g} and "
                "1. Give the one with which the response was drawn."
            )
        found[id] = {"label": value, "probability": chance}
    if not found:
        raise InputError(f"{path} holds no label. Leave the oracle out: values then stand on the judge's scale.")
    return found


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: '{name}' must be a number, not {value!r}.")
    return float(value)
