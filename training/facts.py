"""Facts: an entity has an attribute of some value. How they are stated, and how they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from training import words
from training.words import digits


def _code(rng: Random) -> str:
    return digits(rng, rng.choice([4, 5, 5, 5, 5, 6, 7]))


def _number(rng: Random) -> str:
    return digits(rng, rng.randint(1, 4))


def _person(rng: Random) -> str:
    return words.person(rng)


def _word(rng: Random) -> str:
    return rng.choice(words.NOUNS) if rng.random() < 0.6 else words.syllables(rng).lower()


def _place(rng: Random) -> str:
    return words.syllables(rng)


def tag(rng: Random) -> str:
    """Letters and digits, like a serial number."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    return f"{letters}-{digits(rng, rng.randint(2, 4))}"


def _unit(*units: str) -> Callable[[Random], str]:
    return lambda rng: f"{digits(rng, rng.randint(1, 3))} {rng.choice(units)}"


def _clock(rng: Random) -> str:
    return f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}"


def _date(rng: Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(words.MONTHS)}"


def _year(rng: Random) -> str:
    return str(rng.randint(1400, 2030))


def _color(rng: Random) -> str:
    return rng.choice(words.COLORS)


@dataclass(frozen=True, slots=True)
class Attribute:
    """Something an entity has. `told` are statements that do not use the attribute's own words."""

    name: str
    value: Callable[[Random], str]
    told: tuple[str, ...] = ()


ATTRIBUTES = (
    Attribute(
        "access code",
        _code,
        ("To open the {E}, enter {V}.", "Dial {V} at the {E} to get in.", "The {E} opens with {V}."),
    ),
    Attribute("pin", _code, ("Type {V} to unlock the {E}.", "The lock of the {E} takes {V}.")),
    Attribute("phone number", lambda rng: digits(rng, 7), ("Call the {E} at {V}.", "You reach the {E} under {V}.")),
    Attribute("serial number", tag, ("The plate on the {E} reads {V}.", "The {E} is registered as {V}.")),
    Attribute("room number", _number, ("Visitors of the {E} go to room {V}.", "In the {E}, look for room {V}.")),
    Attribute("password", _word, ("Say {V} to enter the {E}.", "The guard of the {E} wants to hear {V}.")),
    Attribute("owner", _person, ("The {E} belongs to {V}.", "{V} bought the {E}.")),
    Attribute("keeper", _person, ("{V} looks after the {E}.", "The {E} is kept by {V}.")),
    Attribute("director", _person, ("The {E} is led by {V}.", "{V} runs the {E}.")),
    Attribute("founder", _person, ("{V} started the {E}.", "The {E} was set up by {V}.")),
    Attribute("architect", _person, ("{V} designed the {E}.", "The plans of the {E} were drawn by {V}.")),
    Attribute("color", _color, ("The {E} is painted {V}.", "From afar the {E} looks {V}.")),
    Attribute("location", _place, ("The {E} lies in {V}.", "You find the {E} in {V}.")),
    Attribute("height", _unit("meters", "feet"), ("The {E} stands {V} tall.", "The {E} rises {V} above the ground.")),
    Attribute("weight", _unit("tons", "kilos"), ("On the scale the {E} shows {V}.",)),
    Attribute("price", _unit("dollars", "euros"), ("The {E} costs {V}.", "You pay {V} for the {E}.")),
    Attribute(
        "capacity", _unit("people", "liters", "seats"), ("The {E} holds {V}.", "There is space for {V} in the {E}.")
    ),
    Attribute("opening time", _clock, ("The {E} opens at {V}.", "Doors of the {E} open at {V}.")),
    Attribute("closing time", _clock, ("The {E} shuts at {V}.",)),
    Attribute("year of construction", _year, ("The {E} was built in {V}.", "Workers finished the {E} in {V}.")),
    Attribute("deadline", _date, ("The {E} must be ready by {V}.",)),
    Attribute("next inspection", _date, ("The {E} will be checked on {V}.",)),
    Attribute("temperature", _unit("degrees"), ("In the {E} the thermometer shows {V}.",)),
    Attribute("motto", _word, ("Above the door of the {E} is written {V}.",)),
    Attribute("speed limit", _unit("miles per hour"), ("Near the {E} drive at most {V}.",)),
    Attribute("number of workers", _number, ("{V} workers are busy in the {E}.",)),
    Attribute("secret word", _word),
    Attribute("lucky number", _number),
    Attribute("badge", tag),
    Attribute("main supplier", _person),
    Attribute("network name", _word),
    Attribute("budget", _unit("dollars")),
)

CANONICAL_STATEMENT = "The {A} of the {E} is {V}."
STATEMENTS = (
    "The {E} has the {A} {V}.",
    "{A}, {E}: {V}",
    "For the {E}, the {A} is {V}.",
    "{E}: {A} {V}.",
    "{E}, {A}: {V}",
    "As {A} of the {E} we noted {V}.",
    "It is {V} that serves as {A} of the {E}.",
    "The {A} for the {E} is {V}.",
    "{V} is the {A} of the {E}.",
    "Note: the {A} of the {E} is {V}.",
    "The {E} lists {V} as its {A}.",
    "The {A} of the {E} was set to {V}.",
    "Since last week the {A} of the {E} is {V}.",
    "Remember that the {A} of the {E} is {V}.",
    "The record says that the {E} has {A} {V}.",
    "By the way, the {A} of the {E} is {V}.",
    "According to the list, the {A} of the {E} is {V}.",
    "Everybody knows that the {A} of the {E} is {V}.",
    "The {A} of the {E} is now {V}.",
    "The {E} uses {V} as {A}.",
    "Regarding the {E}: its {A} is {V}.",
    "The {A} of the {E} equals {V}.",
    "One of the special {A}s for {E} is: {V}.",
    "The {E} reports {A} = {V}.",
)
HELD_OUT_STATEMENTS = (
    "We were told that {V} is now the {A} of the {E}.",
    "The {E} keeps {V} as the {A}.",
    "Under {A} the file of the {E} shows {V}.",
    "The {E} came with the {A} {V}.",
)

CANONICAL_QUESTION = "What is the {A} of the {E}?"
QUESTIONS = (
    "Tell me the {A} of the {E}.",
    "Which {A} does the {E} have?",
    "What {A} does the {E} have?",
    "Give the {A} of the {E}.",
    "I need the {A} of the {E}.",
    "Find the {A} of the {E}.",
    "What's the {A} of the {E}?",
    "Please give me the {A} of the {E}.",
    "Can you tell me the {A} of the {E}?",
    "Do you know the {A} of the {E}?",
    "The {A} of the {E} is what?",
    "For the {E}, what is the {A}?",
    "What is the {A} for the {E}?",
    "State the {A} of the {E}.",
    "{A} of the {E}?",
    "{E}: what is the {A}?",
    "Look up the {A} of the {E}.",
    "What does the text say about the {A} of the {E}?",
    "According to the text, what is the {A} of the {E}?",
    "What is the {E}'s {A}?",
    "Somebody asks for the {A} of the {E}. What is it?",
    "What is the special {A} for {E} mentioned in the provided text?",
    "What is given as the {A} of the {E}?",
    "Name the {A} of the {E}.",
)
HELD_OUT_QUESTIONS = (
    "Could you find out the {A} of the {E}?",
    "I would like to know the {A} of the {E}.",
    "Report the {A} that belongs to the {E}.",
    "What would be the {A} of the {E}?",
)


@dataclass(frozen=True, slots=True)
class Fact:
    """Entity, attribute and value."""

    entity: str
    attribute: Attribute
    value: str

    def fill(self, template: str) -> str:
        """Put the fact into a template with {E}, {A} and {V}; a sentence begins with a capital, a value as it is."""
        text = template.replace("{E}", self.entity).replace("{A}", self.attribute.name).replace("{V}", self.value)
        return text if template.startswith("{V}") else text[0].upper() + text[1:]

    @property
    def phrase(self) -> str:
        """What a root looks for first."""
        return f"{self.attribute.name} of the {self.entity}"


def make_fact(rng: Random, *, held_out: bool = False, made_up: bool | None = None, entity: str | None = None) -> Fact:
    """A random fact, about `entity` if given."""
    attribute = rng.choice(ATTRIBUTES)
    return Fact(entity or words.entity(rng, held_out=held_out, made_up=made_up), attribute, attribute.value(rng))


def sibling(rng: Random, fact: Fact) -> Fact:
    """Another attribute of the same entity."""
    while True:
        other = make_fact(rng, entity=fact.entity)
        if other.attribute.name != fact.attribute.name:
            return other


def statement(rng: Random, fact: Fact, style: str = "any") -> str:
    """One sentence that states the fact. `style`: canonical, any (of training), told, or held_out."""
    if style == "told" and fact.attribute.told:
        return fact.fill(rng.choice(fact.attribute.told))
    if style == "held_out":
        return fact.fill(rng.choice(HELD_OUT_STATEMENTS))
    if style == "canonical" or rng.random() < 0.4:
        return fact.fill(CANONICAL_STATEMENT)
    if fact.attribute.told and rng.random() < 0.25:
        return fact.fill(rng.choice(fact.attribute.told))
    return fact.fill(rng.choice(STATEMENTS))


def question(rng: Random, fact: Fact, style: str = "any") -> str:
    """A question for the fact's value. `style`: canonical, any (of training), or held_out."""
    if style == "held_out":
        return fact.fill(rng.choice(HELD_OUT_QUESTIONS))
    if style == "canonical" or rng.random() < 0.35:
        return fact.fill(CANONICAL_QUESTION)
    return fact.fill(rng.choice(QUESTIONS))


_SUBJECTS = (
    "The guests",
    "Two workers",
    "A neighbor",
    "The children",
    "Nobody",
    "An old clerk",
    "The mayor",
    "Some visitors",
    "The crew",
    "A letter",
)
_VERBS = (
    "talked about",
    "walked past",
    "forgot",
    "praised",
    "waited for",
    "painted",
    "wrote about",
    "looked at",
    "asked about",
    "remembered",
)
_OBJECTS = (
    "the weather",
    "the new road",
    "a broken clock",
    "the river",
    "a box of nails",
    "the music",
    "an empty chair",
    "the long winter",
    "a map",
    "the bread",
)
_ENDS = ("", " in the morning", " last year", " again", " without a word", " for an hour", " before noon", " every day")


def filler(rng: Random) -> str:
    """A sentence without any fact in it."""
    if rng.random() < 0.2:
        return rng.choice(
            ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
        )
    return f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)}{rng.choice(_ENDS)}."
