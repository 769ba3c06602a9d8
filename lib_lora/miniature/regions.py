"""Where the thing is in a picture: what differs from the picture's border, largest patch only. numpy alone."""

from __future__ import annotations

import numpy as np
from PIL import Image

MIN_DISTANCE = 46.0  # in 8-bit RGB; the closest two palette colours are 88 apart


def border_colours(pixels: np.ndarray, width: int = 4, most: int = 96) -> np.ndarray:
    """Up to `most` colours (n, 3) float32 sampled evenly round the border of pixels (H, W, 3) uint8."""
    edge = np.concatenate(
        [
            pixels[:width].reshape(-1, 3),
            pixels[-width:].reshape(-1, 3),
            pixels[:, :width].reshape(-1, 3),
            pixels[:, -width:].reshape(-1, 3),
        ]
    )
    return edge[:: max(1, len(edge) // most)].astype(np.float32)


def distance_from(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(H, W) distance of each pixel to the nearest of `colours` (n, 3)."""
    flat: np.ndarray = pixels.reshape(-1, 3).astype(np.float32)
    squares = (flat**2).sum(1)[:, None] - 2 * flat @ colours.T + (colours**2).sum(1)[None]
    return np.sqrt(np.maximum(squares.min(1), 0)).reshape(pixels.shape[:2])


def plain_mask(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mask (H, W) bool, background colour (3,)) for a picture whose background is one colour."""
    ground = np.median(border_colours(pixels, most=100000), axis=0)
    return largest_patch(distance_from(pixels, ground[None]) > MIN_DISTANCE), ground


def thing_mask(pixels: np.ndarray) -> np.ndarray:
    """(H, W) bool for any background: what no border pixel looks like. All True if nothing stands out."""
    border = border_colours(pixels)
    ground = np.median(border, axis=0)
    # A thing that touches the border must not hide itself: drop border colours far from the usual one
    # unless they are so many that the background is a texture.
    far = np.abs(border - ground).max(1) > 70
    if 0 < far.mean() < 0.25:
        border = border[~far]
    mask = largest_patch(distance_from(pixels, border) > MIN_DISTANCE * 0.75)
    return mask if mask.mean() > 0.01 else np.ones_like(mask)


def largest_patch(mask: np.ndarray) -> np.ndarray:
    """The connected patch of True (4-neighbours, gaps of one pixel closed) with the most pixels."""
    left, best, size = grow(mask), np.zeros_like(mask), 0
    while left.any() and left.sum() > size:
        patch = fill(left, int(np.argmax(left)))
        if patch.sum() > size:
            best, size = patch, int(patch.sum())
        left = left & ~patch
    return best & mask


def fill(mask: np.ndarray, seed: int) -> np.ndarray:
    """The 4-connected patch of `mask` that holds flat index `seed`: whole runs of rows and columns at a time."""
    rows, columns = runs(mask), runs(mask.T).T
    patch = np.zeros_like(mask)
    patch.flat[seed] = True
    size = 0
    while patch.sum() > size:
        size = int(patch.sum())
        for ids in (rows, columns):
            reached: np.ndarray = np.zeros(int(ids.max()) + 1, bool)
            reached[ids[patch]] = True
            patch = mask & reached[ids]
    return patch


def runs(mask: np.ndarray) -> np.ndarray:
    """(H, W) a number for each horizontal run of True, counted from 1; meaningless where `mask` is False."""
    starts = mask.copy()
    starts[:, 1:] &= ~mask[:, :-1]
    return starts.cumsum().reshape(mask.shape)


def grow(mask: np.ndarray) -> np.ndarray:
    """The mask and its four neighbours."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def frame(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the mask's square bounding box, the thing in its middle."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cx, cy = (xs[0] + xs[-1] + 1) / 2, (ys[0] + ys[-1] + 1) / 2
    half = max(xs[-1] + 1 - xs[0], ys[-1] + 1 - ys[0]) / 2
    return round(cx - half), round(cy - half), round(cx + half), round(cy + half)


def silhouette(mask: np.ndarray, side: int = 32) -> np.ndarray:
    """The mask brought to (side, side), float32 in [0, 1], position and scale taken out."""
    return np.asarray(Image.fromarray(mask.astype(np.float32)).crop(frame(mask)).resize((side, side), Image.BOX))
