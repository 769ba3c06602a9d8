"""What the network learns: noise, target, and how much each timestep weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora.errors import BadConfig
from lib_lora.train import keyed

EPSILON, V = "epsilon", "v_prediction"


@dataclass(frozen=True)
class Draw:
    """What chance adds to a batch: `noise` (batch, 4, h, w) float32 and `timesteps` (batch,) int64, on the CPU."""

    noise: Tensor
    timesteps: Tensor


def draw(seed: int, places: Sequence[tuple[int, int]], shape: Sequence[int], offset: float = 0.0) -> Draw:
    """Noise and timesteps for the (step, slot) places of a run; `shape` is one latent's.

    Offset noise (crosslabs.org, "Diffusion with offset noise") adds `offset` times one normal number per channel.
    """
    noises, times = [], []
    for step, slot in places:
        source = keyed.generator(seed, "noise", step, slot)
        times.append(torch.randint(0, 1000, (1,), generator=source))
        noise = torch.randn(tuple(shape), generator=source)
        if offset:
            noise = noise + offset * torch.randn((shape[0], 1, 1), generator=source)
        noises.append(noise)
    return Draw(torch.stack(noises), torch.cat(times))


class Objective:
    """Mean squared error to eps or v, weighted by min-SNR (Hang et al. 2023, arXiv:2303.09556).

    With alpha_bar = a: x_t = sqrt(a) x + sqrt(1 - a) eps, v = sqrt(a) eps - sqrt(1 - a) x, snr = a / (1 - a);
    weight = min(snr, gamma) / snr for eps and min(snr, gamma) / (snr + 1) for v; gamma = 0 weighs all alike.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction: str, gamma: float = 0.0) -> None:
        if prediction not in (EPSILON, V):
            raise BadConfig(f"base.prediction = {prediction!r} is not accepted; give {EPSILON} or {V}")
        bars = alphas_cumprod.detach().double().cpu()
        self.prediction = prediction
        self._signal, self._noise = bars.sqrt(), (1 - bars).sqrt()  # (1000,)
        self._weights = _min_snr(bars, prediction, gamma) if gamma else torch.ones_like(bars)

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t (batch, 4, h, w), in the latents' dtype."""
        return self._at(self._signal, timesteps, latents) * latents + self._at(self._noise, timesteps, latents) * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """eps or v (batch, 4, h, w), in the latents' dtype."""
        if self.prediction == EPSILON:
            return noise
        return self._at(self._signal, timesteps, latents) * noise - self._at(self._noise, timesteps, latents) * latents

    def weights(self, timesteps: Tensor) -> Tensor:
        """(batch,) float64 weights on the CPU."""
        return self._weights[timesteps.cpu()]

    def losses(self, output: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """(batch,) weighted losses, float32 or wider."""
        wide = torch.promote_types(output.dtype, torch.float32)
        errors = (output.to(wide) - target.to(wide)).square().flatten(1).mean(1)
        return errors * self.weights(timesteps).to(errors)

    @staticmethod
    def _at(table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
        return table[timesteps.cpu()].to(like).view(-1, *[1] * (like.dim() - 1))


def _min_snr(bars: Tensor, prediction: str, gamma: float) -> Tensor:
    snr = bars / (1 - bars)
    if prediction == V:
        return snr.clamp(max=gamma) / (snr + 1)
    # min(snr, g) / snr, written so that zero-terminal SNR gives its limit 1 and not 0 / 0
    return torch.where(snr > gamma, gamma / snr.clamp(min=gamma), torch.ones_like(snr))
