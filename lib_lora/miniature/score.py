"""The subject score: how much a picture's subject looks like the subject of some reference pictures.

Fixed features, nothing learned: where the thing is (`regions.thing_mask`), its colours in three bands from top to
bottom, and its outline as gradient orientations (Dalal and Triggs, 2005, HOG). 0 is nothing alike, 1 the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lib_lora.miniature.regions import frame, thing_mask

SIDE = 48  # pixels of the cut-out thing
COLOUR_BINS = 5  # for each of R, G, B
ORIENTATIONS = 8
CELL = 8  # pixels of a gradient cell
COLOUR_SHARE = 0.7


@dataclass(frozen=True)
class Features:
    """Colour histograms (3, COLOUR_BINS**3) and gradient orientations (cells, ORIENTATIONS), both unit length."""

    colour: np.ndarray
    gradient: np.ndarray


def features(image: Image.Image) -> Features:
    """The features of the picture's subject."""
    image = image.convert("RGB")
    if max(image.size) > 256:
        image = image.copy()
        image.thumbnail((256, 256))
    pixels = np.asarray(image)
    mask = thing_mask(pixels)
    box = frame(mask)
    cut = np.asarray(image.crop(box).resize((SIDE, SIDE), Image.BILINEAR), np.float32)
    inside = np.asarray(Image.fromarray(mask.astype(np.float32)).crop(box).resize((SIDE, SIDE), Image.BILINEAR))
    return Features(_colours(cut, inside), _gradients(cut, inside))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / max(float(np.linalg.norm(x)), 1e-9)


def _colours(cut: np.ndarray, inside: np.ndarray) -> np.ndarray:
    place = cut / 256 * COLOUR_BINS - 0.5  # (SIDE, SIDE, 3), in bins
    low = np.floor(place)
    rest = place - low
    bands: np.ndarray = np.zeros((3, COLOUR_BINS, COLOUR_BINS, COLOUR_BINS), np.float64)
    band = np.repeat(np.arange(3), SIDE // 3)[:, None] * np.ones((1, SIDE), int)
    for corner in range(8):  # each pixel is shared out among its eight neighbouring bins
        up = np.array([(corner >> c) & 1 for c in range(3)])
        at = np.clip(low + up, 0, COLOUR_BINS - 1).astype(int)
        weight = np.where(up, rest, 1 - rest).prod(2) * inside
        np.add.at(bands, (band, at[..., 0], at[..., 1], at[..., 2]), weight)
    return _unit(np.sqrt(bands.reshape(3, -1)))


def _gradients(cut: np.ndarray, inside: np.ndarray) -> np.ndarray:
    grey = (cut @ np.array([0.299, 0.587, 0.114])) * inside + 128 * (1 - inside)
    dy, dx = np.gradient(grey)
    angle = np.mod(np.arctan2(dy, dx), np.pi) / np.pi * ORIENTATIONS  # unsigned
    size = np.hypot(dx, dy)
    cells = np.zeros((SIDE // CELL, SIDE // CELL, ORIENTATIONS))
    rows, columns = np.indices(grey.shape) // CELL
    low = np.floor(angle).astype(int)
    for step, weight in ((0, 1 - (angle - low)), (1, angle - low)):
        np.add.at(cells, (rows, columns, (low + step) % ORIENTATIONS), size * weight)
    flat = np.sqrt(cells.reshape(-1, ORIENTATIONS))
    return _unit(flat)


def likeness(a: Features, b: Features) -> float:
    """0 to 1 for two pictures' subjects."""
    colour = float((a.colour * b.colour).sum())
    return COLOUR_SHARE * colour + (1 - COLOUR_SHARE) * float((a.gradient * b.gradient).sum())


def subject_score(images: Sequence[Image.Image], references: Sequence[Image.Image]) -> float:
    """Mean over `images` of the mean likeness to the `references`. Raises ValueError if either is empty."""
    if not images or not references:
        raise ValueError("subject_score needs at least one image and one reference; got an empty list.")
    wanted = [features(r) for r in references]
    found = [features(i) for i in images]
    return float(np.mean([[likeness(f, w) for w in wanted] for f in found]))


def auc(same: Sequence[float], other: Sequence[float]) -> float:
    """The chance that a score from `same` exceeds one from `other` (ties count half)."""
    a, b = np.asarray(same)[:, None], np.asarray(other)[None]
    return float((a > b).mean() + 0.5 * (a == b).mean())
