"""Distances between what the model says and what it should say, and their mean over a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lib_lora.errors import BadConfig
from lib_lora.train.sections_data import Training

ROUNDED = ("huber", "smooth_l1")  # what has a place where it turns from square to straight


def huber_deltas(bars: Tensor, training: Training) -> Tensor:
    """Where huber and smooth_l1 turn from square to straight at each timestep, (timesteps,) float64; kohya's three.

    With c the setting, T the number of timesteps and sigma = sqrt((1 - a) / a) of alpha_bar = a: constant c;
    exponential c^(t / T); snr (1 - c) / (1 + sigma)^2 + c.
    """
    bars, c = bars.double(), training.huber_delta
    if training.huber_schedule == "exponential":
        return c ** (torch.arange(len(bars), dtype=torch.float64) / len(bars))
    if training.huber_schedule == "snr":
        sigmas = ((1 - bars) / bars).sqrt()  # infinite at zero SNR, where the place is c
        return (1 - c) / (1 + sigmas).square() + c
    return torch.full_like(bars, c)


def distance(errors: Tensor, kind: str, deltas: Tensor | float = 1.0) -> Tensor:
    """The distance of each error, in the shape of `errors`; `deltas` (broadcast) matter to huber and smooth_l1 only.

    mse e^2; l1 |e|; huber 2 d (sqrt(e^2 + d^2) - d); smooth_l1 2 (sqrt(e^2 + d^2) - d): the pseudo-Huber losses of
    kohya, near e^2 and e^2 / d where |e| << d, and straight where |e| >> d (Khrapov et al. 2024, arXiv:2403.16728).
    """
    if kind == "mse":
        return errors.square()
    if kind == "l1":
        return errors.abs()
    squares, d = errors.square(), torch.as_tensor(deltas, dtype=errors.dtype, device=errors.device)
    rise = squares / ((squares + d.square()).sqrt() + d)  # sqrt(e^2 + d^2) - d without its loss of digits at small e
    return 2 * d * rise if kind == "huber" else 2 * rise


def picture_means(values: Tensor, masks: Tensor | None = None) -> Tensor:
    """The mean of each picture's values (batch, C, h, w): (batch,).

    `masks` (batch, 1, H, W) or (batch, H, W), from 0 to 1 and of any size, weigh places. The mean is over the weights'
    sum, so that a picture counts the same however little of it is seen; one of which nothing is seen gives 0.
    Raises BadConfig for masks of another shape.
    """
    if masks is None:
        return values.flatten(1).mean(1)
    masks = masks[:, None] if masks.dim() == 3 else masks
    if masks.dim() != 4 or masks.shape[:2] != (values.shape[0], 1):
        raise BadConfig(
            f"masks of shape {tuple(masks.shape)} do not fit {values.shape[0]} pictures; "
            "give one mask a picture: (batch, 1, height, width)"
        )
    weights = interpolate(masks.to(values), size=tuple(values.shape[2:]), mode="area")
    areas = weights.flatten(1).sum(1) * values.shape[1]
    return (values * weights).flatten(1).sum(1) / areas.clamp(min=torch.finfo(values.dtype).tiny)
