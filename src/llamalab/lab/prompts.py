"""The texts that engines are compared on, and their token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from llamalab.engine import Engine
from llamalab.errors import InputError

BUILT_IN = {
    "prose": (
        "The ferry left the harbour an hour before dawn. Nobody spoke much; the fishermen drank their coffee and "
        "watched the lights of the town grow small, and a boy in a yellow coat counted the buoys aloud until his "
        "mother asked him to stop. By eight the fog had lifted, and there was the island, closer than anyone "
        "had thought."
    ),
    "code": (
        "def median(values: list[float]) -> float:\n"
        '    """The middle value, or the mean of the two middle ones."""\n'
        "    ordered = sorted(values)\n"
        "    half = len(ordered) // 2\n"
        "    if len(ordered) % 2:\n"
        "        return ordered[half]\n"
        "    return (ordered[half - 1] + ordered[half]) / 2\n"
    ),
    "languages": (
        "Der Zug fährt um 17:45 Uhr ab. ¿Dónde está la estación? Il pleut depuis trois jours. Где моя книга? "
        "今日は天気がいいですね。 明天我们去看电影。 مرحبا بالعالم. שלום. नमस्ते 🙂👩‍🔬"
    ),
    "data": '{"id": 90210, "price": 1234.5, "tags": ["a", "b"], "at": "2024-02-29T23:59Z", "ok": true, "note": null}',
}
"""Texts by name: prose, code, several scripts, numbers."""

LENGTH, LONG = 400, 2048
"""Positions of the long prompt: by default, and where more time may be spent."""

_RANDOM = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """One sequence that both engines see.

    Attributes:
        name: what it is, for people.
        ids: of its tokens, BOS included where the model wants one.
    """

    name: str
    ids: tuple[int, ...]


def built_in_prompts(a: Engine, b: Engine, *, length: int = LENGTH) -> list[Prompt]:
    """The built-in texts, all of them repeated up to `length` positions, and ids drawn from the whole vocabulary."""
    prompts = tokenised(BUILT_IN, a, b)
    bos = _bos(a)
    texts = [id for prompt in prompts for id in prompt.ids[len(bos) :]]
    prompts.append(Prompt("long", (*bos, *islice(cycle(texts), max(0, length - len(bos))))))
    return [*prompts, Prompt("every kind of token", _drawn(a, b))]


def tokenised(texts: dict[str, str], a: Engine, b: Engine) -> list[Prompt]:
    """The ids of each text, which must be the same for both engines.

    Raises:
        InputError: the first place where they differ; or a text without a token.
    """
    prompts = []
    for name, text in texts.items():
        one, other = a.tokenize(text), b.tokenize(text)
        if one != other:
            raise InputError(_first_difference(name, one, other, a, b))
        if not one:
            raise InputError(f"The prompt {name} is empty.")
        prompts.append(Prompt(name, (*_bos(a), *one)))
    return prompts


def parse_prompts(content: str, source: str) -> dict[str, str]:
    """The prompts of a file by name ("line 3"): one a line, as text, or as JSON with the key "prompt" or "text".

    Raises:
        InputError: a line of JSON without such a key, with its number; or no prompt at all.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            found[f"line {number}"] = _text(line, f"{source}:{number}")
    if not found:
        raise InputError(f"{source} holds no prompt: one a line is expected.")
    return found


def check_vocabularies(a: Engine, b: Engine) -> str | None:
    """A note where one engine has more rows of logits than the other.

    Raises:
        InputError: the first token of both that stands for other bytes.
    """
    common = min(a.info.n_vocab, b.info.n_vocab)
    for id in range(common):
        one, other = a.token_bytes(id), b.token_bytes(id)
        if one and other and one != other:  # control tokens have no bytes, and their names differ between formats
            raise InputError(
                f"These are models of different vocabularies: token {id} is {one!r} for {a.info.provider} and "
                f"{other!r} for {b.info.provider}."
            )
    if a.info.n_vocab == b.info.n_vocab:
        return None
    return (
        f"{a.info.provider} has {a.info.n_vocab} logits in a row and {b.info.provider} {b.info.n_vocab}: "
        f"the first {common} are compared."
    )


def _text(line: str, where: str) -> str:
    if not line.lstrip().startswith("{"):
        return line
    try:
        record = json.loads(line)
    except ValueError:
        return line  # a text that begins with a brace
    text = record.get("prompt", record.get("text"))
    if not isinstance(text, str):
        raise InputError(f'{where}: a JSON line needs a text under "prompt" or "text".')
    return text


def _bos(engine: Engine) -> tuple[int, ...]:
    info = engine.info
    return (info.bos_id,) if info.add_bos and info.bos_id is not None else ()


def _drawn(a: Engine, b: Engine) -> tuple[int, ...]:
    """Ids spread over the vocabulary that both have, in an order without a pattern."""
    common = min(a.info.n_vocab, b.info.n_vocab)
    step = max(1, int(common * 0.618))  # the golden ratio: neighbours in the sequence are far apart in the vocabulary
    return (*_bos(a), *(i * step % common for i in range(1, _RANDOM + 1)))


def _first_difference(name: str, one: Sequence[int], other: Sequence[int], a: Engine, b: Engine) -> str:
    at = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))
    said = []
    for engine, ids in ((a, one), (b, other)):
        token = f"{ids[at]} ({engine.token_bytes(ids[at], special=True)!r})" if at < len(ids) else "nothing more"
        said.append(f"{engine.info.provider} has {token}")
    return (
        f"The tokenisers differ, so the engines cannot be given the same text: in the prompt {name}, at token {at}, "
        f"{' and '.join(said)}."
    )
