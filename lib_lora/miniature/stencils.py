"""Outlines of the things the miniature can draw, as polygons in the unit box [-1, 1] x [-1, 1], y down."""

from __future__ import annotations

import math
from dataclasses import dataclass

Point = tuple[float, float]
Polygon = tuple[Point, ...]


@dataclass(frozen=True)
class Layer:
    """One polygon and the paint it takes: `main` is the colour a caption names."""

    paint: str
    outline: Polygon


def arc(cx: float, cy: float, rx: float, ry: float, span: tuple[float, float] = (0.0, 360.0)) -> Polygon:
    """41 points on an ellipse about (cx, cy), through the angles of `span` in degrees, both ends included."""
    start, stop = span
    angles = [math.radians(start + (stop - start) * i / 40) for i in range(41)]
    return tuple((cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles)


def box(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    """An axis-aligned rectangle."""
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _star() -> Polygon:
    spokes = ((1.0 if i % 2 == 0 else 0.42, math.radians(-90 + 36 * i)) for i in range(10))
    return tuple((r * math.cos(a), r * math.sin(a)) for r, a in spokes)


def _heart() -> Polygon:
    points = []
    for i in range(48):
        t = 2 * math.pi * i / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, (-y - 2.5) / 14.6))
    return tuple(points)


def _cross(arm: float = 0.34) -> Polygon:
    a = arm
    return (
        (-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a),
    )  # fmt: skip


def _moon() -> Polygon:
    outer = arc(0.15, 0, 1, 1, (60, 300))
    inner = arc(0.62, 0, 0.87, 0.87, (272, 88))
    return outer + inner


SHAPES: dict[str, tuple[Layer, ...]] = {
    "circle": (Layer("main", arc(0, 0, 1, 1)),),
    "square": (Layer("main", box(-0.88, -0.88, 0.88, 0.88)),),
    "triangle": (Layer("main", ((0, -1), (1, 0.8), (-1, 0.8))),),
    "star": (Layer("main", _star()),),
    "heart": (Layer("main", _heart()),),
    "cross": (Layer("main", _cross()),),
    "ring": (Layer("main", arc(0, 0, 1, 1) + arc(0, 0, 0.5, 0.5, (360, 0))),),
    "moon": (Layer("main", _moon()),),
    "house": (
        Layer("main", ((0, -1), (0.95, -0.2), (0.75, -0.2), (0.75, 0.9), (-0.75, 0.9), (-0.75, -0.2), (-0.95, -0.2))),
        Layer("dark", box(-0.2, 0.3, 0.2, 0.9)),
        Layer("light", box(-0.2, -0.3, 0.2, 0.05)),
    ),
    "tree": (
        Layer("wood", box(-0.17, 0.2, 0.17, 1.0)),
        Layer("main", arc(0, -0.55, 0.6, 0.45)),
        Layer("main", arc(-0.42, -0.05, 0.5, 0.42)),
        Layer("main", arc(0.42, -0.05, 0.5, 0.42)),
    ),
    "fish": (
        Layer("main", arc(-0.2, 0, 0.8, 0.55)),
        Layer("main", ((0.4, 0), (1.0, -0.6), (1.0, 0.6))),
        Layer("light", arc(-0.58, -0.12, 0.15, 0.15)),
        Layer("ink", arc(-0.6, -0.12, 0.07, 0.07)),
    ),
    "car": (
        Layer(
            "main",
            ((-1, 0), (-0.6, -0.05), (-0.38, -0.5), (0.4, -0.5), (0.65, -0.05), (1, 0.02), (1, 0.42), (-1, 0.42)),
        ),
        Layer("light", ((-0.42, -0.06), (-0.28, -0.36), (0.31, -0.36), (0.46, -0.06))),
        Layer("ink", arc(-0.55, 0.45, 0.24, 0.24)),
        Layer("ink", arc(0.55, 0.45, 0.24, 0.24)),
    ),
}  # fmt: skip
