"""The words that names, values and sentences are made of, and which combinations are held out."""

from __future__ import annotations

import zlib
from random import Random

ADJECTIVES = """amber ancient bitter black blue bold brass brave bright broken bronze calm carved clear cold copper
coral crimson crooked crystal damp dark deep distant double dry dusty eager early east empty fading
faint far fast final flat floating frozen gentle giant gilded glass golden grand granite gray great
green hidden hollow honest humble icy iron ivory jade last late lazy little lonely long lost loud
low lucky marble mellow misty modern narrow new noble north old olive open orange pale paper pearl
plain polished proud purple quick quiet rapid rare red royal ruby rusty sacred sandy scarlet secret
shallow sharp silent silver simple slow small smooth soft solid south spare steady steep stone
stormy strange sunny swift tall thin tidy tiny upper velvet violet warm weary west white wide wild
windy winter wise wooden yellow young""".split()

NOUNS = """acorn anchor apple arrow badger barley basin beacon bear beaver birch bird bolt bramble branch brook
buffalo canyon castle cedar cherry cliff cloud clover comet coral corner crane creek crow crown dawn
deer delta dolphin dove dragon dune eagle echo elm ember falcon feather fern field finch fire flame
flint forest fox frost garden gate glacier goose grove gull harbor hare hawk hazel heath heron hill
hollow horizon horse island ivy jackal juniper kettle lagoon lake lantern larch lark leaf lily lion
lotus lynx maple marsh meadow mill moon moss mountain needle night oak ocean orchid osprey otter owl
panda pebble pepper pine planet plum pond poplar prairie rabbit rain raven reef ridge river robin
rock rose sail salmon sand seal shadow shell shore sky snow sparrow spring spruce star storm stream
sun swan temple thistle thorn thunder tiger trail tree tulip turtle valley violet walnut water wave
well whale willow wind wing wolf wren""".split()

KINDS = """vault station hotel bridge laboratory museum library tower garden school ship mine camp clinic
archive depot farm factory observatory theater castle market bakery hospital airport warehouse
office lighthouse academy workshop cafe club bank studio institute reactor gallery tunnel temple
village""".split()

FIRST_NAMES = """Ada Alan Amir Anna Ben Carla Chen Clara Dana David Elena Emil Erik Eva Felix Fiona Grace Hana Henry
Hugo Ida Igor Iris Ivan Jack Jana Jonas Karl Kate Lara Leo Lena Lily Luca Maria Mara Marco Mia Mina
Nadia Nina Noah Nora Olga Omar Oscar Otto Paula Peter Petra Rita Rosa Sam Sara Sofia Tara Tim Tom
Uma Vera Victor Wanda Yara Zoe""".split()

FRUITS = "apple pear plum cherry peach banana orange lemon grape melon fig mango kiwi lime berry".split()
COLORS = "red blue green yellow black white orange purple brown pink gray silver gold violet".split()
ANIMALS = """fox bear wolf owl hare deer lion tiger mouse cat dog horse goat duck swan frog crow otter seal whale
rabbit turtle sparrow badger""".split()
PLACES = "forest valley village meadow mountain river garden desert island city harbor castle".split()
TOOLS = "hammer saw drill axe rope knife ladder shovel brush needle pen lamp".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w y z".split()
_VOWELS = "a e i o u ai ea ee ie oa ou".split()
_CODAS = "b ck d f g k l ll m n nd ng nt p r rd rk rn s sh sk st t th v x z".split()


def syllables(rng: Random, least: int = 2, most: int = 3) -> str:
    """A made-up word, capitalised: a name that no word list holds."""
    parts = []
    for i in range(rng.randint(least, most)):
        vowel = rng.choice(_VOWELS[:5]) if rng.random() < 0.75 else rng.choice(_VOWELS[5:])
        coda = rng.choice(_CODAS) if rng.random() < 0.45 else ""
        parts.append((rng.choice(_ONSETS) if i or rng.random() < 0.85 else "") + vowel + coda)
    return "".join(parts).capitalize()


def is_held_out(name: str) -> bool:
    """Whether a name belongs to the tenth of all names that training never sees."""
    return zlib.crc32(name.encode()) % 10 == 0


def entity(rng: Random, *, held_out: bool = False, made_up: bool | None = None) -> str:
    """A name like "Blue Harbor vault" or "Torvek station".

    Args:
        rng: source of chance.
        held_out: take it from the names training never sees, else from the others.
        made_up: True: only made-up words before the kind; False: only listed words; None: either.
    """
    while True:
        kind = rng.choice(KINDS)
        form = rng.random()
        if made_up is True or (made_up is None and form < 0.3):
            name = f"{syllables(rng)} {kind}"
        elif made_up is None and form < 0.42:
            name = f"{syllables(rng)} {rng.choice(NOUNS).capitalize()} {kind}"
        elif form < 0.5:
            name = f"{rng.choice(NOUNS).capitalize()} {rng.choice(NOUNS).capitalize()} {kind}"
        else:
            name = f"{rng.choice(ADJECTIVES).capitalize()} {rng.choice(NOUNS).capitalize()} {kind}"
        if is_held_out(name) == held_out:
            return name


def digits(rng: Random, n: int) -> str:
    """`n` digits, the first not zero."""
    return str(rng.randint(1, 9)) + "".join(rng.choice("0123456789") for _ in range(n - 1))


def person(rng: Random) -> str:
    """A first and a last name."""
    return f"{rng.choice(FIRST_NAMES) if rng.random() < 0.7 else syllables(rng)} {syllables(rng)}"
