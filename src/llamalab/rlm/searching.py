"""Commands that search: `find`, `regex`, `index_terms`."""

from __future__ import annotations

from collections import Counter

from llamalab.errors import InputError
from llamalab.rlm.commands import Find, IndexTerms, Regex
from llamalab.rlm.looking import listed
from llamalab.rlm.patterns import compile_pattern, search
from llamalab.rlm.places import Gathered, Item, Searched
from llamalab.rlm.search import find
from llamalab.rlm.state import Clock, Result, State
from llamalab.rlm.values import Value

_NAME = r"\p{Lu}\pM*\p{Ll}[\pL\pM'’-]*"
TERMS = {
    "proper_nouns": rf"(?-i)\b{_NAME}(?: {_NAME})*",
    "titles": r"(?-i)\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Sir|Lady|Lord|Captain|Colonel|General|Major|Prince|Princess"
    rf"|King|Queen|Count|Countess|President|Father|Saint|St)\.? {_NAME}(?: {_NAME})*",
    "all_caps": r"(?-i)\b\p{Lu}[\p{Lu}\p{Nd}_]+\b",
}
"""Patterns that have a name in `index_terms`."""
_LINES_KEPT = 5
_MANY = 2_000_000


def find_(command: Find, state: State, clock: Clock) -> Result:
    """Lines with a phrase, or with its words."""
    value = find(state.source(command.on), command.text, clock, state.limits.matches, command.how)
    return listed(value, state, "match", "matches", phrase=command.text)


def regex(command: Regex, state: State, clock: Clock) -> Result:
    """All matches of a pattern, shown with the lines around them.

    Raises:
        InputError: it is no pattern.
    """
    pattern = compile_pattern(command.pattern)
    found = Gathered(state.limits.matches)
    for piece, stop in clock.read_lines(state.source(command.on)):
        for spans in search(pattern, piece.data, stop, ascii=piece.ascii):
            found.add(piece, spans)
    value = Value("matches", found.items(), found.total)
    return listed(value, state, "match", "matches", around=True)


def index_terms(command: IndexTerms, state: State, clock: Clock) -> Result:
    """Terms by how often they occur; of equally frequent ones in the order of the alphabet.

    Raises:
        InputError: it is no pattern.
    """
    pattern = compile_pattern(TERMS.get(command.pattern, command.pattern))
    counts: Counter[bytes] = Counter()
    first: dict[bytes, list[tuple[Searched, int, int]]] = {}
    for piece, stop in clock.read_lines(state.source(command.on)):
        for spans in search(pattern, piece.data, stop, ascii=piece.ascii):
            data = piece.data
            for start, end in spans:
                term = data[start:end]
                counts[term] += 1
                if counts[term] <= (_LINES_KEPT if command.include_lines else 1):
                    first.setdefault(term, []).append((piece, start, end))
            if len(counts) > _MANY:
                raise InputError(f"there are more than {_MANY} different terms: use a narrower pattern, or on")
    often = [(term, n) for term, n in counts.items() if n >= command.min_count]
    often.sort(key=lambda found: (-found[1], found[0]))
    items = []
    for term, n in often[: command.max_terms]:
        at = [piece.item(start, end).span for piece, start, end in first[term]]
        lines = f" (lines {', '.join(str(span.line) for span in at if span)})" if command.include_lines else ""
        items.append(Item(f"{term.decode('utf-8')}: {n}{lines}", at[0]))
    return listed(Value("list", tuple(items), len(often)), state, "term", "terms")
