"""How much each timestep weighs in the loss, as tables over the noise schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lib_lora.train.sections_data import Training

EPSILON, V = "epsilon", "v_prediction"
# kohya's bound on the signal-to-noise ratio where a weight grows with it; its inverse bounds the other end, which
# kohya leaves open. The usual schedules end at 0.0047, so only one that ends at zero SNR feels the lower bound.
SNR_HIGH = 1000.0
SNR_LOW = 1 / SNR_HIGH


def timestep_weights(bars: Tensor, prediction: str, training: Training) -> Tensor:
    """(timesteps,) float64: the weighting, times what scale_v_pred and v_pred_like ask for. Always finite.

    With snr = a / (1 - a) of alpha_bar = a. A weight w on the eps loss is w snr / (snr + 1) on the v loss, as the same
    error of the picture is snr in eps and snr + 1 in v; "debiased" is kohya's, which has a v form of its own.
    """
    bars = bars.double()
    snr = bars / (1 - bars)
    weights = WEIGHTINGS[training.weighting](snr, prediction == V, training.min_snr_gamma)
    near = snr.clamp(SNR_LOW, SNR_HIGH)
    if training.scale_v_pred:  # kohya's scale_v_pred_loss_like_noise_pred
        weights = weights * near / (near + 1)
    if training.v_pred_like:  # kohya's v_pred_like_loss
        weights = weights * (1 + training.v_pred_like * (near + 1) / near)
    return weights


def _none(snr: Tensor, v: bool, gamma: float) -> Tensor:
    return torch.ones_like(snr)


def _min_snr(snr: Tensor, v: bool, gamma: float) -> Tensor:
    """min(snr, g) / snr for eps, min(snr, g) / (snr + 1) for v (Hang et al. 2023, arXiv:2303.09556)."""
    if not gamma:
        return torch.ones_like(snr)
    if v:
        return snr.clamp(max=gamma) / (snr + 1)
    # written so that a zero SNR gives its limit 1 and not 0 / 0
    return torch.where(snr > gamma, gamma / snr.clamp(min=gamma), torch.ones_like(snr))


def _soft_min_snr(snr: Tensor, v: bool, gamma: float) -> Tensor:
    """The picture's error weighs snr g / (snr + g) (Crowson et al. 2024, arXiv:2401.11605): a min without a corner."""
    if not gamma:
        return torch.ones_like(snr)
    weights = gamma / (snr + gamma)
    return weights * _v_share(snr) if v else weights


def _debiased(snr: Tensor, v: bool, gamma: float) -> Tensor:
    """1 / sqrt(snr) for eps (Yu et al. 2023, arXiv:2310.08442), 1 / (snr + 1) for v, snr bounded, as kohya has it."""
    near = snr.clamp(SNR_LOW, SNR_HIGH)
    return 1 / (near + 1) if v else near.rsqrt()


def _p2(snr: Tensor, v: bool, gamma: float) -> Tensor:
    """1 / (k + snr)^g with the paper's k = g = 1, on the eps loss (Choi et al. 2022, arXiv:2204.00227)."""
    weights = 1 / (1 + snr)
    return weights * _v_share(snr) if v else weights


def _v_share(snr: Tensor) -> Tensor:
    """snr / (snr + 1), also for an infinite snr."""
    return torch.where(snr > 1, 1 / (1 + 1 / snr), snr / (snr.clamp(max=1) + 1))


WEIGHTINGS: Mapping[str, Callable[[Tensor, bool, float], Tensor]] = {
    "none": _none,
    "min_snr": _min_snr,
    "soft_min_snr": _soft_min_snr,
    "debiased": _debiased,
    "p2": _p2,
}
