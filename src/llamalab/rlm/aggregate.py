"""`aggregate`: numbers and values out of a group of a pattern, over everything that matches.

Sums are exact: numbers are decimal as they are written, and added as decimals.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Context as Precision
from decimal import Decimal, localcontext

from llamalab.errors import InputError
from llamalab.rlm.commands import Aggregate
from llamalab.rlm.looking import listed
from llamalab.rlm.patterns import compile_pattern, search
from llamalab.rlm.places import Item, Searched
from llamalab.rlm.show import MAX_ITEM
from llamalab.rlm.state import SPANS_KEPT, Clock, Result, State
from llamalab.rlm.text import Span
from llamalab.rlm.values import Value

_NUMBER = re.compile(rb"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,40})(?:\.[0-9]{0,20})?(?:[eE][+-]?[0-9]{1,2})?")
_PLAIN = re.compile(rb"(?:[+-]?[0-9]{1,40}(?:\.[0-9]{0,20})?(?: |\Z))*")
_LONGEST = 80
_EXACT = Precision(prec=200)
_SHOWN = Precision(prec=15)


@dataclass(slots=True)
class _Numbers:
    """What has been added up.

    Attributes:
        n: numbers.
        total: their sum.
        least, most: the smallest and the largest, with their places.
        others: values that are no numbers.
    """

    n: int = 0
    total: Decimal = field(default_factory=Decimal)
    least: tuple[Decimal, Item] | None = None
    most: tuple[Decimal, Item] | None = None
    others: int = 0

    def add(self, piece: Searched, spans: Sequence[tuple[int, int]]) -> None:
        """Take the numbers among some parts of a piece."""
        data = piece.data
        texts = [data[start:end] for start, end in spans]
        counts = Counter(texts)
        values = _read_all(list(counts))
        known = [(value, text) for value, text in zip(values, counts, strict=True) if value is not None]
        here = sum(counts[text] for _, text in known)
        self.n += here
        self.others += len(texts) - here
        if not known:
            return
        with localcontext(_EXACT):
            self.total = sum((value * counts[text] for value, text in known), self.total)
        least, most = min(known), max(known)
        if self.least is None or least[0] < self.least[0]:
            self.least = least[0], piece.item(*spans[texts.index(least[1])])
        if self.most is None or most[0] > self.most[0]:
            self.most = most[0], piece.item(*spans[texts.index(most[1])])


def aggregate(command: Aggregate, state: State, clock: Clock) -> Result:
    """Compute over the values of a group.

    Raises:
        InputError: no pattern, no such group, or nothing to compute with.
    """
    pattern = compile_pattern(command.pattern, capture=True)
    group = min(1, pattern.groups) if command.group is None else command.group
    if group > pattern.groups:
        raise InputError(f"the pattern has {pattern.groups} groups: put (...) around the part that is meant")
    if group == 0:
        pattern = compile_pattern(command.pattern)
    source = state.source(command.on)
    matches = ((piece, spans) for piece, stop in clock.read_lines(source)
               for spans in search(pattern, piece.data, stop, ascii=piece.ascii, group=group))  # fmt: skip
    if command.what in ("unique", "top"):
        return _values(command, state, matches)
    if command.what == "count":
        return _count(matches)
    numbers = _Numbers()
    for piece, spans in matches:
        numbers.add(piece, spans)
    return _computed(command, numbers)


def _count(matches: Iterable[tuple[Searched, list[tuple[int, int]]]]) -> Result:
    n = 0
    places: list[Span | None] = []
    for piece, spans in matches:
        n += len(spans)
        places += [piece.item(*span).span for span in spans[: max(SPANS_KEPT - len(places), 0)]]
    return Result(Value.of_number(n), f"count: {n}", spans=tuple(span for span in places if span is not None))


def _computed(command: Aggregate, numbers: _Numbers) -> Result:
    notes = [f"{numbers.others} values are no numbers and were left out"] if numbers.others else []
    if numbers.least is None or numbers.most is None:
        if command.what != "sum":
            raise InputError(
                f"there is no number to take the {command.what} of: {numbers.others} values, none a number"
            )
        return Result(Value.of_number(0), "sum: 0 (of 0 numbers)", notes=tuple(notes))
    ends = [numbers.least[1].span, numbers.most[1].span]
    found = {
        "sum": (numbers.total, ends),
        "min": (numbers.least[0], ends[:1]),
        "max": (numbers.most[0], ends[1:]),
        "mean": (_SHOWN.divide(numbers.total, numbers.n), ends),
    }[command.what]
    text = _written(found[0])
    head = f"{command.what}: {text} (of {numbers.n} {'number' if numbers.n == 1 else 'numbers'})"
    spans: list[Span] = [span for span in dict.fromkeys(found[1]) if span is not None]
    return Result(Value("number", (Item(text, spans[0] if spans else None),), 1), head, "", tuple(notes), tuple(spans))


def _values(command: Aggregate, state: State, matches: Iterable[tuple[Searched, list[tuple[int, int]]]]) -> Result:
    """The different values, in the order of the text; for `top` by how often they occur."""
    counts: Counter[bytes] = Counter()
    first: dict[bytes, tuple[Searched, int, int]] = {}
    for piece, spans in matches:
        data = piece.data
        for start, end in spans:
            text = data[start:end]
            if text not in first:
                first[text] = piece, start, end
            counts[text] += 1
        if len(counts) > state.limits.matches:
            raise InputError(
                f"there are more than {state.limits.matches} different values: use a narrower pattern, or on"
            )
    ordered = list(counts.items())
    if command.what == "top":
        ordered.sort(key=lambda value: (-value[1], value[0]))
    items = []
    for text, n in ordered[: command.limit]:
        item = first[text][0].item(*first[text][1:])
        said = item.text if len(item.text) < MAX_ITEM else item.text[: MAX_ITEM - 1] + "…"
        items.append(Item(f"{said}: {n}" if command.what == "top" else item.text, item.span))
    return listed(Value("list", tuple(items), len(ordered)), state, "different value", "different values")


def _read_all(texts: Sequence[bytes]) -> list[Decimal | None]:
    """The numbers that texts are, None for other texts; all at once where they are all plain."""
    joined = b" ".join(texts)
    if _PLAIN.fullmatch(joined):
        found: list[Decimal | None] = [Decimal(text) for text in joined.decode().split(" ")]
        if len(found) == len(texts):
            return found
    return [_read(text) for text in texts]


def _read(text: bytes) -> Decimal | None:
    text = text.strip()
    if len(text) > _LONGEST or not _NUMBER.fullmatch(text):
        return None
    return Decimal(text.replace(b",", b"").decode())


def _written(value: Decimal) -> str:
    """A number as people write it: no exponent where it is not long, no trailing zeros."""
    if value == value.to_integral_value() and abs(value) < 10**40:
        return f"{value:.0f}"
    short = value.normalize(_EXACT)
    return f"{short:f}" if -20 < short.adjusted() < 40 else str(short)
