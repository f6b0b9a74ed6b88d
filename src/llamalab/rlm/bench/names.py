"""Names and words of the benchmark: none of them occurs in what the built-in model was trained on.

A made-up name begins with two consonants that none of its training's made-up names begins with. A name of listed words
is one of the tenth of all such names that its training leaves out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from random import Random

KINDS = """vault station hotel bridge library museum tower tunnel academy mine clinic depot factory castle bakery
bank""".split()
ADJECTIVES = """amber ancient blue bright copper distant frozen gentle
golden hidden iron marble quiet scarlet silver tidy""".split()
NOUNS = """anchor beacon canyon cedar comet falcon glacier harbor
lantern maple meadow orchid pebble raven thistle willow""".split()
PEOPLE = "Ada Ben Clara David Elena Felix Grace Henry Ivan Jana Karl Lena Marco Nina Oscar Petra Rita Sam Tara".split()

_BEGINNINGS = "bl cl gl pl sl sm sn sp sw tw".split()
_MIDDLES = "b d f g k l m n p r s t v z".split()
_VOWELS = "a e i o u".split()
_ENDS = ["", "", "l", "m", "n", "r", "rd", "sk", "nt", "th"]


def made_up(rng: Random, *, syllables: int = 3) -> str:
    """A made-up word in small letters."""
    first = rng.choice(_BEGINNINGS) + rng.choice(_VOWELS)
    return first + "".join(rng.choice(_MIDDLES) + rng.choice(_VOWELS) for _ in range(syllables - 1)) + rng.choice(_ENDS)


def left_out(name: str) -> bool:
    """Whether a name of listed words is one that the built-in model's training leaves out."""
    return zlib.crc32(name.encode()) % 10 == 0


def thing(rng: Random) -> str:
    """Something that facts are told of: "Blimoran station", or "Silver Comet bridge" in a combination left out."""
    if rng.random() < 0.5:
        return f"{made_up(rng).capitalize()} {rng.choice(KINDS)}"
    while True:
        name = f"{rng.choice(ADJECTIVES).capitalize()} {rng.choice(NOUNS).capitalize()} {rng.choice(KINDS)}"
        if left_out(name):
            return name


def person(rng: Random) -> str:
    """A first name and a made-up last name."""
    return f"{rng.choice(PEOPLE)} {made_up(rng).capitalize()}"


def digits(rng: Random, n: int) -> str:
    """`n` digits, the first not zero."""
    return str(rng.randint(10 ** (n - 1), 10**n - 1))


def identifier(rng: Random) -> str:
    """A UUID of version 4."""
    bits = rng.getrandbits(128) & ~(0xF << 76) & ~(0x3 << 62) | (4 << 76) | (2 << 62)
    text = f"{bits:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def distinct(rng: Random, n: int, make: Callable[[Random], str]) -> list[str]:
    """`n` names, no two alike, in the order they were drawn."""
    found: dict[str, None] = {}
    while len(found) < n:
        found.setdefault(make(rng))
    return list(found)


_SUBJECTS = (
    "The guests|Two workers|A neighbor|The children|An old clerk|The mayor|Some visitors|The crew|A painter".split("|")
)
_VERBS = "talked about|walked past|forgot|praised|waited for|wrote about|looked at|asked about|remembered".split("|")
_OBJECTS = (
    "the weather|the new road|a broken clock|the river|a box of nails|the music|an empty chair|a map|the bread".split(
        "|"
    )
)
_WHENS = [
    "",
    " in the morning",
    " last year",
    " again",
    " for an hour",
    " before noon",
    " every day",
    " on the way home",
]


def sentence(rng: Random) -> str:
    """A sentence that says nothing anybody asks for."""
    return f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)}{rng.choice(_WHENS)}."


def essay_line(rng: Random) -> str:
    """Some sentences on one line."""
    return " ".join(sentence(rng) for _ in range(rng.randint(1, 4)))
