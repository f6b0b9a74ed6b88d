"""Prompts: read from a source, checked, drawn by a seed.

A draw depends on the ids of the prompts and the seed alone, not on the order of the rows: the prompts with the lowest
hashes are taken. So a draw of 200 holds the draw of 100, and a row that is added changes little.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llamalab.arena.prompt_files import Place, rows_of
from llamalab.arena.settings import PromptSettings
from llamalab.errors import InputError

FIELDS = ("prompt", "messages", "conversation_a", "conversation", "question", "instruction", "text")
"""Where a prompt may stand, in this order; `conversation_a` is Chatbot Arena's layout."""

IDS = ("prompt_id", "id", "question_id", "conversation_id")
"""Where its id may stand."""

_CONVERSATIONS = ("conversation_a", "conversation")  # a user's first words, and what somebody answered
_OWN = ("prompt_id", "prompt", "messages", "stratum")


def read_prompts(settings: PromptSettings) -> list[dict[str, Any]]:
    """The prompts of a configuration as rows of `prompts.jsonl`, in the order of their source.

    A row has "prompt_id", "prompt" and, where the source has them, "messages" (a conversation), "stratum" and all other
    fields of its row ("reference", "candidates", ...).

    Raises:
        InputError: a row that cannot be used, an id that is there twice, or fewer prompts than were asked for; names
            file and line.
        ProviderError, ConfigError: as `rows_of`.
    """
    found: list[dict[str, Any]] = []
    seen: dict[str, Place] = {}
    for place, row in rows_of(settings.source, settings.split):
        prompt = _prompt(row, settings, place, number=len(found) + 1)
        if prompt is None:
            continue
        first = seen.setdefault(prompt["prompt_id"], place)
        if first != place:
            raise InputError(
                f"{_at(place)}, field '{_id_field(row)}': the id {prompt['prompt_id']!r} is that of {_at(first)} too. "
                "Give each prompt an id of its own."
            )
        found.append(prompt)
    if len(found) < 2:
        raise InputError(
            f"{settings.source} has {len(found)} prompt{'s' * (len(found) != 1)}: errors are estimated from the spread "
            "between prompts, so at least 2 are needed. Give more in prompts.file (--prompts)."
        )
    if settings.num is not None and settings.num > len(found):
        raise InputError(
            f"{settings.source} has {len(found)} prompts, and prompts.num (--num-prompts) asks for {settings.num}. "
            "Ask for fewer, or leave it out to take all."
        )
    return drawn(found, settings.num, settings.seed)


def drawn(prompts: Sequence[dict[str, Any]], num: int | None, seed: int) -> list[dict[str, Any]]:
    """`num` of `prompts`, in their order; with strata, from each by its share (largest remainders first)."""
    if num is None or num >= len(prompts):
        return list(prompts)
    strata: dict[str, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        strata[prompt.get("stratum", "")].append(number)
    taken = set()
    for stratum, count in _shares({name: len(rows) for name, rows in strata.items()}, num).items():
        order = sorted(strata[stratum], key=lambda number: _hash(seed, prompts[number]["prompt_id"]))
        taken.update(order[:count])
    return [prompt for number, prompt in enumerate(prompts) if number in taken]


def _shares(sizes: Mapping[str, int], num: int) -> dict[str, int]:
    """How many of `num` come from each stratum."""
    total = sum(sizes.values())
    counts = {name: num * size // total for name, size in sizes.items()}
    rest = sorted(sizes, key=lambda name: (-(num * sizes[name] % total), name))
    for name in rest[: num - sum(counts.values())]:
        counts[name] += 1
    return counts


def _hash(seed: int, id: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{id}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _prompt(row: Mapping[str, Any], settings: PromptSettings, place: Place, *, number: int) -> dict[str, Any] | None:
    """A row of `prompts.jsonl`; None for a conversation of a data set in which nothing was asked."""
    name = settings.field or next((each for each in FIELDS if row.get(each) is not None), None)
    if name is None or row.get(name) is None:
        wanted = f"'{settings.field}'" if settings.field else f"'{FIELDS[0]}' (or one of {', '.join(FIELDS[1:])})"
        raise InputError(f"{_at(place)}: the field {wanted} is missing. Name the right one in prompts.field.")
    found: dict[str, Any] = {"prompt_id": _id(row, place, number)}
    if name in _CONVERSATIONS:
        asked = _first_question(row[name], place, name)
        if not asked.strip():
            return None
        found["prompt"] = asked
    else:
        found |= _text(row[name], place, name)
        found |= {key: value for key, value in row.items() if key not in (*_OWN, name)}
    if settings.stratify is not None:
        if row.get(settings.stratify) is None:
            raise InputError(f"{_at(place)}: the field '{settings.stratify}' (prompts.stratify) is missing.")
        found["stratum"] = str(row[settings.stratify])
    return found


def _text(value: Any, place: Place, name: str) -> dict[str, Any]:
    if isinstance(value, str):
        if not value.strip():
            raise InputError(f"{_at(place)}, field '{name}': the prompt is empty. Take the row out.")
        return {"prompt": value}
    turns = list(_turns(value, place, name))
    asked = [turn["content"] for turn in turns if turn["role"] == "user"]
    if not asked or turns[-1]["role"] != "user":
        raise InputError(f"{_at(place)}, field '{name}': the conversation has to end with a user's message.")
    return {"prompt": asked[-1], "messages": turns}


def _first_question(value: Any, place: Place, name: str) -> str:
    return next((turn["content"] for turn in _turns(value, place, name) if turn["role"] == "user"), "")


def _turns(value: Any, place: Place, name: str) -> Iterator[dict[str, str]]:
    if not isinstance(value, list):
        raise InputError(f"{_at(place)}, field '{name}': a prompt is text, or a list of messages.")
    for turn in value:
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise InputError(f"{_at(place)}, field '{name}': a message has 'role' and 'content', both of them text.")
        yield {"role": turn["role"], "content": turn["content"]}


def _id_field(row: Mapping[str, Any]) -> str:
    return next((each for each in IDS if row.get(each) is not None), IDS[0])


def _id(row: Mapping[str, Any], place: Place, number: int) -> str:
    """The id as text; a row without one is known by its number."""
    name = _id_field(row)
    id = row.get(name, number)
    if isinstance(id, bool) or not isinstance(id, str | int) or id == "":
        raise InputError(f"{_at(place)}, field '{name}': an id is text or a whole number, not {id!r}.")
    return str(id)


def _at(place: Place) -> str:
    return f"{place[0]}, line {place[1]}"
