"""Line plots as SVG: axes with tick labels, a summary as title, and the figures that the mouse brings up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from lib_lora.ui.html_parts import rate
from lib_lora.ui.trainer import Point

WIDTH, HEIGHT = 600.0, 140.0  # of the drawing's own coordinates; it is stretched to its place
DRAWN = 300  # points of a line; beyond that they are thinned
LEAST = 1e-300  # a span below this has no steps to be drawn
OUTLIERS = 0.98  # this share of the raw losses is in sight


@dataclass(frozen=True)
class Line:
    """One line of a plot. `style`: "raw" (faint) or "main"."""

    name: str
    values: Sequence[float]
    style: str = "main"


def plots(points: Sequence[Point]) -> str:
    """The loss and the learning rate over the steps; what is missing is said for fewer than two points."""
    if len(points) < 2:
        return '<p class="lk-note">The curves appear after the first steps.</p>'
    few = thin(points, DRAWN)
    steps = [point.step for point in few]
    raw = Line("loss", [point.loss for point in few], "raw")
    smooth = Line("smoothed", [point.smooth for point in few])
    low, high = loss_range(raw.values, smooth.values)
    rates = [point.lr for point in few]
    return (
        '<div class="lk-plots">'
        + plot("Loss", steps, (raw, smooth), (low, high))
        + plot("Learning rate", steps, (Line("rate", rates),), (0.0, max(rates)), rate)
        + "</div>"
    )


def plot(
    title: str,
    steps: Sequence[int],
    lines: Sequence[Line],
    span: tuple[float, float],
    shown: Callable[[float], str] = lambda value: f"{value:.4g}",
) -> str:
    """One plot of lines over steps. `span`: the values at the lower and upper edge; `shown` writes a value."""
    marks = ticks(*span)
    low, high = min(span[0], marks[0]), max(span[1], marks[-1])
    width = max(steps[-1] - steps[0], 1)

    def across(step: float) -> float:
        return (step - steps[0]) / width

    def down(value: float) -> float:
        return 1 - (value - low) / (high - low or 1.0)

    drawn = "".join(_polyline(line, [across(step) for step in steps], down) for line in lines)
    grid = "".join(
        f'<line x1="0" x2="{WIDTH:g}" y1="{HEIGHT * down(m):.1f}" y2="{HEIGHT * down(m):.1f}"/>' for m in marks
    )
    last = ", ".join(f"{line.name} {shown(line.values[-1])}" for line in lines)
    rows = ";".join(
        ",".join([f"{across(step):.4f}", str(step), *(shown(line.values[i]) for line in lines)])
        for i, step in enumerate(steps)
    )
    names = ",".join(line.name for line in lines)
    y_labels = "".join(f'<span class="lk-y" style="top:{down(mark):.2%}">{shown(mark)}</span>' for mark in marks)
    x_labels = "".join(
        f'<span class="lk-x" style="left:{across(mark):.2%}">{mark:g}</span>'
        for mark in ticks(steps[0], steps[-1])
        if steps[0] <= mark <= steps[-1] and mark == int(mark)
    )
    return (
        f'<figure class="lk-plot"><figcaption>{escape(title)}</figcaption><div class="lk-axes">'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" tabindex="0" '
        f'aria-label="{escape(title)}" data-names="{names}" data-rows="{rows}">'
        f'<desc class="notranslate">{last}</desc>'
        f'<g class="lk-grid">{grid}</g>{drawn}</svg>{y_labels}{x_labels}</div></figure>'
    )


def loss_range(raw: Sequence[float], smooth: Sequence[float]) -> tuple[float, float]:
    """The losses at the lower and upper edge: all smoothed ones, and raw ones but for a few outliers."""
    known = sorted(value for value in raw if math.isfinite(value)) or [0.0]
    usual = known[min(int(len(known) * OUTLIERS), len(known) - 1)]
    calm = [value for value in smooth if math.isfinite(value)] or [0.0]
    return min(known[0], *calm), max(usual, *calm)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from about `low` to about `high`: at least two, steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    span = high - low
    if span <= max(abs(high) * 1e-9, LEAST):
        low, span = min(low, 0.0), abs(high) if abs(high) > LEAST else 1.0
        high = low + span
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many of the points, evenly, the last one always among them."""
    every = max(math.ceil(len(points) / most), 1)
    return [*points[:-1:every], points[-1]] if points else []


def _polyline(line: Line, across: Sequence[float], down: Callable[[float], float]) -> str:
    """A line; values that are no numbers leave a gap."""
    pieces: list[list[str]] = [[]]
    for x, value in zip(across, line.values):
        if math.isfinite(value):
            pieces[-1].append(f"{x * WIDTH:.1f},{HEIGHT * max(min(down(value), 2.0), -1.0):.1f}")
        elif pieces[-1]:
            pieces.append([])
    return "".join(f'<polyline class="lk-{line.style}" points="{" ".join(piece)}"/>' for piece in pieces if piece)
