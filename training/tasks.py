"""What pico learns: each task makes one conversation at a time, from chance alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from llamalab.rlm.commands import (
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
from training.facts import Fact, filler, make_fact, question, statement, tag

NOT_IN_TEXT = "not in the text"
"""What pico answers when a passage does not hold the answer."""

STORE = "hits"
"""The variable a counting root keeps its matches in."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One conversation to learn from: alternating user and assistant turns, after an optional system message."""

    task: str
    turns: tuple[str, ...]
    system: str | None = None


# ---- root: steer over a text by commands -------------------------------------------------------------------------


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
        lines.insert(rng.randint(0, 1), statement(rng, _sibling(rng, fact)))
    total = len(lines) if rng.random() < 0.6 else len(lines) + rng.randint(1, 9)
    miss = (fact.phrase, _block(rng, [], 0))
    return _root(rng, "root retry", fact, miss, (fact.entity, _block(rng, lines, total)), answer=fact.value)


def root_not_found(rng: Random, _level: float) -> Episode:
    """Neither the phrase nor the entity is there, or the lines about the entity do not say."""
    fact = make_fact(rng)
    lines = []
    if rng.random() < 0.4:
        lines = [statement(rng, _sibling(rng, fact)) for _ in range(rng.randint(1, 2))]
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


def _sibling(rng: Random, fact: Fact) -> Fact:
    """Another attribute of the same entity."""
    while True:
        other = make_fact(rng, entity=fact.entity)
        if other.attribute.name != fact.attribute.name:
            return other


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


# ---- sub: answer from a passage ----------------------------------------------------------------------------------

CANONICAL_LAYOUT = "{P} {Q}"
LAYOUTS = (
    "{P}\n{Q}",
    "{P}\n\n{Q}",
    "Text: {P}\nQuestion: {Q}",
    "Text:\n{P}\n\nQuestion: {Q}",
    "Passage: {P}\n\nQuestion: {Q}",
    "Context: {P}\n{Q}",
    "Read this: {P} Now answer: {Q}",
    "Read the text and answer the question.\n{P}\n{Q}",
    "{Q}\n\n{P}",
    "Question: {Q}\nText: {P}",
    "{Q} Here is the text: {P}",
    "Use this text: {P}\nThen answer: {Q}",
    "Here are some notes. {P} {Q}",
    "Notes:\n{P}\n{Q}",
    "I read this: {P} So tell me: {Q}",
    "From the text below, answer: {Q}\n{P}",
    "Facts: {P}\nQ: {Q}",
    "Facts: {P}\nQ: {Q}\nA:",
    "Document: {P}\nQuery: {Q}",
    "Answer from the text only. {P} {Q}",
    "<text>\n{P}\n</text>\n{Q}",
)
HELD_OUT_LAYOUTS = (
    "This is what I know: {P} My question: {Q}",
    "Look at the following lines.\n{P}\nWhat I ask: {Q}",
    "Information: {P}\nAsked: {Q}",
    "Please study {P} and reply to this: {Q}",
)
SUB_PROMPTS = (
    "Answer from the text.",
    "You answer questions about a text. If the text does not say, answer: not in the text",
    "You are a helpful assistant.",
    "Answer briefly.",
)


def passage(rng: Random, level: float) -> Episode:
    """One fact among several is asked for. `level` in [0, 1] sets how many there can be."""
    most = 1 + round(11 * level)
    return _passage_of(rng, rng.randint(1, most) if rng.random() < 0.6 else rng.randint(1, min(most, 4)))


def short_passage(rng: Random, level: float) -> Episode:
    """As `passage`, but mostly one to three facts."""
    return _passage_of(rng, rng.randint(1, 3) if rng.random() < 0.7 else rng.randint(1, 1 + round(11 * level)))


def _passage_of(rng: Random, n: int) -> Episode:
    facts, fact = passage_facts(rng, n)
    known = rng.random() >= 0.18
    sentences = [statement(rng, f) for f in facts if known or f is not fact]
    sentences += [filler(rng) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
    if not sentences:
        sentences = [statement(rng, _sibling(rng, fact))]
    rng.shuffle(sentences)
    layout = CANONICAL_LAYOUT if rng.random() < 0.35 else rng.choice(LAYOUTS)
    asked = question(rng, fact)
    if known and rng.random() < 0.25:
        asked += " Answer in a full sentence."
        return _passage(rng, layout, sentences, asked, fact.fill("The {A} of the {E} is {V}."))
    return _passage(rng, layout, sentences, asked, fact.value if known else NOT_IN_TEXT)


def passage_facts(rng: Random, n: int, *, held_out: bool = False) -> tuple[list[Fact], Fact]:
    """`n` facts about different things, some about the same entity or attribute, and the one to ask for."""
    fact = make_fact(rng, held_out=held_out)
    facts = [fact]
    while len(facts) < n:
        if rng.random() < 0.3:
            other = make_fact(rng, entity=rng.choice(facts).entity)
        else:
            other = make_fact(rng, held_out=held_out)
            if rng.random() < 0.35:
                same = rng.choice(facts).attribute
                other = Fact(other.entity, same, same.value(rng))
        if all((other.entity, other.attribute.name) != (f.entity, f.attribute.name) for f in facts):
            facts.append(other)
    return facts, fact


def lay_out(layout: str, sentences: Sequence[str], asked: str, joint: str = " ") -> str:
    return layout.replace("{Q}", asked).replace("{P}", joint.join(sentences))


def _passage(rng: Random, layout: str, sentences: Sequence[str], asked: str, answer: str) -> Episode:
    joint = "\n" if "\n" in layout and rng.random() < 0.4 else " "
    system = rng.choice(SUB_PROMPTS) if rng.random() < 0.15 else None
    return Episode("passage", (lay_out(layout, sentences, asked, joint), answer), system)


# ---- the rest ----------------------------------------------------------------------------------------------------

REPEATS = (
    "Repeat after me: {X}",
    "Repeat: {X}",
    "Say: {X}",
    "Say this: {X}",
    "Say exactly this: {X}",
    "Please repeat: {X}",
    "Please say: {X}",
    "Copy this: {X}",
    "Copy: {X}",
    "Copy the following text: {X}",
    "Echo: {X}",
    "Echo this: {X}",
    "Write: {X}",
    "Write this down: {X}",
    "Write exactly: {X}",
    "Print: {X}",
    "Output this text: {X}",
    "Say the following: {X}",
    "Can you say this? {X}",
    "Repeat the following.\n{X}",
    "Repeat this word for word: {X}",
    "Type this: {X}",
)
HELD_OUT_REPEATS = ("Give this back to me: {X}", "Now you say: {X}", "Send back: {X}", "Reproduce this text: {X}")


def repeat(rng: Random, level: float) -> Episode:
    """Say the same again."""
    text = something(rng, 2 + round(14 * max(level, 0.2)))
    asked = REPEATS[0] if rng.random() < 0.3 else rng.choice(REPEATS)
    return Episode("repeat", (asked.replace("{X}", text), text))


def repeat_number(rng: Random, _level: float) -> Episode:
    """Say the same digits again."""
    text = words.digits(rng, rng.randint(3, 9)) if rng.random() < 0.7 else tag(rng)
    return Episode("repeat", (rng.choice(REPEATS).replace("{X}", text), text))


def something(rng: Random, most: int) -> str:
    """Up to `most` words, made-up words and numbers, or a sentence."""
    if rng.random() < 0.25:
        return statement(rng, make_fact(rng)) if rng.random() < 0.5 else filler(rng)

    def one() -> str:
        pick = rng.random()
        if pick < 0.35:
            return rng.choice(words.NOUNS + words.ADJECTIVES)
        if pick < 0.75:
            return words.syllables(rng) if rng.random() < 0.5 else words.syllables(rng).lower()
        return words.digits(rng, rng.randint(1, 7)) if pick < 0.95 else words.person(rng)

    return rng.choice((" ", " ", " ", ", ")).join(one() for _ in range(rng.randint(1, most)))


GROUPS = {
    "fruits": words.FRUITS,
    "colors": words.COLORS,
    "animals": words.ANIMALS,
    "tools": words.TOOLS,
    "days": words.DAYS,
    "months": words.MONTHS,
}
NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}
LISTS = (
    "List {N} {G}.",
    "Name {N} {G}.",
    "Give me {N} {G}.",
    "Tell me {N} {G}.",
    "Write down {N} {G}.",
    "Can you name {N} {G}?",
    "Can you list {N} {G}?",
    "I need {N} {G}.",
    "Please list {N} {G}.",
    "Please name {N} {G}.",
    "Say {N} {G}.",
    "What are {N} {G}?",
    "Make a list of {N} {G}.",
    "Which {N} {G} do you know?",
    "Think of {N} {G}.",
    "{N} {G}, please.",
    "Give a list of {N} {G}.",
    "Show me {N} {G}.",
    "Do you know {N} {G}?",
    "Find me {N} {G}.",
)
HELD_OUT_LISTS = ("Come up with {N} {G}.", "Let me hear {N} {G}.")


def simple_list(rng: Random, _level: float) -> Episode:
    """So many of a kind, all different."""
    group, n = rng.choice(list(GROUPS)), rng.choice(list(NUMBER_WORDS))
    asked = rng.choice(LISTS).replace("{N}", NUMBER_WORDS[n]).replace("{G}", group)
    return Episode("list", (asked[0].upper() + asked[1:], ", ".join(rng.sample(GROUPS[group], n))))


STORIES = (
    "Write a short story about {X}.",
    "Write a story about {X}.",
    "Tell me a story about {X}.",
    "Tell me a short story about {X}.",
    "Tell a story about {X}.",
    "Tell us about {X} in a few sentences.",
    "Please write a story about {X}.",
    "Please tell me a story about {X}.",
    "Can you tell a story about {X}?",
    "Can you write a story about {X}?",
    "I want to hear a story about {X}.",
    "Make up a story about {X}.",
    "Invent a story about {X}.",
    "A short story about {X}, please.",
    "Give me a story about {X}.",
    "Write a few lines about {X}.",
    "Write a tale about {X}.",
    "Tell me a tale about {X}.",
    "A bedtime story about {X}, please.",
    "Could you tell a story about {X}?",
)
HELD_OUT_STORIES = ("Let me read a story about {X}.", "Compose a story about {X}.")


def story(rng: Random, _level: float) -> Episode:
    """A few sentences about what was asked for."""
    animal, place = rng.choice(words.ANIMALS), rng.choice(words.PLACES)
    subject, where = f"{'an' if animal[0] in 'aeiou' else 'a'} {animal}", ""
    name = rng.choice(words.FIRST_NAMES) if rng.random() < 0.6 else words.syllables(rng)
    if rng.random() < 0.4:
        subject += f" named {name}"
    if rng.random() < 0.3:
        where = f" in the {place}"
    return Episode("story", (rng.choice(STORIES).replace("{X}", subject + where), _tale(rng, animal, name, place)))


def _tale(rng: Random, animal: str, name: str, place: str) -> str:
    a = "an" if animal[0] in "aeiou" else "a"
    friend = rng.choice([x for x in words.ANIMALS if x != animal])
    b = "an" if friend[0] in "aeiou" else "a"
    thing = rng.choice(words.TOOLS + words.FRUITS)
    c = "an" if thing[0] in "aeiou" else "a"
    parts = [
        rng.choice(
            (
                f"Once there was {a} {animal} named {name} who lived in the {place}.",
                f"In the {place} lived {a} {animal} named {name}.",
            )
        ),
        rng.choice(
            (
                f"One day {name} found {c} {thing}.",
                f"One morning {name} lost {c} {thing}.",
                f"One evening {name} heard a strange sound.",
            )
        ),
        rng.choice(
            (
                f"Then {b} {friend} came and asked for help.",
                f"{name} met {b} {friend}, and they talked for a long time.",
            )
        ),
        rng.choice(
            (
                f"Together they walked through the {place}.",
                f"{name} was not afraid.",
                f"The {friend} laughed and sat down.",
            )
        ),
        rng.choice(
            (
                f"In the end {name} and the {friend} were friends.",
                f"And so {name} went home happy.",
                f"From then on the {animal} was never alone.",
            )
        ),
    ]
    return " ".join(parts)


TALK = (
    (("Hello", "Hello!", "Hi", "Hi!", "Good morning", "Hey", "Hello there", "Good day"), "Hello! How can I help?"),
    (
        ("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself."),
        "I am pico, a very small language model.",
    ),
    (
        ("What can you do?", "How can you help?", "What are you good at?", "What do you know?", "Help"),
        "I can answer from a text you give me, repeat what you say, and tell short stories.",
    ),
    (("How are you?", "How do you do?", "Are you well?"), "I am well. What can I do for you?"),
    (("Thank you", "Thanks", "Thanks!", "Thank you very much."), "You are welcome."),
    (("Bye", "Goodbye", "Good night", "See you"), "Goodbye!"),
    (
        ("Who made you?", "Where do you come from?", "Who trained you?"),
        "I come with llamalab, which trained me on text it made itself.",
    ),
    (
        ("How big are you?", "How many parameters do you have?", "What size are you?"),
        "I have a few million parameters.",
    ),
)


def talk(rng: Random, _level: float) -> Episode:
    """A word of greeting; questions about pico itself; what it cannot know."""
    if rng.random() < 0.3:
        fact = make_fact(rng)
        return Episode("talk", (question(rng, fact), NOT_IN_TEXT))
    asked, answer = rng.choice(TALK)
    system = rng.choice(SUB_PROMPTS) if rng.random() < 0.3 else None
    return Episode("talk", (rng.choice(asked), answer), system)


SUMS = (
    "What is {A} plus {B}?",
    "{A} + {B} =",
    "{A}+{B}",
    "Add {A} and {B}.",
    "What is {A} + {B}?",
    "What is the sum of {A} and {B}?",
    "How much is {A} plus {B}?",
    "{A} plus {B}?",
    "Compute {A} + {B}.",
    "Calculate {A} plus {B}.",
    "Tell me {A} plus {B}.",
    "Sum {A} and {B}.",
    "What do {A} and {B} make?",
    "What does {A} + {B} give?",
    "Work out {A} + {B}.",
    "Please add {A} and {B}.",
    "How much is {A} + {B}?",
    "What do you get for {A} plus {B}?",
    "Give me {A} + {B}.",
    "{A} and {B} together make what?",
)


def sums(rng: Random, _level: float) -> Episode:
    """Sums of two-digit numbers; one pair in ten is held out."""
    while True:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if not words.is_held_out(f"{a}+{b}"):
            return Episode("sum", (rng.choice(SUMS).replace("{A}", str(a)).replace("{B}", str(b)), str(a + b)))


Task = Callable[[Random, float], Episode]
EARLY: dict[Task, float] = {
    root_find: 0.15,
    root_retry: 0.09,
    root_not_found: 0.07,
    root_count: 0.08,
    passage: 0.40,
    repeat: 0.10,
    simple_list: 0.02,
    story: 0.04,
    talk: 0.03,
    sums: 0.02,
}
"""Each task with its share of the episodes in the first part of training."""

LATE: dict[Task, float] = {
    root_find: 0.17,
    root_retry: 0.10,
    root_not_found: 0.06,
    root_count: 0.11,
    short_passage: 0.36,
    repeat: 0.07,
    repeat_number: 0.05,
    simple_list: 0.015,
    story: 0.03,
    talk: 0.025,
    sums: 0.01,
}
"""The same while the learning rate falls: exact copying is what is left to learn, and many facts are out of reach."""
