"""What of a picture the loss looks at: its opaque part, or the white part of a second picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib_lora.errors import BadDataset
from lib_lora.train.images import MASK_ENDING, SUFFIXES, Placement, Size, open_picture

if TYPE_CHECKING:
    from PIL import Image

    from lib_lora.train.sections_data import Data

FACTOR = 8  # pixels per latent


def find_mask(picture: Path, data: Data) -> Path | None:
    """The file that holds the mask of a picture: itself for alpha; None where there is none.

    Masks in a folder have the picture's name, with any picture format's ending. Without a folder they lie beside the
    pictures as 'name-masklabel.png'.
    """
    if data.masks == "alpha":
        return picture
    if data.masks != "folder":
        return None
    folder = Path(os.path.expanduser(data.mask_folder)) if data.mask_folder else picture.parent
    stems = (picture.stem, picture.stem + MASK_ENDING) if data.mask_folder else (picture.stem + MASK_ENDING,)
    candidates = (folder / f"{stem}{ending}" for stem in stems for ending in (".png", *SUFFIXES))
    return next((path for path in candidates if path.is_file()), None)


def check_folder(data: Data) -> None:
    """Raises BadDataset if masks are wanted from a folder that is none."""
    if data.masks == "folder" and data.mask_folder and not os.path.isdir(os.path.expanduser(data.mask_folder)):
        raise BadDataset(f"data.mask_folder = {data.mask_folder!r} is not a folder; give the one that holds the masks")


def mask_of(path: Path | None, alpha: Image.Image | None, data: Data) -> Image.Image | None:
    """The mask of a picture as mode F, 0 to 255: its `alpha`, or what is in the file `path`; None without one.

    What is transparent in a mask's file counts as white. Raises BadDataset if that file cannot be read.
    """
    if path is None or data.masks == "none":
        return None
    mask = alpha if data.masks == "alpha" else open_picture(path).convert("L")
    return mask.convert("F") if mask is not None else None


def latent_mask(mask: Image.Image, place: Placement, box: Size, floor: float) -> Tensor:
    """(1, h/8, w/8) float32 in [floor, 1]: the mean of the mask over each latent of the crop.

    `place` is how the picture itself lies under `box`; a mask of another size is stretched over the picture.
    """
    from PIL import Image

    ratio = (mask.width / place.scaled[0], mask.height / place.scaled[1])
    left, top = place.left * ratio[0], place.top * ratio[1]
    seen = (left, top, min(left + box[0] * ratio[0], mask.width), min(top + box[1] * ratio[1], mask.height))
    small = mask.resize((box[0] // FACTOR, box[1] // FACTOR), Image.Resampling.BOX, box=seen)
    values = torch.tensor(list(small.getdata()), dtype=torch.float32) / 255
    return floor + (1 - floor) * values.clamp(0, 1).view(1, small.height, small.width)
