"""The root's tasks: steer over a text by commands, in the compact protocol."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from llamalab.rlm.compact import (
    COMPACT_PROMPT,
    NOT_FOUND,
    Count,
    Final,
    Find,
    count_block,
    find_block,
    first_message,
    write_command,
)
from llamalab.rlm.search import Line
from training import words
from training.episode import Episode
from training.facts import Fact, make_fact, question, sibling, statement

STORE = "hits"
"""The variable a counting root keeps its matches in."""


def root_find(rng: Random, _level: float) -> Episode:
    """Find, one or two matching lines, final."""
    fact = make_fact(rng)
    lines = [statement(rng, fact, "canonical" if rng.random() < 0.4 else "any")]
    if rng.random() < 0.2:
        lines.insert(rng.randint(0, 1), _mention(rng, fact))
    total = len(lines) if rng.random() < 0.8 else len(lines) + rng.randint(1, 40)
    return _root(rng, "root find", fact, (fact.phrase, _block(rng, lines, total)), answer=fact.value)


def root_retry(rng: Random, _level: float) -> Episode:
    """No line matches; look for the entity alone, and take the attribute asked for."""
    fact = make_fact(rng)
    while not fact.attribute.told:
        fact = make_fact(rng)
    lines = [statement(rng, fact, "told")]
    if rng.random() < 0.6:
        lines.insert(rng.randint(0, 1), statement(rng, sibling(rng, fact)))
    total = len(lines) if rng.random() < 0.6 else len(lines) + rng.randint(1, 9)
    miss = (fact.phrase, _block(rng, [], 0))
    return _root(rng, "root retry", fact, miss, (fact.entity, _block(rng, lines, total)), answer=fact.value)


def root_not_found(rng: Random, _level: float) -> Episode:
    """Neither the phrase nor the entity is there, or the lines about the entity do not say."""
    fact = make_fact(rng)
    lines = []
    if rng.random() < 0.4:
        lines = [statement(rng, sibling(rng, fact)) for _ in range(rng.randint(1, 2))]
    miss = (fact.phrase, _block(rng, [], 0))
    return _root(rng, "root not found", fact, miss, (fact.entity, _block(rng, lines, len(lines))), answer=NOT_FOUND)


CANONICAL_COUNT = "How many {W} lines are there?"
COUNTS = (
    "How many lines contain {W}?",
    "How many lines mention {W}?",
    "How many lines have {W} in them?",
    "How many lines with {W} are there?",
    "How often does {W} occur?",
    "How many times does {W} appear?",
    "Count the {W} lines.",
    "Count the lines that contain {W}.",
    "Count the lines with {W}.",
    "What is the number of {W} lines?",
    "What is the number of lines with {W}?",
    "Tell me how many lines say {W}.",
    "Tell me how many {W} lines there are.",
    "How many {W} entries are there?",
    "How many entries mention {W}?",
    "How many {W} messages does the log have?",
    "How many {W} events were logged?",
    "In how many lines does {W} occur?",
    "Give the number of lines containing {W}.",
    "Give me the count of {W} lines.",
    "On how many lines is {W} written?",
    "How many lines talk about {W}?",
    "Please count {W} in the text.",
)
HELD_OUT_COUNTS = (
    "What is the total of {W} lines?",
    "How many of the lines include {W}?",
    "Determine how many {W} lines exist.",
    "How many lines do you see with {W}?",
)
LEVELS = ("ERROR", "WARN", "WARNING", "INFO", "DEBUG", "FATAL", "TRACE", "NOTICE", "CRITICAL")
EVENTS = (
    "timeout",
    "login",
    "logout",
    "retry",
    "upload",
    "download",
    "restart",
    "backup",
    "payment",
    "delivery",
    "refund",
    "crash",
)


def root_count(rng: Random, _level: float, *, style: str = "any") -> Episode:
    """Find and store, count, final."""
    word = count_word(rng)
    total = min(int(2 ** rng.uniform(0, 12)) - (rng.random() < 0.1), 9999)
    lines = [log_line(rng, word) for _ in range(min(total, 2))]
    asked = count_question(rng, style).replace("{W}", word)
    turns = [
        _opening(rng, asked),
        write_command(Find(text=word, store=STORE)),
        _block(rng, lines, total, store=STORE),
    ]
    if total:
        turns += [write_command(Count(on=STORE)), count_block(total)]
    turns.append(write_command(Final(answer=str(total))))
    return Episode("root count", tuple(turns), root_prompt(rng))


def count_question(rng: Random, style: str = "any") -> str:
    """A question for a number of lines, with {W} for the word. `style`: canonical, any (of training), or held_out."""
    if style == "held_out":
        return rng.choice(HELD_OUT_COUNTS)
    if style == "canonical" or rng.random() < 0.4:
        return CANONICAL_COUNT
    return rng.choice(COUNTS)


def count_word(rng: Random) -> str:
    """A word that marks the lines to be counted."""
    pick = rng.random()
    if pick < 0.45:
        return rng.choice(LEVELS)
    if pick < 0.6:
        return rng.choice(EVENTS)
    return (
        rng.choice(words.NOUNS)
        if pick < 0.75
        else words.syllables(rng).upper()
        if pick < 0.85
        else words.syllables(rng)
    )


def log_line(rng: Random, word: str) -> str:
    """A line of a log that holds `word`."""
    what = f"{rng.choice(words.NOUNS)} {rng.choice(EVENTS)}"
    clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}"
    return rng.choice(
        (
            f"{clock} {word} {what}",
            f"{word} {what} after {digits2(rng)} ms",
            f"[{word}] {what}",
            f"{rng.randint(2019, 2026)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d} {word} {what}",
            f"{clock} [{word}] node{rng.randint(1, 99)}: {what}",
            f"{what}: {word}",
        )
    )


def digits2(rng: Random) -> str:
    return words.digits(rng, rng.randint(1, 4))


PROMPT_VARIANTS = (
    COMPACT_PROMPT,
    COMPACT_PROMPT,
    COMPACT_PROMPT,
    COMPACT_PROMPT,
    """\
Steer by JSON commands over a text that is too long to read.
{"op":"find","text":"..."} looks for lines, "store":"hits" keeps them.
{"op":"count","on":"hits","what":"matches"} counts what was kept.
{"op":"final","answer":"..."} gives the answer, or "not found".""",
    """\
One JSON command per turn: find, count or final. You search a long text to answer a question.
If the text does not say, the answer is "not found".""",
)


def root_prompt(rng: Random) -> str:
    """The system message: mostly the canonical one."""
    return rng.choice(PROMPT_VARIANTS)


def _root(rng: Random, task: str, fact: Fact, *searches: tuple[str, str], answer: str) -> Episode:
    turns = [_opening(rng, question(rng, fact))]
    for text, block in searches:
        turns += [write_command(Find(text=text)), block]
    return Episode(task, (*turns, write_command(Final(answer=answer))), root_prompt(rng))


def _opening(rng: Random, asked: str) -> str:
    lines = int(2 ** rng.uniform(3, 21))
    return first_message(asked, lines=lines, characters=lines * rng.randint(20, 110))


def _block(rng: Random, lines: Sequence[str], total: int, store: str | None = None) -> str:
    top = max(total, int(2 ** rng.uniform(3, 21)))
    numbered = [Line(rng.randint(1, top), text) for text in lines]
    fence = "".join(rng.choice("0123456789abcdef") for _ in range(32)) if rng.random() < 0.05 else ""
    return find_block(numbered, total, store=store, fence=fence)


def _mention(rng: Random, fact: Fact) -> str:
    """A line that names what is asked for and does not give it."""
    return fact.fill(
        rng.choice(
            (
                "Nobody remembers the {A} of the {E}.",
                "Ask at the desk for the {A} of the {E}.",
                "The {A} of the {E} will change soon.",
                "Two people asked for the {A} of the {E}.",
            )
        )
    )
