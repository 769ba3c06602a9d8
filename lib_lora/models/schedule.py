"""The noise schedule of latent diffusion, and where along it a sampler stops."""

from __future__ import annotations

import torch
from torch import Tensor

TRAIN_STEPS = 1000


def scaled_linear(start: float = 0.00085, end: float = 0.012, steps: int = TRAIN_STEPS) -> Tensor:
    """alpha_bar_t (steps,) float64 for betas whose square roots are evenly spaced (latent diffusion's schedule)."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def sigmas_of(alphas_cumprod: Tensor) -> Tensor:
    """sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t): noise per unit of signal, as Karras et al. 2022 count it."""
    bar = alphas_cumprod.double()
    return ((1 - bar) / bar).sqrt()


def even_timesteps(steps: int, train_steps: int = TRAIN_STEPS) -> Tensor:
    """`steps` integer timesteps from the noisiest (train_steps - 1) down to 0, evenly spaced."""
    return torch.linspace(train_steps - 1, 0, steps, dtype=torch.float64).round().long()


def leading_timesteps(steps: int, train_steps: int = TRAIN_STEPS) -> Tensor:
    """The timesteps of DDIM as latent diffusion uses it: 1 + i * (train_steps // steps), descending."""
    stride = max(train_steps // steps, 1)
    return (torch.arange(steps).flip(0) * stride + 1).clamp(max=train_steps - 1)
