"""Plots: their ticks, ranges and figures."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.ui.html_plot import loss_range, plots, thin, ticks
from lib_lora.ui.trainer import Point


def points(count: int) -> list[Point]:
    return [Point(step, 1.0 / step, 1.1 / step, 1e-4 * step / count) for step in range(1, count + 1)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (0.05, 0.31, [0, 0.1, 0.2, 0.3, 0.4]),
        (1, 400, [0, 100, 200, 300, 400]),
        (0, 1e-4, [0, 5e-5, 1e-4]),
        (0.2, 0.2, [0, 0.05, 0.1, 0.15, 0.2]),
        (0, 0, [0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_hold_the_range(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 7 and found == sorted(set(found))
    slack = (found[1] - found[0]) * 1e-6
    if span > abs(low + span) * 1e-9:
        assert found[0] <= low + slack and found[-1] >= low + span - slack


def test_outliers_do_not_press_the_curve_flat() -> None:
    raw = [0.1 + 0.001 * i for i in range(100)] + [50.0]
    low, high = loss_range(raw, [0.15] * 101)
    assert low == pytest.approx(0.1) and high < 1
    assert loss_range([math.nan, math.inf], [math.nan]) == (0.0, 0.0)


def test_thin_keeps_the_ends() -> None:
    few = thin(points(1000), 300)
    assert few[0].step == 1 and few[-1].step == 1000 and 200 <= len(few) <= 301
    assert thin(points(5), 300) == points(5) and thin([], 3) == []


def test_plots_have_axes_titles_and_figures() -> None:
    html = plots(points(400))
    assert html.count("<svg") == 2 and ">loss 0.0025, smoothed 0.00275</desc>" in html
    assert html.count("<polyline") == 3 and 'class="lk-raw"' in html
    rows = re.findall(r'data-rows="([^"]*)"', html)
    assert rows[0].split(";")[-1].split(",") == ["1.0000", "400", "0.0025", "0.00275"]
    along = re.findall(r'class="lk-x" style="left:[\d.]+%">(\d+)<', html)
    assert along == ["100", "200", "300", "400"] * 2
    assert ">1e-4<" in html and ">5e-5<" in html


def test_a_line_with_a_gap_is_drawn_in_pieces() -> None:
    some = [Point(1, 0.1, 0.1, 1e-4), Point(2, 0.2, 0.1, 1e-4), Point(3, math.nan, 0.1, 1e-4), Point(4, 0.1, 0.1, 1e-4)]
    html = plots(some)
    assert html.count('class="lk-raw"') == 2 and "nan," not in re.sub(r'data-rows="[^"]*"', "", html)


def test_no_plot_of_one_point() -> None:
    assert "<svg" not in plots(points(1)) and "first steps" in plots([])
