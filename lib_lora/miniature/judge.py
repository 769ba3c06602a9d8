"""The rule-based judge: what shape, of what colour, on what background a picture shows. No learning in it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lib_lora.miniature.draw import Pose, paint
from lib_lora.miniature.regions import plain_mask, silhouette
from lib_lora.miniature.scenes import COLOURS, PLAIN_BACKGROUNDS, Scene
from lib_lora.miniature.stencils import SHAPES

MIN_OVERLAP = 0.62  # intersection over union below which a silhouette is no known shape
MIN_AREA, MAX_AREA = 0.015, 0.7  # of the picture


@dataclass(frozen=True)
class Verdict:
    """What the judge saw; `shape` is empty if nothing known was found. `overlap` is the best shape's IoU."""

    shape: str
    colour: str
    background: str
    overlap: float

    def agrees(self, scene: Scene) -> bool:
        """Whether shape and colour are as asked."""
        return self.shape == scene.thing and self.colour == scene.colour


def nearest_name(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """The palette's name for an RGB colour."""
    names = list(palette)
    table = np.array([palette[n] for n in names], np.float32)
    return names[int(((table - colour) ** 2).sum(1).argmin())]


def main_colour(pixels: np.ndarray, mask: np.ndarray) -> str:
    """The palette colour most of the masked pixels are nearest to."""
    names = list(COLOURS)
    table = np.array([COLOURS[n] for n in names], np.float32)
    inside = pixels[mask].astype(np.float32)  # (n, 3)
    votes = ((inside[:, None] - table[None]) ** 2).sum(2).argmin(1)
    return names[int(np.argmax(np.bincount(votes, minlength=len(names))))]


@functools.lru_cache(maxsize=1)
def _templates() -> tuple[list[str], np.ndarray]:
    names, pictures = [], []
    for name, layers in SHAPES.items():
        for turn in (-8, -4, 0, 4, 8):
            canvas = Image.new("RGB", (96, 96))
            white = dict.fromkeys(("main", "dark", "light", "ink", "wood"), (255, 255, 255))
            drawn = np.asarray(paint(canvas, layers, white, Pose(48, 48, 40, turn)))
            names.append(name)
            pictures.append(silhouette(drawn[..., 0] > 127))
    return names, np.stack(pictures)


def judge(image: Image.Image) -> Verdict:
    """What a picture of any size shows."""
    pixels = np.asarray(image.convert("RGB"))
    mask, ground = plain_mask(pixels)
    background = nearest_name(ground, PLAIN_BACKGROUNDS)
    if not MIN_AREA <= mask.mean() <= MAX_AREA:
        return Verdict("", "", background, 0.0)
    names, templates = _templates()
    seen = silhouette(mask)
    overlaps = np.minimum(templates, seen).sum((1, 2)) / np.maximum(templates, seen).sum((1, 2))
    best = int(overlaps.argmax())
    shape = names[best] if overlaps[best] >= MIN_OVERLAP else ""
    return Verdict(shape, main_colour(pixels, mask), background, float(overlaps[best]))
