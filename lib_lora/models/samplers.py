"""Samplers, one function per published algorithm; symbols as in the papers.

Every sampler takes `eps_x0(z, t) -> (eps, x0)`: the model's guess, at integer timestep `t`, of the noise in and of the
picture behind `z = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps`; `noise` (batch, 4, h, w) of unit variance; and
`alphas_cumprod`. It returns x0 and calls `on_step(i)` after its i-th of `steps` evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora.models.schedule import even_timesteps, leading_timesteps, sigmas_of, trailing_timesteps

Guess = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Course:
    """What all samplers share: the schedule alpha_bar (1000,), the number of steps, who wants to know of each.

    `trailing` timesteps begin with the noisiest whatever the sampler, see `trailing_timesteps`.
    """

    alphas_cumprod: Tensor
    steps: int
    on_step: Callable[[int], None] = lambda i: None
    trailing: bool = False

    def timesteps(self, own: Callable[[int, int], Tensor]) -> list[int]:
        """The timesteps, descending: trailing ones, or those of the sampler's `own` rule."""
        rule = trailing_timesteps if self.trailing else own
        found: list[int] = rule(self.steps, len(self.alphas_cumprod)).tolist()
        return found


def ddim(guess: Guess, noise: Tensor, course: Course) -> Tensor:
    """DDIM with eta = 0 (Song et al. 2020, https://arxiv.org/abs/2010.02502, eq. 12)."""
    bar = course.alphas_cumprod.double()
    timesteps = course.timesteps(leading_timesteps)
    z = noise
    for i, t in enumerate(timesteps):
        # After the last step latent diffusion stops at alpha_bar_0, not at 1.
        following = float(bar[timesteps[i + 1]] if i + 1 < len(timesteps) else bar[0])
        eps, x0 = guess(z, t)
        z = following**0.5 * x0 + (1 - following) ** 0.5 * eps
        course.on_step(i + 1)
    return z


def euler(guess: Guess, noise: Tensor, course: Course) -> Tensor:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, https://arxiv.org/abs/2206.00364, alg. 1)."""
    timesteps, sigmas = _grid(course)
    x = noise * (sigmas[0] ** 2 + 1) ** 0.5  # x = x0 + sigma * eps
    for i, t in enumerate(timesteps):
        d, _ = guess(x / (sigmas[i] ** 2 + 1) ** 0.5, t)  # d = (x - D(x; sigma)) / sigma = eps
        x = x + (sigmas[i + 1] - sigmas[i]) * d
        course.on_step(i + 1)
    return x


def dpmpp_2m(guess: Guess, noise: Tensor, course: Course) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, https://arxiv.org/abs/2211.01095, alg. 2), in k-diffusion's variables.

    With x = x0 + sigma * eps the paper's alpha is 1 and lambda = -log sigma; the first and the last step are of
    first order.
    """
    timesteps, sigmas = _grid(course)
    x = noise * (sigmas[0] ** 2 + 1) ** 0.5
    lambdas = [-torch.tensor(sigma, dtype=torch.float64).log().item() for sigma in sigmas[:-1]]
    before: Tensor | None = None
    for i, t in enumerate(timesteps):
        _, x0 = guess(x / (sigmas[i] ** 2 + 1) ** 0.5, t)
        if i + 1 == len(timesteps):
            x = x0  # sigma is 0 now
        else:
            h = lambdas[i + 1] - lambdas[i]
            target = x0
            if before is not None:
                r = (lambdas[i] - lambdas[i - 1]) / h
                target = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
            ratio = sigmas[i + 1] / sigmas[i]  # = exp(-h)
            x = ratio * x + (1 - ratio) * target
        before = x0
        course.on_step(i + 1)
    return x


def _grid(course: Course) -> tuple[list[int], list[float]]:
    """Timesteps from the noisiest down, and their sigmas followed by 0."""
    timesteps = course.timesteps(even_timesteps)
    return timesteps, [*sigmas_of(course.alphas_cumprod)[timesteps].tolist(), 0.0]


SAMPLERS: Mapping[str, Callable[[Guess, Tensor, Course], Tensor]] = {
    "DPM++ 2M": dpmpp_2m,
    "Euler": euler,
    "DDIM": ddim,
}
