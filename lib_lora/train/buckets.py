"""Aspect buckets: rectangles of about equal area, so that pictures keep their shape and none is left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lib_lora.errors import BadConfig
from lib_lora.train.images import Size
from lib_lora.train.sections_data import Data

if TYPE_CHECKING:
    from lib_lora.train.captions import Item


class Buckets:
    """The rectangles that pictures of a job are cut to; without `data.buckets` it is one square.

    All sides are multiples of `data.bucket_step` and no area exceeds `data.resolution` squared, so that no batch
    needs more memory than one of squares. Raises BadConfig if the settings allow no rectangle.
    """

    def __init__(self, data: Data) -> None:
        self.data = data
        square = (data.resolution, data.resolution)
        self.sizes: tuple[Size, ...] = _rectangles(data) if data.buckets else (square,)

    def of(self, size: Size) -> Size:
        """The bucket of a picture of `size` (width, height): the nearest shape, |log(w / h) - log(w' / h')| smallest.

        Where enlarging is not wanted and the picture does not cover that bucket, it is a smaller one of its own.
        """
        aspect = math.log(size[0] / size[1])
        best = min(self.sizes, key=lambda b: (abs(math.log(b[0] / b[1]) - aspect), -b[0] * b[1], b))
        if not self.data.buckets or self.data.upscale or (best[0] <= size[0] and best[1] <= size[1]):
            return best
        return self._smaller(size)

    def _smaller(self, size: Size) -> Size:
        """The largest bucket within a picture that is smaller than its usual one; a step at least."""
        step, high = self.data.bucket_step, max(self.data.bucket_high, self.data.resolution)
        shrink = min(1.0, self.data.resolution / math.sqrt(size[0] * size[1]))
        high = min(high, self.data.resolution**2 // step)  # beside a side of one step
        width, height = (max(min(int(length * shrink), high) // step * step, step) for length in size)
        return width, height


def bucket_info(items: Sequence[Item]) -> dict[str, Any]:
    """How many visits of an epoch each bucket gets, and how far shapes are off, in the form of kohya's ss_bucket_info.

    {"buckets": {"0": {"resolution": [w, h], "count": n}}, "mean_img_ar_error": x}; the error is the mean over pictures
    of |width / height of the bucket - width / height of the picture|.
    """
    learned = [item for item in items if not item.prior and item.repeats]
    counts = Counter[Size]()
    for item in learned:
        counts[item.bucket] += item.repeats
    errors = [abs(item.bucket[0] / item.bucket[1] - item.size[0] / item.size[1]) for item in learned]
    table = {
        str(number): {"resolution": list(size), "count": counts[size]} for number, size in enumerate(sorted(counts))
    }
    return {"buckets": table, "mean_img_ar_error": sum(errors) / len(errors) if errors else 0.0}


def _rectangles(data: Data) -> tuple[Size, ...]:
    """Every width from low to high with the greatest height that keeps the area, and these turned; and the square."""
    step, area = data.bucket_step, data.resolution**2
    if data.bucket_low > data.bucket_high:
        raise BadConfig(
            f"data.bucket_low = {data.bucket_low} is above data.bucket_high = {data.bucket_high}; exchange them"
        )
    if step > data.resolution:
        raise BadConfig(f"data.bucket_step = {step} is above data.resolution = {data.resolution}; lower it")
    side = data.resolution // step * step
    low, high = min(data.bucket_low, side), max(data.bucket_high, side)
    found = {(side, side)}
    for width in range(-(-low // step) * step, high + 1, step):
        height = min(area // width, high) // step * step
        if height >= low:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found))
