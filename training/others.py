"""Everything else: repeating, lists, stories, a few words of talk, sums."""

from __future__ import annotations

from random import Random

from training import words
from training.episode import Episode
from training.facts import filler, make_fact, question, statement, tag
from training.passages import NOT_IN_TEXT, SUB_PROMPTS

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
