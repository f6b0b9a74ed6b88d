"""The plots of the report: marks stand where the numbers say."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamalab.arena.report import pictures, plot
from llamalab.arena.results import Histogram
from tests.arena import report_cases

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@given(NUMBERS, NUMBERS)
@example(0.0, 5e-324)
@example(1e6, 1e6 + 1e-9)
def test_a_linear_axis_holds_its_values_and_its_ticks(one: float, other: float) -> None:
    axis = plot.linear_axis(min(one, other), max(one, other))
    assert axis.low < axis.high
    for value in (one, other, *axis.ticks):
        assert axis.low - 1e-6 * (axis.high - axis.low) <= value <= axis.high + 1e-6 * (axis.high - axis.low)
    assert 1 <= len(axis.ticks) <= 8
    assert axis.place(axis.low) == 0
    assert axis.place(axis.high) == 1


@given(st.floats(1e-12, 1e12), st.floats(1, 1e9))
def test_a_logarithmic_axis_holds_its_values(low: float, factor: float) -> None:
    axis = plot.log_axis(low, low * factor)
    assert axis.low <= low * (1 + 1e-6)
    assert axis.high >= low * factor * (1 - 1e-6)
    assert axis.place((axis.low * axis.high) ** 0.5) == pytest.approx(0.5)


def test_ticks_are_written_with_the_digits_they_need() -> None:
    assert [plot.linear_axis(0, 1).write(t) for t in plot.linear_axis(0, 1).ticks] == "0.0 0.2 0.4 0.6 0.8 1.0".split()
    assert plot.linear_axis(-3, 1).write(plot.linear_axis(-3, 1).ticks[0]) == "\N{MINUS SIGN}3"
    assert plot.log_axis(1e-9, 1).write(1e-9) == "10⁻⁹"


def test_a_histogram_stands_as_high_as_the_shares_of_its_rows() -> None:
    drawing = _svg(pictures.log_weights(report_cases.WEIGHTS))
    heights = [float(bar.attrib["height"]) for bar in drawing.iter("rect")]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.02)  # 1, 2 and 1 rows
    assert heights[2] == pytest.approx(heights[0], abs=0.02)


def test_the_outline_of_the_weight_follows_rows_times_weight() -> None:
    """Two rows at a log ratio of 0 and one at log 2 weigh the same together."""
    alike = Histogram((-0.346573590, 0.346573590, 1.03972077), (2, 1))
    drawing = _svg(pictures.log_weights(dataclasses.replace(report_cases.WEIGHTS, log_weights=alike)))
    shape = next(path for path in drawing.iter("path") if path.attrib["class"] == "mass").attrib["d"]
    heights = [float(down) for down in re.findall(r" (\S+?)(?=L|$)", shape)]
    assert heights[1] == pytest.approx(heights[3], abs=0.02)


def test_points_stand_at_their_judge_score() -> None:
    drawing = _svg(pictures.against_judge(report_cases.WEIGHTS, (0.0, 1.0)))
    shape = next(path for path in drawing.iter("path") if path.attrib["class"] == "dots faint").attrib["d"]
    assert re.findall(r"M(\S+) ", shape) == ["200", "500", "500", "900"]


def test_a_step_holds_its_value_until_the_next() -> None:
    axis = plot.fixed_axis(0, 1)
    drawn = plot.steps(axis, axis, [(0.0, 0.5), (0.5, 1.0)], "curve", 100)
    assert 'd="M0 50L500 50L500 0L1000 0"' in drawn


def test_weights_that_are_all_alike_have_no_tail() -> None:
    alike = dataclasses.replace(report_cases.WEIGHTS, tail=((1.0, 0.5), (1.0, 1.0)))
    assert pictures.tail(alike) == ""


def test_the_forest_axis_ignores_refused_numbers() -> None:
    found = report_cases.results()
    alone = dataclasses.replace(
        found, policies=(found.policy("p0"), dataclasses.replace(found.policy("bad"), truth=None))
    )
    axis = pictures.forest_axis(alone)
    assert axis is not None
    assert axis.high < 0.7  # the refused value is 0.844


def test_means_in_tenths_are_those_of_the_points() -> None:
    points = [(i / 100, float(i % 2)) for i in range(100)]
    assert pictures.tenths(points) == [pytest.approx((i / 10 + 0.045, 0.5)) for i in range(10)]
    assert pictures.tenths(points[:39]) == []


def test_means_in_tenths_never_part_equal_scores() -> None:
    points = [(0.5, float(i % 2)) for i in range(60)] + [(0.8, 1.0)] * 40
    assert pictures.tenths(points) == [(0.5, 0.5), (pytest.approx(0.8), 1.0)]


def _svg(drawing: str) -> ET.Element:
    """Well-formed, or this fails."""
    return ET.fromstring(f"<x>{drawing}</x>")
