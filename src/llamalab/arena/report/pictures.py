"""The report's pictures: which marks stand on which axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from llamalab.arena.report import plot
from llamalab.arena.report.words import clean
from llamalab.arena.results import CalibrationCurve, PolicyResult, Results, Scale, Value, Weights

_ROW = 34
"""Height of a row of the forest plot, pixels."""


def forest_axis(results: Results) -> plot.Axis | None:
    """The axis that all rows of the forest plot share, no wider than outcomes; None where nothing is to be drawn."""
    drawn = [v for p in results.policies for v in (p.headline, fresh_draws(p, results.scale)) if v is not None]
    seen = [end for value in drawn for end in (value.low, value.high, value.value)]
    seen += [policy.truth for policy in results.policies]
    numbers = [number for number in seen if number is not None]
    if not numbers:
        return None
    room = 0.04 * (max(numbers) - min(numbers))
    bottom, top = results.outcome_range if results.scale == "oracle" else results.judge_range
    low, high = max(min(numbers) - room, bottom), min(max(numbers) + room, top)
    return plot.linear_axis(low, high, most=6)


def forest_row(policy: PolicyResult, axis: plot.Axis, results: Results) -> Markup:
    """One policy: its headline, what its own fresh draws say, and the truth where it is known.

    A policy without a headline has no mark of its own: a refused number is not drawn either.
    """
    middle = _ROW / 2
    marks = [plot.upright(axis, tick, "grid", _ROW) for tick in axis.ticks]
    base = results.policy(results.base).headline
    if base is not None and base.value is not None:
        marks.append(plot.upright(axis, base.value, "base", _ROW))
    fresh = fresh_draws(policy, results.scale)
    if fresh is not None:
        marks.append(_interval(axis, fresh, "fresh", middle + 8 if policy.headline else middle))
    if policy.headline is not None:
        marks.append(_interval(axis, policy.headline, "headline", middle))
    if policy.truth is not None:
        marks.append(
            Markup('<svg class="truth" x="{}%" y="{}"><path d="M0-6L6 0L0 6L-6 0Z"/></svg>').format(
                _percent(axis, policy.truth), middle
            )
        )
    return Markup('<svg role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(
        _forest_words(policy, fresh), _ROW, Markup("").join(marks)
    )


def forest_scale(axis: plot.Axis) -> Markup:
    """The numbers below the forest plot."""
    return Markup('<svg aria-hidden="true" width="100%" height="20">{}</svg>').format(
        Markup("").join(
            Markup('<text class="tick" text-anchor="middle" x="{}%" y="14">{}</text>').format(
                _percent(axis, tick), axis.write(tick)
            )
            for tick in axis.ticks
        )
    )


def fresh_draws(policy: PolicyResult, scale: Scale) -> Value | None:
    """What a target's own responses say on a scale: the estimate of cje-eval, else their plain mean."""
    for estimator in ("direct", "draws"):
        for value in policy.values:
            if value.estimator == estimator and value.value is not None and value.scale == scale:
                return value
    return None


def log_weights(weights: Weights) -> Markup:
    """Where the rows lie and where their weight lies: two histograms of the log ratio.

    The weight of a bin is that of its middle, times its rows.
    """
    edges, counts = weights.log_weights.edges, weights.log_weights.counts
    if not counts or not sum(counts):
        return Markup("")
    middles = [(left + right) / 2 for left, right in pairwise(edges)]
    top = max(middle for middle, count in zip(middles, counts, strict=True) if count)
    mass = [count * math.exp(middle - top) for middle, count in zip(middles, counts, strict=True)]
    rows = [count / sum(counts) for count in counts]
    shares = [value / sum(mass) for value in mass]
    x = plot.fixed_axis(*_ends(edges[0], edges[-1]), "log ratio, nats (target less base)", most=5)
    y = plot.Axis(0, *_top(max(*rows, *shares)), _percentage, "share")
    marks = [
        plot.bar(x, y, left, right, share, "rows")
        for left, right, share in zip(edges, edges[1:], rows, strict=False)
        if share > 0
    ]
    marks.append(plot.outline(x, y, edges, shares, "mass"))
    if x.low < 0 < x.high:
        marks.append(plot.upright(x, 0, "zero"))
    return plot.plot(x, y, marks, "Histogram of the log ratios, and of the weight that lies at each.")


def tail(weights: Weights) -> Markup:
    """How many rows have at least a weight, on logarithmic axes, beside the slope of an infinite variance."""
    points = sorted(
        (point for point in weights.tail if point[0] > 1e-6 and point[1] > 0), key=lambda point: (point[0], -point[1])
    )
    if len({weight for weight, _ in points}) < 2:
        return Markup("")
    x = plot.log_axis(min(p[0] for p in points), max(p[0] for p in points), "weight over mean weight", most=5)
    y = plot.log_axis(min(p[1] for p in points), 1.0, "share of rows with at least this weight", most=5)
    start = max((p for p in points if p[1] >= 0.05), default=points[0], key=lambda point: point[0])
    down = min(math.log10(start[1] / y.low) / 2, math.log10(x.high / start[0]))
    end = (start[0] * 10**down, start[1] * 10 ** (-2 * down))
    marks = [
        plot.line(x, y, [start, end], "limit"),
        plot.line(x, y, points, "curve"),
        plot.dots(x, y, points[-50:], "dots"),
    ]
    return plot.plot(x, y, marks, "Share of rows with at least a weight, on logarithmic axes.")


def against_judge(weights: Weights, judge_range: tuple[float, float]) -> Markup:
    """Log ratio of each row against its judge score, with the weight that is expected at a score."""
    if not weights.against_judge:
        return Markup("")
    expected = [(score, math.log(weight)) for score, weight in weights.by_judge if weight > 0]
    heights = [ratio for _, ratio in weights.against_judge] + [value for _, value in expected]
    x = plot.fixed_axis(*judge_range, "judge score", most=6)
    y = plot.linear_axis(min(heights), max(heights), "log ratio, nats", most=6)
    marks = [plot.dots(x, y, weights.against_judge, "dots faint"), plot.steps(x, y, expected, "curve strong")]
    return plot.plot(x, y, marks, "Log ratio of each row against its judge score.")


def calibration(
    curve: CalibrationCurve, judge_range: tuple[float, float], outcome_range: tuple[float, float]
) -> Markup:
    """Labels against judge scores, and the step function that is fitted to them."""
    x = plot.fixed_axis(*judge_range, "judge score", most=6)
    y = plot.fixed_axis(*outcome_range, "label of the oracle", most=6)
    height = 280
    means = tenths(curve.points)
    marks = [
        plot.dots(x, y, curve.points, "dots", height),
        plot.steps(x, y, curve.curve, "curve strong", height),
        plot.dots(x, y, means, "ring", height),
        plot.dots(x, y, means, "ring-inside", height),
    ]
    return plot.plot(x, y, marks, "Labels of the oracle against judge scores, with the fitted curve.", height)


def tenths(points: Sequence[plot.Point]) -> list[plot.Point]:
    """Means of about ten parts of equal size by the first number, which never part equal ones; none of few points."""
    if len(points) < 40:
        return []
    parts: list[list[plot.Point]] = [[]]
    for point in sorted(points):
        if len(parts[-1]) >= len(points) / 10 and point[0] > parts[-1][-1][0]:
            parts.append([])
        parts[-1].append(point)
    return [(sum(p[0] for p in part) / len(part), sum(p[1] for p in part) / len(part)) for part in parts]


def _interval(axis: plot.Axis, value: Value, kind: str, down: float) -> Markup:
    """A dot with its interval."""
    if value.value is None:
        return Markup("")
    span = Markup("")
    if value.low is not None and value.high is not None:
        span = Markup('<line class="{0}-span" x1="{1}%" x2="{2}%" y1="{3}" y2="{3}"/>').format(
            kind, _percent(axis, value.low), _percent(axis, value.high), down
        )
    radius = 5 if kind == "headline" else 3.5
    return span + Markup('<circle class="{}" cx="{}%" cy="{}" r="{}"/>').format(
        kind, _percent(axis, value.value), down, radius
    )


def _forest_words(policy: PolicyResult, fresh: Value | None) -> str:
    said = [clean(policy.name)]
    if policy.headline is not None and policy.headline.value is not None:
        said.append(f"estimate {policy.headline.value:.3f}")
    else:
        said.append("no number")
    if fresh is not None:
        said.append(f"own draws {fresh.value:.3f}")
    if policy.truth is not None:
        said.append(f"truth {policy.truth:.3f}")
    return ", ".join(said)


def _percent(axis: plot.Axis, value: float) -> str:
    return f"{100 * axis.place(value):.2f}"


def _ends(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _top(largest: float) -> tuple[float, tuple[float, ...]]:
    """Upper end and ticks of an axis of shares."""
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if largest <= 4 * step or step == 0.25)
    count = math.ceil(largest / step - 1e-9)
    return count * step, tuple(step * i for i in range(count + 1))


def _percentage(share: float) -> str:
    return f"{100 * share:.0f}%"
