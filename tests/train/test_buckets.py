"""Every picture gets a rectangle of its shape, and none needs more memory than the square."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.errors import BadConfig
from lib_lora.train.buckets import Buckets, bucket_info
from lib_lora.train.captions import Item
from lib_lora.train.sections_data import Data

SIDES = st.integers(1, 6000)
SETTINGS = st.builds(
    lambda resolution, step, low, more, upscale: Data(
        resolution=resolution * 64, buckets=True, bucket_step=step * 8, bucket_low=low * 8,
        bucket_high=low * 8 + more * 8, upscale=upscale,
    ),
    st.integers(4, 20), st.integers(1, 16), st.integers(8, 64), st.integers(0, 128), st.booleans(),
)  # fmt: skip


@given(data=SETTINGS, width=SIDES, height=SIDES)
def test_every_size_has_a_bucket_within_the_limits(data: Data, width: int, height: int) -> None:
    bucket = Buckets(data).of((width, height))
    assert all(side > 0 and side % data.bucket_step == 0 for side in bucket)
    assert bucket[0] * bucket[1] <= max(data.resolution**2, data.bucket_step**2)
    assert max(bucket) <= max(data.bucket_high, data.resolution)
    if data.upscale:
        assert min(bucket) >= min(data.bucket_low, data.resolution // data.bucket_step * data.bucket_step)
    else:  # nothing is enlarged, except to the least that there is
        assert (
            all(side <= max(length, data.bucket_step) for side, length in zip(bucket, (width, height), strict=True))
            or bucket in Buckets(data).sizes
        )


@given(data=SETTINGS, width=SIDES, height=SIDES)
def test_no_bucket_is_nearer_in_shape(data: Data, width: int, height: int) -> None:
    buckets = Buckets(Data(**{**data.__dict__, "upscale": True}))

    def off(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1] / (width / height)))

    assert off(buckets.of((width, height))) == min(map(off, buckets.sizes))


@pytest.mark.parametrize("resolution", [512, 768, 1024])
def test_areas_are_within_a_step_and_shapes_within_half_of_one(resolution: int) -> None:
    data = Data(resolution=resolution, buckets=True, bucket_low=256, bucket_high=2048)
    buckets = Buckets(data)
    for width, height in buckets.sizes:
        short = resolution**2 - width * height
        assert 0 <= short < 64 * max(width, height) or (short > 0 and max(width, height) == data.bucket_high)
    widest = max(w / h for w, h in buckets.sizes)
    for number in range(-100, 101):
        aspect = widest ** (number / 100)
        bucket = buckets.of((round(10_000 * aspect), 10_000))
        # A step more or less of the shorter side changes the shape by at most this
        assert abs(math.log(bucket[0] / bucket[1] / aspect)) <= math.log(1 + 64 / (min(bucket) - 64)), aspect


def test_known_buckets() -> None:
    buckets = Buckets(Data(resolution=512, buckets=True, bucket_high=1024))
    # what kohya's make_bucket_resolutions gave for 512, sides of 256 to 1024 and steps of 64
    wide = [(576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256)]
    turned = [(height, width) for width, height in wide]
    assert set(buckets.sizes) == {(512, 512), *wide, *turned}
    assert buckets.of((1920, 1080)) == (640, 384)
    assert buckets.of((1080, 1920)) == (384, 640)
    assert buckets.of((100, 100)) == (512, 512)
    assert Buckets(Data(resolution=512)).of((1920, 1080)) == (512, 512)


def test_small_pictures_are_not_enlarged_where_that_is_not_wanted() -> None:
    buckets = Buckets(Data(resolution=512, buckets=True, upscale=False))
    assert buckets.of((200, 150)) == (192, 128)
    assert buckets.of((512, 512)) == (512, 512)
    assert buckets.of((4000, 3000)) == Buckets(Data(resolution=512, buckets=True)).of((4000, 3000))
    assert buckets.of((10, 10)) == (64, 64)  # there is no smaller one


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"bucket_low": 1024, "bucket_high": 512}, "bucket_low = 1024"), ({"bucket_step": 512}, "bucket_step = 512")],
)
def test_settings_that_leave_no_bucket(changes: dict[str, int], told: str) -> None:
    with pytest.raises(BadConfig, match=told):
        Buckets(Data(resolution=256, buckets=True, **changes))


def test_the_report_counts_visits_and_mean_error() -> None:
    items = [
        Item(Path("a"), "", 3, (640, 640), bucket=(512, 512)),
        Item(Path("b"), "", 1, (300, 200), bucket=(640, 384)),
        Item(Path("c"), "", 1, (512, 512), bucket=(512, 512), prior=True),
        Item(Path("d"), "", 0, (64, 512), bucket=(256, 1024)),
    ]
    assert bucket_info(items) == {
        "buckets": {"0": {"resolution": [512, 512], "count": 3}, "1": {"resolution": [640, 384], "count": 1}},
        "mean_img_ar_error": pytest.approx((0 + abs(640 / 384 - 1.5)) / 2),
    }
