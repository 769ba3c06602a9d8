"""Strengths that change while a picture is drawn: `w@s,w@s,...`, as in the extension loractl."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

LARGEST = 1e6  # beyond it a strength times a block's ratio times a delta could leave float32


@dataclass(frozen=True)
class Moment:
    """Where sampling stands: `step` of `steps`, counted from 0, in the first or in the hires pass.

    A step is one round of the sampler, however often it asks the model.
    """

    step: int = 0
    steps: int = 1
    hires: bool = False


@dataclass(frozen=True)
class Schedule:
    """Points (position, strength) by ascending position: linear between them, constant before and after.

    Positions are fractions of the pass if none is above 1, else numbers of steps. The clock is loractl's, so that a
    prompt gives the picture it gave there: it stands at 0 in the first two steps, at 1 in the third, and at the whole
    in the last.
    """

    points: tuple[tuple[float, float], ...]

    @property
    def fractional(self) -> bool:
        """Whether positions are fractions of the pass."""
        return self.points[-1][0] <= 1

    @property
    def varies(self) -> bool:
        """Whether there are two strengths at all."""
        return len({strength for _, strength in self.points}) > 1

    def at(self, moment: Moment) -> float:
        """The strength at a moment."""
        return self.value(self._clock(moment))

    def value(self, position: float) -> float:
        """The strength at a position; where two points share one, the later written counts from there on."""
        after = bisect_right([place for place, _ in self.points], position)
        if after == 0:
            return self.points[0][1]
        if after == len(self.points):
            return self.points[-1][1]
        (left, low), (right, high) = self.points[after - 1], self.points[after]
        share = (position - left) / (right - left)
        mixed = low * (1 - share) + high * share
        return min(max(mixed, min(low, high)), max(low, high))  # rounding must not leave the range

    def _clock(self, moment: Moment) -> float:
        done = max(moment.step - 1, 0)
        if not self.fractional:
            return done
        if moment.steps > 2:
            return done / (moment.steps - 2)
        return float(moment.step > 0)  # loractl divides by zero here


Strength = float | Schedule


def strength_at(strength: Strength, moment: Moment) -> float:
    """The number at a moment."""
    return strength.at(moment) if isinstance(strength, Schedule) else strength


def parse_number(text: str) -> float:
    """A number that can be used. Raises ValueError with the fault."""
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a number") from error
    if not abs(value) <= LARGEST:  # false for nan
        raise ValueError(f"{text!r} is not a usable number")
    return value


def parse_strength(text: str) -> Strength:
    """A number, or a schedule: pairs `strength@position` divided by `,` or `;` (`~` may stand for `@`).

    As in loractl, a later pair without a position stands at 1. Raises ValueError with the fault.
    """
    pairs = [re.split("[@~]", piece) for piece in re.split("[,;]", text)]
    if len(pairs) == 1 and len(pairs[0]) == 1:
        return parse_number(text)
    points: list[tuple[float, float]] = []
    for pair in pairs:
        if len(pair) > 2 or (not points and len(pair) == 1):
            raise ValueError(f"{'@'.join(pair)!r} is not of the form strength@step")
        position = parse_number(pair[1]) if len(pair) == 2 else 1.0
        if position < 0:
            raise ValueError(f"step {pair[1]!r} is below 0")
        points.append((position, parse_number(pair[0])))
    return Schedule(tuple(sorted(points, key=lambda point: point[0])))


def format_number(value: float) -> str:
    """The shortest text that reads back as this number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def format_strength(strength: Strength) -> str:
    """The text that `parse_strength` reads back."""
    if not isinstance(strength, Schedule):
        return format_number(strength)
    return ",".join(f"{format_number(value)}@{format_number(place)}" for place, value in strength.points)
