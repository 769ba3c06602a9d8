"""LCM-LoRA: a network that lets the model draw in a few steps, without guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib_lora.ports import Conditioning
from lib_lora.train import keyed
from lib_lora.train.config import JobConfig
from lib_lora.train.methods.network import NetworkMethod, of_the_unet
from lib_lora.train.plan import Visit
from lib_lora.train.sections import NetworkSection

if TYPE_CHECKING:
    from lib_lora.train.session import Session

SIGMA_DATA, TIME_SCALE = 0.5, 10.0  # of the boundary condition, as published
HUBER = 0.001


class LcmMethod(NetworkMethod):
    """Latent consistency distillation into a network (Luo et al. 2023, https://arxiv.org/abs/2311.05556).

    The teacher is the base model itself, guided: one DDIM step of it leads from x_t to x_s, and what the network makes
    of x_t must be what it makes of x_s.
    """

    name = "lcm"

    def section(self, job: JobConfig) -> NetworkSection:
        """Of the UNet only: teacher and student read the same text states."""
        return of_the_unet(job.network)

    def losses(self, session: Session, visits: Sequence[Visit]) -> Tensor:
        batch, text = session.latents.batch(visits), session.text_of(visits)
        text = session.with_sizes(text, batch.time_ids)
        clean = batch.latents.to(session.device)
        course = Course(session, visits)
        chance = session.objective.draw(session.job.training.seed, [(v.step, v.slot) for v in visits], batch.latents)
        noisy = course.mix(clean, chance.noise.to(session.device), course.start)
        student = course.consistent(session.predict(noisy, course.start, text), noisy, course.start)
        with torch.no_grad():
            earlier = course.teach(session, noisy, text)
            target = course.consistent(session.predict(earlier, course.end, text), earlier, course.end)
        error = (student.float() - target.float()).square()
        return ((error + HUBER**2).sqrt() - HUBER).flatten(1).mean(1)


class Course:
    """The two timesteps of each visit and the teacher's guidance, drawn for it; alpha_bar at both."""

    def __init__(self, session: Session, visits: Sequence[Visit]) -> None:
        method, seed = session.job.method, session.job.training.seed
        bars = session.objective.alphas_cumprod
        self.prediction = session.objective.prediction
        stride = max(len(bars) // method.lcm_steps, 1)
        starts, scales = [], []
        for visit in visits:
            source = keyed.generator(seed, "lcm", visit.step, visit.slot)
            starts.append(int(torch.randint(1, len(bars) // stride + 1, (1,), generator=source)) * stride - 1)
            share = float(torch.rand((), generator=source))
            scales.append(method.lcm_cfg_low + share * (method.lcm_cfg_high - method.lcm_cfg_low))
        self.start = torch.tensor(starts, device=session.device)
        self.end = (self.start - stride).clamp(min=0)
        self.cfg = torch.tensor(scales, device=session.device).view(-1, 1, 1, 1)
        self._bars = bars.to(session.device)

    def mix(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """sqrt(a) x + sqrt(1 - a) eps."""
        signal, sigma = self._at(times, clean)
        return signal * clean + sigma * noise

    def split(self, output: Tensor, noisy: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """(eps, x0) by the model's output."""
        signal, sigma = self._at(times, noisy)
        if self.prediction == "v_prediction":
            return signal * output + sigma * noisy, signal * noisy - sigma * output
        return output, (noisy - sigma * output) / signal

    def consistent(self, output: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        """f(x_t, t) = c_skip(t) x_t + c_out(t) x0, which is x at t = 0."""
        scaled = TIME_SCALE * times.double().view(-1, 1, 1, 1)
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
        return skip.to(noisy) * noisy + out.to(noisy) * self.split(output, noisy, times)[1]

    def teach(self, session: Session, noisy: Tensor, text: Conditioning) -> Tensor:
        """x_s: one guided DDIM step of the base model alone, with guidance w as 1 + w."""
        with session.plain():
            empty = session.with_sizes(session.text_of_prompts([""] * len(noisy)), text.time_ids)
            eps, x0 = self.split(session.predict(noisy, self.start, text), noisy, self.start)
            none, x0_none = self.split(session.predict(noisy, self.start, empty), noisy, self.start)
        eps, x0 = eps + self.cfg.to(eps) * (eps - none), x0 + self.cfg.to(x0) * (x0 - x0_none)
        return self.mix(x0, eps, self.end)

    def _at(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        bars = self._bars[times].view(-1, 1, 1, 1)
        return bars.sqrt().to(like), (1 - bars).sqrt().to(like)
