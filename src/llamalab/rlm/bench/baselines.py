"""What there is without a loop: one call that is shown the text, and one that is shown the lines grep would find.

Both count by the tokeniser of the model that is asked, so that their figures stand beside those of a run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from llamalab.engine import ChatModel, Message, SamplingParams
from llamalab.rlm.providers import Pool, PoolReply
from llamalab.rlm.search import FUNCTION_WORDS

REPLY_TOKENS = 200
"""Longest reply."""
GREP_TOKENS = 4_000
"""Most tokens of lines that the call after grep is shown."""
_PARAMS = SamplingParams(temperature=0.0, max_tokens=REPLY_TOKENS)
_CHARACTERS = 3.0
"""Characters of a token, for models that cannot count: cautious, so that what is sent fits."""
_BLOCK, _BLOCKS = 50_000, 20
_ASKING = frozenset("what which who whom how many much when where there that this text lines line answer alone".split())
_WORD = re.compile(r"[\w-]+")


@dataclass(frozen=True, slots=True)
class Baseline:
    """An answer of one call.

    Attributes:
        reply: of the pool.
        cut: the text was not shown whole.
    """

    reply: PoolReply
    cut: bool


def direct(question: str, text: str, pool: Pool) -> Baseline:
    """Ask with the whole text; of one that does not fit, with as much of its beginning as of its end.

    Raises:
        LlamalabError: as `Pool.chat`.
    """
    model = pool.of("root")[0].model
    shown = _fitting(model, question, text)
    return Baseline(pool.chat("root", _messages(question, shown), _PARAMS), cut=len(shown) < len(text))


def grep(question: str, text: str, pool: Pool) -> Baseline:
    """Ask with the lines that hold the question's words, rare ones first, as they stand in the text.

    Raises:
        LlamalabError: as `Pool.chat`.
    """
    model = pool.of("root")[0].model
    room = min(_room(model, question), GREP_TOKENS)
    kept: list[tuple[int, str]] = []
    for number, line in matching_lines(question, text):
        room -= _tokens(model, f"L{number}: {line}\n")
        if room < 0:
            break
        kept.append((number, line))
    shown = "\n".join(f"L{number}: {line}" for number, line in sorted(kept))
    return Baseline(pool.chat("root", _messages(question, shown or "(no line matches)"), _PARAMS), cut=True)


def matching_lines(question: str, text: str) -> list[tuple[int, str]]:
    """Numbers (from 1) and texts of the lines that hold a word of the question, best first.

    A line counts the sum of log(lines / lines with the word) over the words of the question in it; the earlier of two
    equal ones is the better.
    """
    lines = text.split("\n")
    words = {word for word in _WORD.findall(question.casefold()) if len(word) > 2} - FUNCTION_WORDS - _ASKING
    if not words:
        return []
    any_word = re.compile(rf"(?<!\w)(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})(?!\w)")
    found = {number: frozenset(any_word.findall(line.casefold())) for number, line in enumerate(lines, start=1)}
    often = Counter(word for held in found.values() for word in held)
    weight = {word: math.log((len(lines) + 1) / n) for word, n in often.items()}
    ranked = sorted((-sum(weight[word] for word in sorted(held)), number) for number, held in found.items() if held)
    return [(number, lines[number - 1]) for _, number in ranked]


def reading_tokens(model: ChatModel, text: str) -> int:
    """Tokens of a text; of a long one, from blocks that are spread evenly over it."""
    starts = range(0, len(text), _BLOCK)
    chosen = starts if len(starts) <= _BLOCKS else [starts[at * len(starts) // _BLOCKS] for at in range(_BLOCKS)]
    blocks = [text[start : start + _BLOCK] for start in chosen]
    counted = sum(_tokens(model, block) for block in blocks)
    return round(counted * len(text) / max(sum(map(len, blocks)), 1))


def _messages(question: str, text: str) -> list[Message]:
    return [{"role": "user", "content": f"Text:\n{text}\n\nQuestion: {question}"}]


def _room(model: ChatModel, question: str) -> int:
    """Tokens that are left for a text."""
    return model.info.context_length - REPLY_TOKENS - _prompt_tokens(model, _messages(question, "")) - 8


def _fitting(model: ChatModel, question: str, text: str) -> str:
    room = _room(model, question)
    keep = min(len(text), max(room * 8, 2))
    while True:
        shown = text if keep >= len(text) else f"{text[: keep // 2]}\n[...]\n{text[len(text) - keep // 2 :]}"
        needed = _tokens(model, shown)
        if needed <= room or keep < 2:
            return shown
        keep = min(int(keep * room / needed * 0.99), keep - 1)


def _tokens(model: ChatModel, text: str) -> int:
    """Of a text inside a message: what a message with it has more than one without."""
    empty: list[Message] = [{"role": "user", "content": "."}]
    return _prompt_tokens(model, [{"role": "user", "content": f".{text}"}]) - _prompt_tokens(model, empty)


def _prompt_tokens(model: ChatModel, messages: list[Message]) -> int:
    count = model.count_tokens(messages)
    if count.exact:
        return count.n
    return math.ceil(sum(len(str(message["content"])) for message in messages) / _CHARACTERS)
