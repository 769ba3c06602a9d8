"""Drawn pictures that differ as photos do: shapes at random places, one seed one picture."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFilter


def scene(seed: int, size: tuple[int, int] = (256, 256)) -> Image.Image:
    """Discs, bars and fine grain of many colours, in RGB."""
    rng = random.Random(seed)
    picture = Image.new("RGB", size, _colour(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(14):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        width, height = rng.randrange(size[0] // 8, size[0] // 2), rng.randrange(size[1] // 8, size[1] // 2)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - width // 2, y - height // 2, x + width // 2, y + height // 2), fill=_colour(rng))
    grain = Image.frombytes("L", size, rng.randbytes(size[0] * size[1])).convert("RGB")
    return Image.blend(picture.filter(ImageFilter.GaussianBlur(1)), grain, 0.08)


def put(folder: Path, name: str, seed: int = 0, **how: Any) -> Path:
    """A scene saved under a name; `size` of the picture, the rest goes to Pillow's save."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    scene(seed, how.pop("size", (256, 256))).save(path, **how)
    return path


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(30, 226), rng.randrange(30, 226), rng.randrange(30, 226)
