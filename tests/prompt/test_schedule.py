"""Schedules: expected figures are those that loractl itself computes, at the step counter the webui shows it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.prompt.schedule import (
    Moment,
    Schedule,
    format_number,
    format_strength,
    parse_number,
    parse_strength,
    strength_at,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0@0,1@1", [0, 0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1]),
        ("0@0,1@0.5,0@1", [0, 0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0]),
        ("0.25@0.5,1@1", [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.4375, 0.625, 0.8125, 1]),
        ("0@5,1@6", [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]),  # numbers of steps
        ("1@0,0.5@0.5", [1, 1, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5, 0.5, 0.5]),
        # One position above 1 makes all of them numbers of steps.
        (
            "0@0.5,1@10",
            [0, 0, 0.05263158, 0.15789474, 0.26315789, 0.36842105, 0.47368421, 0.57894737, 0.68421053, 0.78947368],
        ),
        ("0@0.5,1@0.5", [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),  # a jump
        ("1@0,0.5", [1, 1, 0.9375, 0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625, 0.5]),  # no position: the end
        ("0.7@0.3", [0.7] * 10),
        ("1@1;0~0", [0, 0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1]),
    ],
)
def test_ten_steps_as_in_loractl(text: str, expected: list[float]) -> None:
    strength = parse_strength(text)
    assert [strength_at(strength, Moment(i, 10)) for i in range(10)] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("steps", "expected"), [(1, [0.25]), (2, [0.25, 0.75]), (3, [0.25, 0.25, 0.75])])
def test_pictures_of_few_steps(steps: int, expected: list[float]) -> None:
    """loractl divides by zero for two steps; the first is the beginning and the last the end."""
    strength = parse_strength("0.25@0,0.75@1")
    assert [strength_at(strength, Moment(i, steps)) for i in range(steps)] == expected


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), (" -1 ", -1.0), (".3", 0.3), ("1e-2", 0.01)])
def test_a_number_is_a_number(text: str, value: float) -> None:
    assert parse_strength(text) == value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "'' is not a number"),
        ("heavy", "'heavy' is not a number"),
        ("nan", "'nan' is not a usable"),
        ("-inf", "'-inf' is not a usable"),
        ("2e6", "'2e6' is not a usable"),
        ("1,0.5", "'1' is not of the form"),  # loractl quietly takes the first
        ("1@0@1", "'1@0@1' is not of the form"),
        ("1@", "'' is not a number"),
        ("1@-1", "step '-1' is below 0"),
        ("0@0,1@nan", "'nan' is not a usable"),
        ("0@0,", "'' is not a number"),
    ],
)
def test_strengths_that_cannot_be_read(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_strength(text)


values = st.floats(-5, 5)
schedules = st.lists(st.tuples(st.floats(0, 60), values), min_size=1, max_size=6).map(
    lambda points: Schedule(tuple(sorted(points, key=lambda point: point[0])))
)


@given(schedules, st.floats(0, 100))
def test_between_two_points_it_is_a_straight_line(schedule: Schedule, position: float) -> None:
    strengths = [strength for _, strength in schedule.points]
    value = schedule.value(position)
    assert min(strengths) <= value <= max(strengths)
    left = [point for point in schedule.points if point[0] <= position]
    right = [point for point in schedule.points if point[0] > position]
    if not left:
        assert value == strengths[0]
    elif not right:
        assert value == strengths[-1]
    else:
        (a, low), (b, high) = left[-1], right[0]
        assert value * (b - a) == pytest.approx(low * (b - position) + high * (position - a), abs=1e-9)


@given(schedules)
def test_it_goes_through_its_points(schedule: Schedule) -> None:
    last = dict(schedule.points)  # of points at one position the last
    for position, strength in last.items():
        assert schedule.value(position) == pytest.approx(strength, abs=1e-12)


@given(st.one_of(values, schedules))
def test_strengths_are_written_as_they_are_read(strength: float | Schedule) -> None:
    assert parse_strength(format_strength(strength)) == strength


@given(st.floats(-1e6, 1e6))
def test_numbers_are_written_as_they_are_read(value: float) -> None:
    assert parse_number(format_number(value)) == value
