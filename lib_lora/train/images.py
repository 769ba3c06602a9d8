"""Pictures of a folder as training pixels: found, looked at cheaply, opened in any mode, cut to a rectangle."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lib_lora.errors import BadDataset
from lib_lora.train.colour import to_srgb

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]  # width, height

# What Pillow's decoders raise for broken files
BROKEN: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError),
    *(AttributeError, TypeError, struct.error),
)
CENTRE = (0.5, 0.5)
LONG = 16  # times its height
MASK_ENDING = "-masklabel"  # a picture of this name is another one's mask, never one to learn
ORIENTATION = 0x0112
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".jxl", ".heic"),  # where Pillow or a plugin of it can
)
PLUGINS = {".avif": "pillow_avif", ".jxl": "pillow_jxl", ".heic": "pillow_heif"}
_TAIL = 4096
_TURNED = (5, 6, 7, 8)  # orientations that exchange width and height


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Placement:
    """How a picture lies under the rectangle it is cut to: scaled to `scaled`, cut `left` and `top` pixels in."""

    scaled: Size
    left: int
    top: int


def list_pictures(folder: Path) -> list[Path]:
    """The picture files directly in `folder`, sorted by name. Raises BadDataset if there is no such folder."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, False for a name no file system takes
        raise BadDataset(f"data.folder = {str(folder)!r} is not a folder; give the folder that holds the pictures")
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return sorted((p for p in found if not p.stem.endswith(MASK_ENDING)), key=lambda path: path.name)


def open_picture(path: Path) -> Image.Image:
    """The picture upright (EXIF) and in sRGB, transparency laid over white.

    16-bit grey is scaled to 8 bits; of an animation the first frame is taken. Raises BadDataset if it cannot be read.
    """
    return open_layers(path)[0]


def open_layers(path: Path) -> tuple[Image.Image, Image.Image | None]:
    """What `open_picture` gives, and the opacity, mode L, white where opaque; None if there is no transparency."""
    with _named(path):
        picture = to_srgb(_upright(path))
        alpha = picture.convert("RGBA").getchannel("A") if _transparent(picture) else None
        return _to_rgb(picture), alpha


def look(path: Path) -> Size:
    """Width and height of the upright picture, from its header and its end alone. Raises BadDataset if it is broken.

    A file that does not end as its format says is decoded whole, so cut-off files are found without decoding good
    ones; damage in the middle shows when the picture is opened.
    """
    from PIL import Image

    with _named(path), Image.open(path) as picture:
        size, tail = picture.size, _tail(path)
        if not _ends_well(picture, path, tail) or (picture.format == "PNG" and b"eXIf" in tail):
            return _upright(path).size
        # Pillow decodes a PNG without EXIF to look for it behind the picture
        known = picture.format != "PNG" or picture.info.keys() & {"exif", "Raw profile type exif"}
        turned = known and picture.getexif().get(ORIENTATION) in _TURNED
    return (size[1], size[0]) if turned else size


def sizes(paths: Sequence[Path]) -> tuple[dict[Path, Size], list[Skipped]]:
    """The sizes of those paths that are pictures, and the rest with the reason."""
    good: dict[Path, Size] = {}
    bad: list[Skipped] = []
    for path in paths:
        try:
            good[path] = look(path)
        except BadDataset as error:
            bad.append(Skipped(path, str(error)))
    return good, bad


def placement(size: Size, box: Size, at: tuple[float, float] = CENTRE) -> Placement:
    """How a picture of `size` is scaled until it covers `box` and where the box is cut out.

    `at` says where, from 0 (left, top) to 1 (right, bottom).
    """
    scale = max(box[0] / size[0], box[1] / size[1])
    scaled = (max(box[0], round(size[0] * scale)), max(box[1], round(size[1] * scale)))
    return Placement(scaled, round((scaled[0] - box[0]) * at[0]), round((scaled[1] - box[1]) * at[1]))


def cover_crop(picture: Image.Image, box: int | Size, at: tuple[float, float] = CENTRE) -> Image.Image:
    """The picture scaled until it covers `box` (width, height; a number: a square), and the box cut out.

    `at` says where, from 0 (left, top) to 1 (right, bottom).
    """
    from PIL import Image

    box = (box, box) if isinstance(box, int) else box
    scale = max(box[0] / picture.width, box[1] / picture.height)
    if max(picture.width * scale / box[0], picture.height * scale / box[1]) > LONG:
        # scaling a long strip whole would take gigabytes; only what is seen of it is read
        seen = (box[0] / scale, box[1] / scale)
        left, top = ((length - part) * share for length, part, share in zip(picture.size, seen, at, strict=True))
        return picture.resize(box, Image.Resampling.LANCZOS, box=(left, top, left + seen[0], top + seen[1]))
    place = placement(picture.size, box, at)
    if place.scaled != picture.size:
        picture = picture.resize(place.scaled, Image.Resampling.LANCZOS)
    return picture.crop((place.left, place.top, place.left + box[0], place.top + box[1]))


def to_pixels(picture: Image.Image, flip: bool = False) -> Tensor:
    """(3, height, width) float32 in [-1, 1] of an RGB picture, mirrored left to right if `flip`."""
    width, height = picture.size
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = data.view(height, width, 3).permute(2, 0, 1).float() / 127.5 - 1.0
    return pixels.flip(-1) if flip else pixels.contiguous()


def stray(picture: Image.Image, much: float, shares: Sequence[float]) -> Image.Image:
    """The RGB picture with brightness, contrast and hue changed.

    `shares`, three numbers in [-1, 1], say how far each goes: brightness and contrast by a factor of 1 + much * share,
    hue by much * share tenths of a turn.
    """
    from PIL import Image, ImageEnhance

    picture = ImageEnhance.Brightness(picture).enhance(1 + much * shares[0])
    picture = ImageEnhance.Contrast(picture).enhance(1 + much * shares[1])
    turn = round(25.6 * much * shares[2])
    hue, saturation, value = picture.convert("HSV").split()
    return Image.merge("HSV", (hue.point(lambda h: (h + turn) % 256), saturation, value)).convert("RGB")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """In here whatever a decoder raises becomes a BadDataset that names the file."""
    from PIL import Image

    _plug_in(path)
    try:
        yield
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise BadDataset(f"picture {str(path)!r} cannot be read ({error}); replace or remove it") from error


def _upright(path: Path) -> Image.Image:
    """The picture in its own mode, turned as its EXIF says."""
    from PIL import Image, ImageChops, ImageOps

    with Image.open(path) as picture:
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        if picture.format == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info:
            # Pillow takes every CMYK JPEG for one of Adobe's, whose inks are stored inverted
            return ImageChops.invert(upright)
        return upright


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, os.path.getsize(path) - _TAIL))
        return file.read()


def _ends_well(picture: Image.Image, path: Path, tail: bytes) -> bool:
    """Whether the file's end is where the format wants it; True for formats that do not tell."""
    if picture.format == "PNG":
        return tail.rstrip(b"\0").endswith(b"IEND\xaeB`\x82")
    if picture.format == "JPEG":
        return tail.rstrip(b"\0\r\n").endswith(b"\xff\xd9")
    if picture.format == "GIF":
        return tail.rstrip(b"\0").endswith(b";")
    if picture.format in ("WEBP", "BMP"):
        with path.open("rb") as file:
            head = file.read(8)
        extra = 8 if picture.format == "WEBP" else 0
        told = int.from_bytes(head[4:8] if extra else head[2:6], "little") + extra
        return os.path.getsize(path) >= told > extra
    return picture.format != "TIFF"


def _plug_in(path: Path) -> None:
    """Give Pillow the plugin for a format it cannot read by itself, if it is installed. Raises BadDataset."""
    import importlib

    from PIL import Image

    suffix = path.suffix.lower()
    if suffix not in PLUGINS:
        return
    Image.init()
    if suffix in Image.registered_extensions():
        return
    try:
        plugin: Any = importlib.import_module(PLUGINS[suffix])
    except ImportError:
        raise BadDataset(
            f"picture {str(path)!r} cannot be read (this Pillow does not know {suffix}); "
            f"save it as .png, or pip install {PLUGINS[suffix].replace('_', '-')}"
        ) from None
    if hasattr(plugin, "register_heif_opener"):
        plugin.register_heif_opener()


def _transparent(picture: Image.Image) -> bool:
    return "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info


def _to_rgb(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":  # Pillow's own conversion would clip these to white
        return _to_8_bits(picture).convert("RGB")
    if _transparent(picture):
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of fractions, as mode L: its range is told by its mode and its largest value."""
    grey = picture.convert("F" if picture.mode == "F" else "I")
    top: float = grey.getextrema()[1]  # type: ignore[assignment,unused-ignore]
    if picture.mode == "F":
        return (grey.point(lambda value: value * 255.0) if top <= 1.0 else grey).convert("L")
    scale = 1 / 257 if top < 2**16 else 255 / top
    return grey.point(lambda value: value * scale).convert("L")
