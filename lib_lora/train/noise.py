"""The noise that is added to latents: plain, with an offset, or with coarse layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lib_lora.train import keyed
from lib_lora.train.sections_data import Training


def make_noise(seed: int, place: tuple[int, int], latent: Tensor, training: Training) -> Tensor:
    """Noise (C, h, w) float32 on the CPU for one (step, slot) place of a run; all of it is what eps is trained on.

    First the offset is added, then the coarse layers, as kohya does.
    """
    noise = torch.randn(tuple(latent.shape), generator=keyed.generator(seed, "noise", *place))
    if training.offset_noise or training.offset_adaptive:
        normal = torch.randn((latent.shape[0], 1, 1), generator=keyed.generator(seed, "offset", *place))
        noise = noise + offset_strength(latent, training).cpu() * normal
    if training.multires_levels:
        source = keyed.generator(seed, "multires", *place)
        noise = multires(
            noise, coarse_layers(noise.shape, training.multires_levels, source), training.multires_discount
        )
    return noise


def offset_strength(latent: Tensor, training: Training) -> Tensor:
    """How far each channel of a latent (C, h, w) is shifted: (C, 1, 1) float32.

    strength = offset + adaptive * |mean of the channel|, on which the noise becomes eps + strength * n with one normal
    number n per channel (crosslabs.org, "Diffusion with offset noise"): its variance is 1 + strength^2, not 1.
    """
    means = latent.float().mean((1, 2), keepdim=True).abs()
    return training.offset_noise + training.offset_adaptive * means


def coarse_layers(shape: Sequence[int], levels: int, source: torch.Generator) -> list[Tensor]:
    """Normal noise at ever lower resolutions of `shape` (C, h, w), at most `levels`, ending where a side is 1.

    Level i divides the sides by r^i with r drawn from [2, 4) at each level, so level 0 has the full size.
    """
    channels, height, width = shape
    layers = []
    for level in range(levels):
        ratio = (2.0 + 2.0 * float(torch.rand(1, dtype=torch.float64, generator=source))) ** level
        size = max(1, int(height / ratio)), max(1, int(width / ratio))
        layers.append(torch.randn((channels, *size), generator=source))
        if 1 in size:
            break
    return layers


def multires(noise: Tensor, layers: Sequence[Tensor], discount: float) -> Tensor:
    """(eps + sum_i discount^i up(layer_i)) / its own standard deviation, (C, h, w), `up` being bilinear.

    That is the pyramid noise of kohya and of the report it comes from (wandb.ai, J. Whitaker, "Multi-resolution noise
    for diffusion model training"); but divided by the standard deviation of each sample's values and not of the whole
    batch's, so that a sample does not depend on its neighbours. So the variance of each sample's values, about their
    own mean, is 1; that mean is no longer near 0, and places near each other are correlated.
    """
    total = noise
    for level, layer in enumerate(layers):
        up = interpolate(layer[None], size=noise.shape[1:], mode="bilinear", align_corners=False)[0]
        total = total + discount**level * up
    return total / total.std()
