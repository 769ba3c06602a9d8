"""Distances against kohya's and torch's, and masked means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lib_lora.errors import BadConfig
from lib_lora.train.losses import distance, huber_deltas, picture_means
from lib_lora.train.sections_data import Training

TIMES = torch.tensor([0, 37, 250, 500, 800, 999])
ERRORS = torch.tensor([0.05, -0.1, 0.7, -1.5, 0.01, 3.0], dtype=torch.float64)

# kohya's get_huber_threshold_if_needed at TIMES (huber_c 0.1, huber_scale 1, SD's noise schedule, float64) and its
# conditional_loss of ERRORS with those
DELTAS = {
    "constant": [0.1] * 6,
    "exponential": [
        *(1.0, 0.9183325964835809, 0.5623413251903491, 0.31622776601683794, 0.1584893192461114, 0.10023052380779002),
    ],
    "snr": [
        *(0.9497098868526846, 0.7347768987595407, 0.41296357349644697, 0.2312836740560558, 0.1240998317604371),
        0.10369129274625412,
    ],
}
LOSSES = {
    ("huber", "constant"): [
        *(0.0023606797749978984, 0.008284271247461906, 0.1214213562373095, 0.2806659275674581, 9.975124224178012e-05),
        0.5803332407921453,
    ],
    ("huber", "exponential"): [
        *(0.00249843945007866, 0.009970530245415865, 0.3773991215640596, 0.7695359714832658, 9.990067082744518e-05),
        0.5816263773182648,
    ],
    ("huber", "snr"): [
        *(0.002498270036863946, 0.00995411881126544, 0.3301824460936434, 0.5950662040575951, 9.9838195324278e-05),
        0.6010155027604345,
    ],
    ("smooth_l1", "constant"): [
        *(0.02360679774997898, 0.08284271247461905, 1.214213562373095, 2.806659275674581, 0.0009975124224178011),
        5.803332407921453,
    ],
    ("smooth_l1", "exponential"): [
        *(0.00249843945007866, 0.010857210430724518, 0.6711210872441435, 2.4334864113175025, 0.000630330619770747),
        5.802886737713131,
    ],
    ("smooth_l1", "snr"): [
        *(0.002630561260284603, 0.013547130874786761, 0.7995437546660134, 2.5728846036636814, 0.0008044990384596662),
        5.796200306145247,
    ],
}


@pytest.fixture(scope="module")
def bars() -> Tensor:
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


def close(one: Tensor, two: list[float]) -> bool:
    return torch.allclose(one, torch.tensor(two, dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize("schedule", DELTAS)
def test_deltas_equal_kohya(bars: Tensor, schedule: str) -> None:
    assert close(huber_deltas(bars, Training(huber_delta=0.1, huber_schedule=schedule))[TIMES], DELTAS[schedule])


@pytest.mark.parametrize(("kind", "schedule"), LOSSES)
def test_distances_equal_kohya(bars: Tensor, kind: str, schedule: str) -> None:
    deltas = huber_deltas(bars, Training(huber_delta=0.1, huber_schedule=schedule))[TIMES]
    assert close(distance(ERRORS, kind, deltas), LOSSES[kind, schedule])


def test_deltas_at_the_ends_of_a_schedule(bars: Tensor) -> None:
    whole = bars.clone()
    whole[0], whole[-1] = 1.0, 0.0
    deltas = huber_deltas(whole, Training(huber_delta=0.1, huber_schedule="snr"))
    assert deltas[[0, -1]].tolist() == [1.0, 0.1]


def test_mse_and_l1_equal_torch() -> None:
    output, target = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kind, theirs in (("mse", functional.mse_loss), ("l1", functional.l1_loss)):
        assert torch.equal(distance(output - target, kind), theirs(output, target, reduction="none"))


def test_small_errors_keep_their_digits_in_float32() -> None:
    """Written as it stands, sqrt(e^2 + d^2) - d is 0 in float32 for an error of a thousandth of d and less."""
    errors = torch.tensor([1e-5, 1e-4, 1e-3], requires_grad=True)
    values = distance(errors, "huber", 0.5)
    assert torch.allclose(values, errors.square(), rtol=1e-5)
    values.sum().backward()
    assert torch.allclose(errors.grad, 2 * errors.detach(), rtol=1e-5)
    zero = torch.zeros(1, requires_grad=True)
    distance(zero, "huber", 1e-6).sum().backward()
    assert zero.grad is not None and zero.grad.item() == 0.0


def test_plain_means() -> None:
    values = torch.rand(3, 4, 5, 6, dtype=torch.float64)
    assert torch.allclose(picture_means(values), torch.stack([v.mean() for v in values]), rtol=1e-12)
    ones = torch.ones(3, 1, 40, 48, dtype=torch.float64)
    assert torch.allclose(picture_means(values, ones), picture_means(values), rtol=1e-12)


def test_masked_means_are_over_what_is_seen() -> None:
    values = torch.rand(2, 4, 2, 2, dtype=torch.float64)
    masks = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]], [[[1.0, 0.5], [0.0, 0.25]]]])
    want = torch.stack(
        [
            values[0, :, 0, 0].mean(),
            (values[1, :, 0, 0].sum() + 0.5 * values[1, :, 0, 1].sum() + 0.25 * values[1, :, 1, 1].sum()) / (4 * 1.75),
        ]
    )
    assert torch.allclose(picture_means(values, masks), want, rtol=1e-12)
    assert torch.allclose(picture_means(values, masks[:, 0]), want, rtol=1e-12)


def test_how_little_is_seen_does_not_matter() -> None:
    """kohya multiplies and takes the mean over everything: there a small subject has a small loss."""
    values, mask = torch.full((1, 4, 8, 8), 3.0), torch.zeros(1, 1, 8, 8)
    mask[..., 2, 3] = 1.0
    assert picture_means(values, mask).item() == pytest.approx(3.0, rel=1e-6)


def test_masks_shrink_by_area() -> None:
    values = torch.zeros(1, 4, 2, 2)
    values[..., 0, 0], values[..., 1, 1] = 1.0, 5.0
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8, :8] = 1.0  # all of the first place
    mask[..., 8:, 8:12] = 1.0  # half of the last
    assert picture_means(values, mask).item() == pytest.approx((1.0 + 0.5 * 5.0) / 1.5)


def test_a_picture_of_which_nothing_is_seen_counts_nothing() -> None:
    values = torch.rand(2, 4, 4, 4, requires_grad=True)
    masks = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    means = picture_means(values, masks)
    assert means[0].item() == 0.0
    means.sum().backward()
    assert values.grad is not None and values.grad.isfinite().all() and not values.grad[0].any()


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (2, 4, 4, 4), (4, 4)])
def test_masks_of_another_shape_are_told(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadConfig, match=r"do not fit 2 pictures; give one mask a picture: \(batch, 1"):
        picture_means(torch.rand(2, 4, 4, 4), torch.ones(shape))
