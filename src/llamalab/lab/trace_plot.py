"""The picture of a trace: the plane of entropy and varentropy with its cases, and the text coloured by case.

An SVG by hand, so that it needs no library to be made, no font file and no network to be seen.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from llamalab.lab.trace import TracedToken

if TYPE_CHECKING:
    from llamalab.llama.entropix_cases import Case, Thresholds  # imports JAX

COLOURS: dict[Case, str] = {
    "LELV": "#0067a8",
    "HELV": "#9a4f96",
    "LEHV": "#c2500a",
    "HEHV": "#c01f2e",
    "adaptive": "#4a4a4a",
}
"""Of each case, dark enough to be read as text on white."""

MEANINGS: dict[Case, str] = {
    "LELV": "sure: takes the best",
    "HELV": "evenly unsure: asks, or draws",
    "LEHV": "a few rivals: draws",
    "HEHV": "many rivals: draws",
    "adaptive": "in between: best of several draws",
}

_WIDTH, _MARGIN = 860, 24
_LEFT, _TOP, _PLANE_WIDTH, _PLANE_HEIGHT = 70, 56, 520, 340
_COLUMNS, _LINE = 92, 21
_TICKS = (0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0, 80.0, 100.0)
_GAP = 24  # pixels between two ticks
_SANS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"
_MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', 'Courier New', monospace"


def trace_svg(tokens: Sequence[TracedToken], thresholds: Thresholds, title: str) -> str:
    """Draw a trace.

    Args:
        tokens: of one response, in order.
        thresholds: it was drawn with.
        title: of the picture.

    Returns:
        An SVG document. Both axes are square roots, so that the small cases can be seen; a point shows its token and
        its measures when the pointer rests on it.
    """
    lines = list(_wrapped(tokens))
    text_top = _TOP + _PLANE_HEIGHT + 84
    height = text_top + _LINE * len(lines) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="{_SANS}" font-size="13" fill="#222">',
        f"<title>{escape(_printable(title))}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{_MARGIN}" y="32" font-size="16" font-weight="bold">{escape(_printable(title))}</text>',
        *_plane(tokens, thresholds),
        *_legend(tokens, thresholds),
        f'<g font-family="{_MONO}" font-size="14">',
    ]
    for number, line in enumerate(lines):
        spans = "".join(_span(tokens[at], text) for at, text in line)
        parts.append(f'<text x="{_MARGIN}" y="{text_top + _LINE * number}" xml:space="preserve">{spans}</text>')
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _plane(tokens: Sequence[TracedToken], thresholds: Thresholds) -> Iterator[str]:
    """Axes, the cases' regions, and a point for each token."""
    low, medium, high = thresholds.entropy
    calm, wild = thresholds.varentropy
    right = 1.15 * max([high * 1.2, *(token.decided.entropy for token in tokens)])
    top = 1.15 * max([wild * 1.2, *(token.decided.varentropy for token in tokens)])

    def x(entropy: float) -> float:
        return _LEFT + _PLANE_WIDTH * math.sqrt(entropy / right)

    def y(varentropy: float) -> float:
        return _TOP + _PLANE_HEIGHT * (1 - math.sqrt(varentropy / top))

    # Where the attention is not looked at, LEHV is tested first and leaves to HEHV what is above `high`.
    hottest = high if thresholds.attention_entropy is None else medium
    regions: list[tuple[Case, float, float, float, float]] = [
        ("LELV", 0, low, 0, calm),
        ("HELV", high, right, 0, calm),
        ("LEHV", 0, high, wild, top),
        ("HEHV", hottest, right, wild, top),
    ]
    yield f'<rect x="{_LEFT}" y="{_TOP}" width="{_PLANE_WIDTH}" height="{_PLANE_HEIGHT}" fill="#f4f4f4"/>'
    for case, begin, end, bottom, above in regions:
        yield (
            f'<rect class="{case}" x="{x(begin):.1f}" y="{y(above):.1f}" width="{x(end) - x(begin):.1f}" '
            f'height="{y(bottom) - y(above):.1f}" fill="{COLOURS[case]}" fill-opacity="0.14"/>'
        )
        yield _label(x(end) - 6, y(above) + 15 if above == top else y(bottom) - 6, case, "end")
    yield _label((x(low) + x(high)) / 2, (y(calm) + y(wild)) / 2, "adaptive", "middle")
    yield from _axis(right, x, horizontal=True)
    yield from _axis(top, y, horizontal=False)
    for token in tokens:
        decided = token.decided
        yield (
            f'<circle cx="{x(decided.entropy):.1f}" cy="{y(decided.varentropy):.1f}" r="4.5" '
            f'fill="{COLOURS[decided.case]}" fill-opacity="0.75" stroke="#fff">'
            f"<title>{escape(_description(token))}</title></circle>"
        )


def _label(x: float, y: float, case: Case, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" font-weight="bold" text-anchor="{anchor}" '
        f'fill="{COLOURS[case]}">{case}</text>'
    )


def _axis(end: float, place: Callable[[float], float], *, horizontal: bool) -> Iterator[str]:
    """Ticks that do not touch, and the name of the axis; `place` gives the pixel of a value."""
    bottom = _TOP + _PLANE_HEIGHT
    last = -math.inf
    for tick in _TICKS:
        at = place(tick) if tick <= end else math.nan
        if math.isnan(at) or abs(at - last) < _GAP:
            continue
        last = at
        if horizontal:
            yield f'<path d="M{at:.1f} {bottom}v5" stroke="#888"/>'
            yield f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{tick:g}</text>'
        else:
            yield f'<path d="M{_LEFT} {at:.1f}h-5" stroke="#888"/>'
            yield f'<text x="{_LEFT - 9}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>'
    if horizontal:
        yield f'<text x="{_LEFT + _PLANE_WIDTH / 2}" y="{bottom + 42}" text-anchor="middle">entropy, bits</text>'
    else:
        middle = _TOP + _PLANE_HEIGHT / 2
        yield f'<text transform="translate(30 {middle}) rotate(-90)" text-anchor="middle">varentropy, bits²</text>'


def _legend(tokens: Sequence[TracedToken], thresholds: Thresholds) -> Iterator[str]:
    """Each case with its meaning and how often it fired."""
    counts = Counter(token.decided.case for token in tokens)
    left, top = _LEFT + _PLANE_WIDTH + 24, _TOP + 14
    for number, (case, meaning) in enumerate(MEANINGS.items()):
        y = top + 46 * number
        share = f"{counts[case]} ({counts[case] / max(1, len(tokens)):.0%})"
        yield f'<circle cx="{left + 6}" cy="{y - 4}" r="5.5" fill="{COLOURS[case]}"/>'
        yield f'<text x="{left + 20}" y="{y}" font-weight="bold" fill="{COLOURS[case]}">{case}: {share}</text>'
        yield f'<text x="{left + 20}" y="{y + 17}" font-size="12">{escape(meaning)}</text>'
    notes = [f"thresholds: {thresholds.name}"]
    if thresholds.attention_entropy is not None:
        notes += ["A region is a case only where", "the attention fits it too;", "elsewhere it is adaptive."]
    for number, note in enumerate(notes):
        y = top + 46 * len(MEANINGS) + 12 + 17 * number
        yield f'<text x="{left}" y="{y}" font-size="12" fill="#555">{escape(note)}</text>'


def _wrapped(tokens: Sequence[TracedToken]) -> Iterator[list[tuple[int, str]]]:
    """The text in lines that fit, each as pieces (number of the token, text); breaks at spaces where there are any."""
    characters = [(at, char) for at, token in enumerate(tokens) for char in _printable(token.text)]
    line: list[tuple[int, str]] = []
    for at, char in characters:
        if sum(_cells(c) for _, c in line) + _cells(char) > _COLUMNS and char != "\n":
            spaces = [place for place, (_, c) in enumerate(line) if c == " "]
            cut = spaces[-1] + 1 if spaces else len(line)
            yield _pieces(line[:cut])
            line = line[cut:]
        line.append((at, "↵" if char == "\n" else char))
        if char == "\n":
            yield _pieces(line)
            line = []
    if line:
        yield _pieces(line)


def _pieces(line: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Neighbouring characters of one token put together."""
    pieces: list[tuple[int, str]] = []
    for at, char in line:
        if pieces and pieces[-1][0] == at:
            pieces[-1] = at, pieces[-1][1] + char
        else:
            pieces.append((at, char))
    return pieces


def _span(token: TracedToken, text: str) -> str:
    return (
        f"<tspan fill={quoteattr(COLOURS[token.decided.case])}>{escape(text)}"
        f"<title>{escape(_description(token))}</title></tspan>"
    )


def _description(token: TracedToken) -> str:
    decided = token.decided
    return (
        f"{_printable(token.text)!r}, {decided.case}: entropy {decided.entropy:.2f} bits, varentropy "
        f"{decided.varentropy:.2f} bits², probability {math.exp(decided.logprob):.3f}"
    )


def _printable(text: str) -> str:
    """What XML can hold: a tab as a space, other control characters and lone surrogates as U+FFFD."""
    text = text.replace("\t", " ")
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs", "Cn") else "\ufffd" for c in text)


def _cells(char: str) -> int:
    """Columns of a character in a fixed-width font."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
