"""Scripted chat models for the benchmark's tests: one that steers without a fault, and worse ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamalab.engine import (
    ChatEvent,
    ChatInfo,
    Message,
    Reply,
    SamplingParams,
    Schema,
    Timings,
    TokenCount,
    Usage,
)
from llamalab.rlm.providers import Pool, Provider


@dataclass
class Scripted:
    """Says what a function of the conversation gives; a token is a character.

    Attributes:
        say: from messages to a reply.
        context: tokens.
        exact: whether it can count.
        asked: the conversations of all calls.
    """

    say: Callable[[Sequence[Message]], str]
    context: int = 20_000
    exact: bool = True
    asked: list[list[Message]] = field(default_factory=list)

    @property
    def info(self) -> ChatInfo:
        return ChatInfo("scripted", "scripted", self.context, "exact")

    def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        return TokenCount(sum(len(str(message["content"])) for message in messages), self.exact)

    def chat(
        self,
        messages: Sequence[Message],
        _params: SamplingParams | None = None,
        *,
        schema: Schema | None = None,
        **_: object,
    ) -> Reply:
        self.asked.append(list(messages))
        text = self.say(messages)
        usage = Usage(fresh=self.count_tokens(messages).n, output=len(text))
        return Reply(text, (), "stop", usage, Timings(), "scripted", schema_mode="exact" if schema else None)

    def stream(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **options: Any
    ) -> Iterator[ChatEvent]:
        yield self.chat(messages, params, **options)

    def close(self) -> None:
        pass


def pool_of(say: Callable[[Sequence[Message]], str], **options: object) -> Pool:
    return Pool([Provider("scripted", Scripted(say, **options))])


def steer(messages: Sequence[Message]) -> str:
    """What pico learned, without its mistakes: canonical questions in the compact protocol."""
    said = [str(message["content"]) for message in messages]
    question = re.search(r"Question: (.*)", said[1]).group(1)
    turn = sum(message["role"] == "assistant" for message in messages)
    if found := re.fullmatch(r"How many (.*) lines are there\?", question):
        commands = [
            {"op": "find", "text": found.group(1), "store": "hits"},
            {"op": "count", "on": "hits", "what": "matches"},
        ]
        if turn == 1 and said[-1].startswith("0 "):
            return '{"op":"final","answer":"0"}'
        return json.dumps(commands[turn] if turn < 2 else {"op": "final", "answer": said[-1].removeprefix("count: ")})
    phrase = re.fullmatch(r"What is the (.*)\?", question).group(1)
    if turn == 0:
        return json.dumps({"op": "find", "text": phrase})
    told = re.search(r" is (.*)\.$", said[-1], re.MULTILINE)
    return json.dumps({"op": "final", "answer": told.group(1) if told and phrase in said[-1] else "not found"})


def steer_or_say(messages: Sequence[Message]) -> str:
    """As `steer`; asked directly, it knows nothing."""
    return steer(messages) if len(messages) > 1 else "not found"
