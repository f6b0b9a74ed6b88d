"""A decoder that is led through the whole language: each turn it may say a part of what its schema allows.

What it says is drawn by the model, token by token, under the compiled schema; nothing is written for it. Where it is
left to itself its texts are noise and nothing is ever found, so in some turns its texts are words that do occur.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from llamalab.engine import ChatInfo, ChatModel, Message, Reply, SamplingParams, Schema, TokenCount

LOG = "".join(
    f"10:{at // 60:02}:{at % 60:02} {('INFO', 'ERROR', 'WARN')[at % 3]} user=u{at % 7} "
    f"{'login' if at % 2 else 'upload'} took {at * 37 % 90} ms\n"
    for at in range(24)
)
PROSE = (
    "The access code of the Blue Harbor vault is 48213. Ada Lovelace wrote it down.\n\n"
    "Grace Hopper asked for it twice, and NASA once.\nÇa coûte 12 €; niemand weiß, warum.\n"
)
WORDS: Mapping[str, tuple[str, ...]] = {
    "text": ("ERROR", "access code", "user=u3", "login took", "Grace Hopper", "nowhere at all"),
    "pattern": (
        "ERROR.*",
        "took ([0-9]+) ms",
        "user=(u[0-9])",
        "[A-Z][a-z]+ [A-Z][a-z]+",
        "all_caps",
        "x*",
        "(",
        "é|ß",
    ),
    "delimiter": ("\n", " ", ". ", "\n\n"),
    "value": ("a note", "${a} and ${b}", "${_}", "vault: ${hits}", ""),
    "prompt": ("How long did it take?", "What is said in ${a}?", "Who is named here?"),
    "directive": ("List the users.", "Keep the numbers."),
    "task": ("Which user had most errors?", "What is the access code?"),
    "new": ("a", "b", "hits"),
}
"""Texts that occur in the documents, or are wrong in a way that only the command itself can notice."""


@dataclass
class Steered:
    """A chat model that draws its replies, and its turns from a part of the schema. Safe from several threads.

    The draw depends on the messages alone: the same conversation is answered alike, whatever was said before.

    Attributes:
        model: that decodes.
        temperature: of the draw.
        turns: that it was asked for under a schema.
    """

    model: ChatModel
    temperature: float = 1.0
    turns: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def info(self) -> ChatInfo:
        return self.model.info

    def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        return self.model.count_tokens(messages)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        schema: Schema | None = None,
        **rest: Any,
    ) -> Reply:
        seed = int.from_bytes(hashlib.sha256(json.dumps(list(messages)).encode()).digest()[:4])
        drawn = replace(params or SamplingParams(), temperature=self.temperature, seed=seed)
        if isinstance(schema, Mapping):
            with self._lock:
                self.turns += 1
            schema = narrowed(schema, Random(seed))
        return self.model.chat(messages, drawn, schema=schema, **rest)

    def stream(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.model.close()


def narrowed(schema: Mapping[str, Any], rng: Random) -> dict[str, Any]:
    """A schema of some of the sentences of a turn's schema: one or a few operations, short texts, often with words.

    An answer is left for the end more often than chance has it: a run that ends at once uses nothing else.
    """
    branches = list(schema["anyOf"])
    going_on = [branch for branch in branches if not branch["properties"]["op"]["const"].startswith("final")]
    if going_on and rng.random() < 0.9:
        branches = going_on
    chosen = rng.sample(branches, min(len(branches), rng.choice((1, 1, 3))))
    sensible = rng.random() < 0.7
    return {**schema, "anyOf": [_narrowed(branch, rng, sensible=sensible) for branch in chosen]}


def _narrowed(branch: Mapping[str, Any], rng: Random, *, sensible: bool) -> dict[str, Any]:
    properties = {name: _field(name, field, sensible=sensible) for name, field in branch["properties"].items()}
    optional = [name for name in properties if name not in branch["required"]]
    wanted = [
        name for name in optional if rng.random() < 0.5
    ]  # a model without sense hardly ever leaves out what it may
    kept = {name: properties[name] for name in properties if name not in optional or name in wanted}
    return {**branch, "properties": kept, "required": list(kept)}


def _field(name: str, field: Mapping[str, Any], *, sensible: bool) -> dict[str, Any]:
    if "maxLength" in field and (name == "thought" or not sensible or name not in WORDS):
        return {**field, "maxLength": min(field["maxLength"], 4 if name == "thought" else 20)}
    if not sensible:
        return dict(field)
    if "pattern" in field:
        return {"enum": list(WORDS["new"])} if name in ("store", "name") else dict(field)
    if name in WORDS and "maxLength" in field:
        return {"enum": [word for word in WORDS[name] if len(word) <= field["maxLength"] and (word or name == "value")]}
    if name in ("start", "end"):
        return {**field, "minimum": -300, "maximum": 3000}
    if name in ("chunk_size", "limit"):
        return {**field, "maximum": min(field["maximum"], 2000 if name == "chunk_size" else 4)}
    return dict(field)
