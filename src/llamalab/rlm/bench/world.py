"""Facts of a small world, in order, among sentences that have nothing to do with it: as in BABILong.

People go from room to room, take things and put them down; what is asked follows from one, two or three of these
sentences, and from which of them came last.

Source: Kuratov et al. 2024, "BABILong", after Weston et al. 2015; the world and its wording are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from llamalab.rlm.bench import names
from llamalab.rlm.bench.case import Generator, Made, fill
from llamalab.rlm.bench.scorers import Number, OneOf, Scorer

PLACES = ("attic", "bathroom", "cellar", "kitchen", "hallway", "office")
THINGS = ("apple", "football", "lamp", "milk", "umbrella")
STEPS = 24


@dataclass(slots=True)
class World:
    """Where everybody and everything is, and how it came to be.

    Attributes:
        told: sentences, in order.
        where: place of each person.
        held: by whom each thing is held.
        path: places that each thing has been in, in order, no place twice in a row.
    """

    told: list[str] = field(default_factory=list)
    where: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    path: dict[str, list[str]] = field(default_factory=dict)

    def go(self, who: str, place: str) -> None:
        """`who` goes to a place, with all that is held."""
        self.told.append(f"{who} went to the {place}.")
        self.where[who] = place
        for thing, holder in self.held.items():
            if holder == who and self.path[thing][-1] != place:
                self.path[thing].append(place)

    def take(self, who: str, thing: str) -> None:
        """`who` takes a thing, which is in the same place."""
        self.told.append(f"{who} took the {thing}.")
        self.held[thing] = who
        self.path.setdefault(thing, [self.where[who]])

    def drop(self, thing: str) -> None:
        """Who holds the thing puts it down."""
        self.told.append(f"{self.held.pop(thing)} put down the {thing}.")


def live(rng: Random) -> World:
    """A world after some steps: somebody is somewhere, and something was carried through two places."""
    world, people = World(), names.distinct(rng, 4, lambda rng: names.made_up(rng).capitalize())
    for who in people:
        world.go(who, rng.choice(PLACES))
    while len(world.told) < STEPS or not any(len(path) > 1 for path in world.path.values()):
        who, act = rng.choice(people), rng.random()
        place = world.where[who]
        here = [t for t in THINGS if t not in world.held and world.path.get(t, [place])[-1] == place]
        mine = [thing for thing, holder in world.held.items() if holder == who]
        if act < 0.25 and here:
            world.take(who, rng.choice(here))
        elif act < 0.4 and mine:
            world.drop(rng.choice(mine))
        else:
            world.go(who, rng.choice([other for other in PLACES if other != place]))
    return world


def where_is_somebody(rng: Random, world: World) -> tuple[str, Scorer]:
    """One fact: the last move."""
    who = rng.choice(list(world.where))
    return f"Where is {who} now? Answer with the place alone.", _place(world.where[who])


def where_is_something(rng: Random, world: World) -> tuple[str, Scorer]:
    """Two facts: who took it last, and where that person went or put it down."""
    thing = rng.choice(list(world.path))
    return f"Where is the {thing} now? Answer with the place alone.", _place(world.path[thing][-1])


def where_was_something(rng: Random, world: World) -> tuple[str, Scorer]:
    """Three facts: where a thing was before it came to where it is."""
    thing = rng.choice([thing for thing, path in world.path.items() if len(path) > 1])
    before, now = world.path[thing][-2:]
    asked = (
        f"Where was the {thing} just before it came to the {now}, the last time it did? Answer with the place alone."
    )
    return asked, _place(before)


def how_many_things(rng: Random, world: World) -> tuple[str, Scorer]:
    """All facts about what one person took and put down."""
    who = rng.choice(list(world.where))
    n = sum(holder == who for holder in world.held.values())
    return f"How many things is {who} carrying now? Answer with the number alone.", Number(n)


FORMS: dict[str, Callable[[Random, World], tuple[str, Scorer]]] = {
    "world-1": where_is_somebody,
    "world-2": where_is_something,
    "world-3": where_was_something,
    "world-count": how_many_things,
}


def generator(form: Callable[[Random, World], tuple[str, Scorer]]) -> Generator:
    """A world's sentences among others, and a question of that form."""
    return partial(_make, form)


def _make(form: Callable[[Random, World], tuple[str, Scorer]], rng: Random, size: int) -> Made:
    world = live(rng)
    question, right = form(rng, world)
    return fill(rng, size, world.told, names.essay_line), question, right


def _place(place: str) -> OneOf:
    return OneOf(frozenset({place}), frozenset(PLACES))
