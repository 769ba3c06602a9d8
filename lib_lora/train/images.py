"""Pictures of a folder as training pixels: found, opened in any mode, cut to a square."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib_lora.errors import BadDataset

if TYPE_CHECKING:
    from PIL import Image

# What Pillow's decoders raise for broken files
BROKEN: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError),
    *(AttributeError, TypeError, struct.error),
)
LONG = 16  # times its height
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    path: Path
    reason: str


def list_pictures(folder: Path) -> list[Path]:
    """The picture files directly in `folder`, sorted by name. Raises BadDataset if there is no such folder."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, False for a name no file system takes
        raise BadDataset(f"data.folder = {str(folder)!r} is not a folder; give the folder that holds the pictures")
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return sorted(found, key=lambda path: path.name)


def open_picture(path: Path) -> Image.Image:
    """The picture upright (EXIF) and in RGB, transparency laid over white.

    16-bit grey is scaled to 8 bits; of an animation the first frame is taken. Raises BadDataset if it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise BadDataset(f"picture {str(path)!r} cannot be read ({error}); replace or remove it") from error


def readable(paths: Sequence[Path]) -> tuple[list[Path], list[Skipped]]:
    """Paths split into those that open as pictures and those that do not."""
    good: list[Path] = []
    bad: list[Skipped] = []
    for path in paths:
        try:
            open_picture(path)
        except BadDataset as error:
            bad.append(Skipped(path, str(error)))
        else:
            good.append(path)
    return good, bad


def cover_crop(picture: Image.Image, side: int, at: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """The picture scaled until it covers a square of `side` pixels, and the square cut out.

    `at` says where, from 0 (left, top) to 1 (right, bottom).
    """
    from PIL import Image

    short, long = sorted(picture.size)
    if long > LONG * short:  # scaling a long strip whole would take gigabytes; only its square is read
        places = [(length - short) * share for length, share in zip(picture.size, at, strict=True)]
        box = (places[0], places[1], places[0] + short, places[1] + short)
        return picture.resize((side, side), Image.Resampling.LANCZOS, box=box)
    scale = side / short
    width, height = (max(side, round(length * scale)) for length in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    left, top = round((width - side) * at[0]), round((height - side) * at[1])
    return picture.crop((left, top, left + side, top + side))


def to_pixels(picture: Image.Image, flip: bool = False) -> Tensor:
    """(3, height, width) float32 in [-1, 1] of an RGB picture, mirrored left to right if `flip`."""
    width, height = picture.size
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = data.view(height, width, 3).permute(2, 0, 1).float() / 127.5 - 1.0
    return pixels.flip(-1) if flip else pixels.contiguous()


def _to_rgb(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        return picture.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if picture.mode == "F":
        return picture.convert("L").convert("RGB")
    if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")
