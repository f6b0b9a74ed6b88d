"""The sub model's task: answer from a passage."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from training.episode import Episode
from training.facts import Fact, filler, make_fact, question, sibling, statement

NOT_IN_TEXT = "not in the text"
"""What pico answers when a passage does not hold the answer."""

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


def plain_passage(rng: Random, _level: float) -> Episode:
    """As `passage`, but mostly two facts in plain words: which of them is asked for is all there is to learn."""
    (n,) = rng.choices((1, 2, 3, 4, rng.randint(5, 12)), (12, 50, 20, 10, 8))
    return _passage_of(rng, n, plain=0.55)


def _passage_of(rng: Random, n: int, plain: float = 0.0) -> Episode:
    """A passage of `n` facts; with probability `plain` in canonical words throughout and with nothing else in it."""
    facts, fact = passage_facts(rng, n)
    known = rng.random() >= (0.12 if plain else 0.18)
    style = "canonical" if rng.random() < plain else "any"
    sentences = [statement(rng, f, style) for f in facts if known or f is not fact]
    if style == "any":
        sentences += [filler(rng) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
    if not sentences:
        sentences = [statement(rng, sibling(rng, fact))]
    rng.shuffle(sentences)
    layout = CANONICAL_LAYOUT if style == "canonical" or rng.random() < 0.35 else rng.choice(LAYOUTS)
    asked = question(rng, fact, style)
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
