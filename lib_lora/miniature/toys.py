"""Toys: a family of figures from a few dozen choices. Each seed is another subject, the same in every picture."""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass

from lib_lora.miniature.stencils import Layer, Polygon, arc, box

Rgb = tuple[int, int, int]

BODIES: dict[str, Polygon] = {
    "ball": arc(0, 0.1, 0.72, 0.72),
    "block": box(-0.62, -0.5, 0.62, 0.78),
    "egg": arc(0, 0.1, 0.56, 0.78),
    "cone": ((0, -0.75), (0.75, 0.8), (-0.75, 0.8)),
    "cup": ((-0.75, -0.5), (0.75, -0.5), (0.5, 0.8), (-0.5, 0.8)),
}
TOPS: dict[str, tuple[Polygon, ...]] = {
    "ears": (((-0.6, -0.25), (-0.55, -1.0), (-0.1, -0.5)), ((0.6, -0.25), (0.55, -1.0), (0.1, -0.5))),
    "antenna": (box(-0.06, -0.9, 0.06, -0.4), arc(0, -0.88, 0.14, 0.14)),
    "horns": (box(-0.5, -1.0, -0.3, -0.3), box(0.3, -1.0, 0.5, -0.3)),
    "hat": (box(-0.6, -0.62, 0.6, -0.46), box(-0.34, -1.0, 0.34, -0.5)),
    "none": (),
}
MARKS: dict[str, tuple[Polygon, ...]] = {
    "belly": (arc(0, 0.42, 0.34, 0.3),),
    "belt": (box(-0.56, 0.3, 0.56, 0.52),),
    "stripe": (box(-0.12, 0.05, 0.12, 0.76),),
    "dots": (arc(-0.28, 0.36, 0.13, 0.13), arc(0.28, 0.36, 0.13, 0.13), arc(0, 0.6, 0.13, 0.13)),
}


@dataclass(frozen=True)
class Toy:
    """One subject's looks. Colours are 8-bit RGB."""

    body: str
    top: str
    mark: str
    eyes: int
    feet: bool
    body_colour: Rgb
    mark_colour: Rgb
    top_colour: Rgb

    @classmethod
    def from_seed(cls, seed: int) -> Toy:
        """The toy of this seed; three hues well apart."""
        rng = random.Random(seed)
        hue = rng.random()

        def colour(h: float) -> Rgb:
            r, g, b = colorsys.hsv_to_rgb(h % 1.0, rng.uniform(0.6, 0.95), rng.uniform(0.55, 0.95))
            return int(r * 255), int(g * 255), int(b * 255)

        return cls(
            rng.choice(sorted(BODIES)), rng.choice(sorted(TOPS)), rng.choice(sorted(MARKS)), rng.choice((1, 2, 2, 3)),
            rng.random() < 0.6, colour(hue), colour(hue + rng.uniform(0.28, 0.5)), colour(hue + rng.uniform(0.5, 0.72)),
        )  # fmt: skip

    def paints(self) -> dict[str, Rgb]:
        """Colour of each paint used by `toy_layers`."""
        return {
            "body": self.body_colour, "mark": self.mark_colour, "top": self.top_colour,
            "eye": (248, 248, 248), "ink": (24, 24, 28),
        }  # fmt: skip


def toy_layers(toy: Toy) -> tuple[Layer, ...]:
    """The toy's polygons, back to front."""
    layers = [Layer("top", p) for p in TOPS[toy.top]]
    if toy.feet:
        layers += [Layer("top", box(-0.48, 0.7, -0.14, 1.0)), Layer("top", box(0.14, 0.7, 0.48, 1.0))]
    layers.append(Layer("body", BODIES[toy.body]))
    layers += [Layer("mark", p) for p in MARKS[toy.mark]]
    places = {1: (0.0,), 2: (-0.22, 0.22), 3: (-0.32, 0.0, 0.32)}[toy.eyes]
    for x in places:
        layers += [Layer("eye", arc(x, -0.08, 0.17, 0.17)), Layer("ink", arc(x, -0.06, 0.085, 0.085))]
    return tuple(layers)
