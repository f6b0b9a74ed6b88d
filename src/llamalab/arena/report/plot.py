"""Small SVG plots that stretch with the page while their text keeps its size.

Across, everything is in percent of the plot's width; down, in pixels. A path knows no percent, so paths stand in a box
of their own that is stretched, with strokes that are not. Axes write outside the drawing, into the padding that the
style sheet gives `.frame`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

HEIGHT = 190
"""Of a plot, without its axis, pixels."""

_BOX = 1000.0
"""Width of the stretched box, in its own units."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places.

    Attributes:
        low: value at the left or lower end.
        high: at the other end, above `low`.
        ticks: values that are written.
        write: how.
        label: what is measured, with its unit.
        log: the places are those of the logarithms.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    write: Callable[[float], str]
    label: str = ""
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, 0 at `low` and 1 at `high`; what lies outside stands at the end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(low: float, high: float, label: str = "", *, most: int = 6) -> Axis:
    """An axis with round ticks, at most that many; both ends are rounded outwards to half a step.

    Values that are all alike get a range of one around them.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-200):
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / max(most - 1, 1))
    half = step / 2
    low, high = math.floor(low / half + 1e-9) * half, math.ceil(high / half - 1e-9) * half
    ticks = [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(low, high, tuple(ticks), lambda value: _minus(f"{value:.{decimals}f}"), label)


def fixed_axis(low: float, high: float, label: str = "", *, most: int = 6) -> Axis:
    """As `linear_axis`, with exactly these ends."""
    axis = linear_axis(low, high, label, most=most)
    ticks = tuple(tick for tick in axis.ticks if low - 1e-9 <= tick <= high + 1e-9)
    return Axis(low, high, ticks, axis.write, label)


def log_axis(low: float, high: float, label: str = "", *, most: int = 6) -> Axis:
    """Powers of ten that hold both values, which are above 0; ticks at every decade, or at every few."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    every = math.ceil((last - first + 1) / most)
    ticks = tuple(10.0**power for power in range(first, last + 1, every))
    return Axis(10.0**first, 10.0**last, ticks, _power, label, log=True)


def plot(x: Axis, y: Axis, marks: Iterable[Markup], says: str, height: int = HEIGHT) -> Markup:
    """A plot with its axes.

    Args:
        x: axis across.
        y: axis upwards.
        marks: what `line`, `steps`, `outline`, `dots`, `bar` and `upright` give, from back to front.
        says: what a reader who cannot see it is told.
        height: pixels, without the axis below.
    """
    grid = [
        Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/><text class="tick end" x="-8" y="{1}">{2}</text>'
        ).format(_px(down), _px(down + 4), y.write(tick))
        for tick in y.ticks
        for down in [height * (1 - y.place(tick))]
    ]
    below = [
        Markup(
            '<line class="axis" x1="{0}%" x2="{0}%" y1="{1}" y2="{2}"/>'
            '<text class="tick {3}" x="{0}%" y="{4}">{5}</text>'
        ).format(_px(100 * x.place(tick)), height, height + 4, _anchor(x.place(tick)), height + 18, x.write(tick))
        for tick in x.ticks
    ]
    return Markup(
        '<div class="frame"><p class="axis-label">{y}</p>'
        '<svg role="img" aria-label="{says}" width="100%" height="{whole}">{grid}{marks}'
        '<line class="axis" x1="0" x2="100%" y1="{height}" y2="{height}"/>{below}</svg>'
        '<p class="axis-label across">{x}</p></div>'
    ).format(
        x=x.label,
        y=y.label,
        says=says,
        whole=height + 22,
        height=height,
        grid=Markup("").join(grid),
        marks=Markup("").join(marks),
        below=Markup("").join(below),
    )


def line(x: Axis, y: Axis, points: Sequence[Point], kind: str, height: int = HEIGHT) -> Markup:
    """Straight lines from point to point."""
    return _path("M" + "L".join(_at(x, y, point, height) for point in points), kind, height) if points else Markup("")


def steps(x: Axis, y: Axis, points: Sequence[Point], kind: str, height: int = HEIGHT) -> Markup:
    """A step function: each value from its place up to the next one's, and the last one to the end."""
    corners: list[Point] = []
    for number, (at, value) in enumerate(points):
        following = points[number + 1][0] if number + 1 < len(points) else x.high
        corners += [(at, value), (following, value)]
    return line(x, y, corners, kind, height)


def outline(x: Axis, y: Axis, edges: Sequence[float], values: Sequence[float], kind: str) -> Markup:
    """The outline of a histogram, down to the lower end of the axis at both sides."""
    corners = [(edges[0], y.low)]
    for left, right, value in zip(edges, edges[1:], values, strict=False):
        corners += [(left, value), (right, value)]
    return line(x, y, [*corners, (edges[-1], y.low)], kind)


def dots(x: Axis, y: Axis, points: Sequence[Point], kind: str, height: int = HEIGHT) -> Markup:
    """A round dot at each point; the style sheet gives its size as a stroke width."""
    return _path("".join(f"M{_at(x, y, point, height)}h0" for point in points), kind, height) if points else Markup("")


def bar(x: Axis, y: Axis, left: float, right: float, value: float, kind: str, height: int = HEIGHT) -> Markup:
    """A bar of a histogram, from the lower end of the axis."""
    start, end = 100 * x.place(left), 100 * x.place(right)
    tall = height * y.place(value)
    return Markup('<rect class="{}" x="{}%" width="{}%" y="{}" height="{}"/>').format(
        kind, _px(start), _px(max(end - start, 0.1)), _px(height - tall), _px(tall)
    )


def upright(x: Axis, value: float, kind: str, height: int = HEIGHT, top: float = 0) -> Markup:
    """A line from bottom to top at a value."""
    return Markup('<line class="{0}" x1="{1}%" x2="{1}%" y1="{2}" y2="{3}"/>').format(
        kind, _px(100 * x.place(value)), _px(top), height
    )


def _path(shape: str, kind: str, height: int) -> Markup:
    return Markup(
        '<svg x="0" y="0" width="100%" height="{0}" viewBox="0 0 {1:.0f} {0}" preserveAspectRatio="none">'
        '<path class="{2}" d="{3}"/></svg>'
    ).format(height, _BOX, kind, shape)


def _at(x: Axis, y: Axis, point: Point, height: int) -> str:
    return f"{_px(_BOX * x.place(point[0]))} {_px(height * (1 - y.place(point[1])))}"


def _anchor(place: float) -> str:
    return "start" if place < 0.04 else "end" if place > 0.96 else "middle"


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least this."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _power(value: float) -> str:
    power = round(math.log10(value))
    if -3 <= power <= 3:
        return f"{value:g}"
    digits = str(abs(power)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{'⁻' if power < 0 else ''}{digits}"


def _px(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("-")
