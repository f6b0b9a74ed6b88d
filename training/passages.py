"""The sub model's task: answer from a passage."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from training.episode import Episode
from training.facts import CANONICAL_STATEMENT, Fact, filler, make_fact, question, statement

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
    """Some facts and up to five questions, one after another. `level` in [0, 1] sets how many facts there can be.

    The further questions are what teaches to tell facts apart: the same passage, another answer.
    """
    most = 2 + round(10 * level)
    return _passage(rng, rng.randint(1, min(most, 4)) if rng.random() < 0.75 else rng.randint(1, most))


def passage_of_alike(rng: Random, _level: float) -> Episode:
    """As `passage`, of two to four facts that mostly share their attribute: only the entity tells them apart."""
    return _passage(rng, rng.choice((2, 2, 2, 3, 4)), alike=0.85)


def passage_asked_again(rng: Random, level: float) -> Episode:
    """As `passage`, but the same fact may be asked for again: what was answered says nothing about what comes."""
    most = 2 + round(6 * level)
    return _passage(rng, rng.randint(1, 3) if rng.random() < 0.75 else rng.randint(1, most), alike=0.5, again=True)


def _passage(rng: Random, n: int, alike: float = 0.35, *, again: bool = False) -> Episode:
    style = "canonical" if rng.random() < 0.5 else "any"
    facts, absent = passage_facts(rng, n + 1, alike=alike)
    facts.remove(absent)
    sentences = [statement(rng, fact, style) for fact in facts]
    if style == "any":
        sentences += [filler(rng) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
    rng.shuffle(sentences)
    layout = CANONICAL_LAYOUT if style == "canonical" or rng.random() < 0.35 else rng.choice(LAYOUTS)
    joint = "\n" if "\n" in layout and rng.random() < 0.4 else " "
    turns: list[str] = []
    most = rng.randint(1, 5 if n <= 6 else 3)
    wanted = rng.choices(facts, k=most) if again else rng.sample(facts, min(n, most))
    if rng.random() < 0.25:
        wanted[rng.randrange(len(wanted))] = absent
    for fact in wanted:
        asked = question(rng, fact, style)
        answer = NOT_IN_TEXT if fact is absent else fact.value
        if fact is not absent and rng.random() < 0.2:
            asked, answer = f"{asked} Answer in a full sentence.", fact.fill(CANONICAL_STATEMENT)
        turns += [asked if turns else lay_out(layout, sentences, asked, joint), answer]
    return Episode("passage", tuple(turns), rng.choice(SUB_PROMPTS) if rng.random() < 0.1 else None)


def passage_facts(
    rng: Random, n: int, *, held_out: bool = False, alike: float = 0.35
) -> tuple[list[Fact], Fact]:
    """`n` facts about different things, some about the same entity or attribute, and the one to ask for.

    `alike` is the probability that a fact about another entity takes an attribute that is already there.
    """
    fact = make_fact(rng, held_out=held_out)
    facts = [fact]
    while len(facts) < n:
        if rng.random() < 0.3:
            other = make_fact(rng, entity=rng.choice(facts).entity)
        else:
            other = make_fact(rng, held_out=held_out)
            if rng.random() < alike:
                same = rng.choice(facts).attribute
                other = Fact(other.entity, same, same.value(rng))
        if all((other.entity, other.attribute.name) != (f.entity, f.attribute.name) for f in facts):
            facts.append(other)
    return facts, fact


def lay_out(layout: str, sentences: Sequence[str], asked: str, joint: str = " ") -> str:
    return layout.replace("{Q}", asked).replace("{P}", joint.join(sentences))
