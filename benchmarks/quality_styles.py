"""Four styles made by code, applied to the miniature's own scenes, and how far a picture is in one of them.

The score is by rule: colours and gradients of the whole picture, compared with styled drawings of the same scene.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

Array = np.ndarray[Any, np.dtype[Any]]
BINS = 6  # for each of R, G, B
ORIENTATIONS = 8
MAGNITUDES = (4.0, 10.0, 22.0, 45.0, 90.0)  # borders between classes of gradients, in 8-bit grey per pixel
COLOUR_SHARE = 0.5


def inverted(picture: Image.Image) -> Image.Image:
    """Every colour's opposite."""
    return Image.eval(picture.convert("RGB"), lambda value: 255 - value)


def outlined(picture: Image.Image) -> Image.Image:
    """Thick black lines where colours meet, the rest paler."""
    grey = np.asarray(picture.convert("RGB"), np.float32)
    steps = np.zeros(grey.shape[:2], np.float32)
    steps[:, 1:] = np.abs(np.diff(grey, axis=1)).max(2)
    steps[1:] = np.maximum(steps[1:], np.abs(np.diff(grey, axis=0)).max(2))
    lines = Image.fromarray(((steps > 40) * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(7))
    pale = Image.fromarray((grey * 0.55 + 255 * 0.45).astype(np.uint8))
    return Image.composite(Image.new("RGB", picture.size, (12, 12, 16)), pale, lines)


def halftone(picture: Image.Image, cell: int = 16) -> Image.Image:
    """Dots of the picture's colours on paper, the larger the darker; `cell` pixels apart."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    rows, columns = np.indices(pixels.shape[:2])
    small = np.asarray(picture.convert("RGB").resize([side // cell for side in picture.size], Image.Resampling.BOX))
    mean = small.repeat(cell, 0).repeat(cell, 1).astype(np.float32)
    ink = 1 - mean.mean(2) / 255
    far = np.hypot(rows % cell - (cell - 1) / 2, columns % cell - (cell - 1) / 2)
    dots = far < cell * (0.28 + 0.24 * ink)
    paper = np.asarray((250, 240, 215), np.float32)
    return Image.fromarray(np.where(dots[..., None], mean, paper).astype(np.uint8))


def washed(picture: Image.Image) -> Image.Image:
    """Soft as a watercolour: blurred, pale, on warm paper that shows at the edges."""
    soft = picture.convert("RGB").filter(ImageFilter.GaussianBlur(5))
    pixels = np.asarray(soft, np.float32)
    height, width = pixels.shape[:2]
    rows, columns = np.indices((height, width))
    edge = np.minimum.reduce([rows, columns, height - 1 - rows, width - 1 - columns]) / (0.16 * min(height, width))
    paint = (0.62 * np.clip(edge, 0, 1))[..., None]
    paper = np.asarray((252, 240, 222), np.float32)
    return Image.fromarray((paint * pixels + (1 - paint) * paper).astype(np.uint8))


STYLES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "inverted": inverted,
    "outlined": outlined,
    "halftone": halftone,
    "washed": washed,
}


def style_features(picture: Image.Image) -> tuple[Array, Array]:
    """Colour histogram (BINS**3,) and gradient histogram (classes of magnitude * ORIENTATIONS,), unit length each."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    bins = np.minimum((pixels / 256 * BINS).astype(int), BINS - 1)
    flat = (bins[..., 0] * BINS + bins[..., 1]) * BINS + bins[..., 2]
    spread = np.bincount(flat.ravel(), minlength=BINS**3).reshape(BINS, BINS, BINS).astype(np.float64)
    for axis in range(3):  # a colour near a bin's border counts for both sides
        padded = np.pad(spread, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        spread = 0.5 * spread + 0.25 * (padded.take(range(BINS), axis) + padded.take(range(2, BINS + 2), axis))
    dy, dx = np.gradient(pixels @ np.array([0.299, 0.587, 0.114], np.float32))
    angle = (np.mod(np.arctan2(dy, dx), np.pi) / np.pi * ORIENTATIONS).astype(int) % ORIENTATIONS
    size = np.digitize(np.hypot(dx, dy), MAGNITUDES)
    edges = np.bincount((size * ORIENTATIONS + angle).ravel(), minlength=(len(MAGNITUDES) + 1) * ORIENTATIONS)
    edges = edges.astype(np.float64)
    edges[:ORIENTATIONS] = edges[:ORIENTATIONS].sum() / ORIENTATIONS  # where it is flat there is no direction
    return _unit(np.sqrt(spread.ravel())), _unit(np.sqrt(edges))


def style_likeness(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """0 to 1 for two pictures' features."""
    return COLOUR_SHARE * float(a[0] @ b[0]) + (1 - COLOUR_SHARE) * float(a[1] @ b[1])


def style_score(pictures: Sequence[Image.Image], references: Sequence[Sequence[Image.Image]]) -> float:
    """Mean likeness of each picture to its own references: styled drawings of the same scene."""
    found = []
    for picture, own in zip(pictures, references, strict=True):
        seen = style_features(picture)
        found += [style_likeness(seen, style_features(reference)) for reference in own]
    return float(np.mean(found))


def _unit(values: Array) -> Array:
    return values / max(float(np.linalg.norm(values)), 1e-9)
