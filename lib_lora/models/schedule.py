"""The noise schedule of latent diffusion, and where along it a sampler stops."""

from __future__ import annotations

import torch
from torch import Tensor

TRAIN_STEPS = 1000
ALMOST_NOTHING = 4.8973451890853435e-08  # the webui's last alpha_bar: at 0 samplers would divide by it


def scaled_linear(start: float = 0.00085, end: float = 0.012, steps: int = TRAIN_STEPS) -> Tensor:
    """alpha_bar_t (steps,) float64 for betas whose square roots are evenly spaced (latent diffusion's schedule)."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def linear(start: float = 0.0001, end: float = 0.02, steps: int = TRAIN_STEPS) -> Tensor:
    """alpha_bar_t (steps,) float64 for evenly spaced betas (Ho et al. 2020)."""
    betas = torch.linspace(start, end, steps, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


def zero_terminal(bars: Tensor) -> Tensor:
    """A schedule that ends in noise alone (Lin et al. 2023, https://arxiv.org/abs/2305.08891, alg. 1).

    sqrt(bar'_t) = (sqrt(bar_t) - sqrt(bar_T)) sqrt(bar_0) / (sqrt(bar_0) - sqrt(bar_T)); the last is the webui's tiny
    number in place of 0.
    """
    roots = bars.double().sqrt()
    first, last = roots[0], roots[-1]
    rescaled = ((roots - last) * first / (first - last)) ** 2
    rescaled[-1] = ALMOST_NOTHING
    return rescaled.to(bars.dtype)


def ends_in_noise(bars: Tensor) -> bool:
    """Whether a schedule's last timestep has (next to) no signal left."""
    return float(bars[-1]) <= 2 * ALMOST_NOTHING


def sigmas_of(alphas_cumprod: Tensor) -> Tensor:
    """sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t): noise per unit of signal, as Karras et al. 2022 count it."""
    bar = alphas_cumprod.double()
    return ((1 - bar) / bar).sqrt()


def even_timesteps(steps: int, train_steps: int = TRAIN_STEPS) -> Tensor:
    """`steps` integer timesteps from the noisiest (train_steps - 1) down to 0, evenly spaced."""
    return torch.linspace(train_steps - 1, 0, steps, dtype=torch.float64).round().long()


def trailing_timesteps(steps: int, train_steps: int = TRAIN_STEPS) -> Tensor:
    """The timesteps train_steps - 1, then every train_steps / steps below, descending: the noisiest is always one.

    What models with a schedule that ends in noise alone need, and those distilled to few steps.
    """
    stops = torch.arange(steps, dtype=torch.float64) * train_steps / steps
    return (train_steps - stops).round().long() - 1


def leading_timesteps(steps: int, train_steps: int = TRAIN_STEPS) -> Tensor:
    """The timesteps of DDIM as latent diffusion uses it: 1 + i * (train_steps // steps), descending."""
    stride = max(train_steps // steps, 1)
    return (torch.arange(steps).flip(0) * stride + 1).clamp(max=train_steps - 1)
