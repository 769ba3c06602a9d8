"""Third stage: the UNet, on cached latents; first small pictures, where a step is cheap, then the full size."""

from __future__ import annotations

import copy
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib_lora.miniature.build_text import token_batch
from lib_lora.miniature.build_vae import soft_norms
from lib_lora.miniature.draw import render
from lib_lora.miniature.nets import VAE_CONFIG, new_text_encoder, new_unet, new_vae
from lib_lora.miniature.scenes import Scene, caption, draw_lots
from lib_lora.models.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """One stretch of training: picture size in pixels, pictures drawn, batch, steps and peak learning rate.

    The rate falls over `steps`; `last` is the step to end at, earlier if the next phase is to begin at a high rate.
    """

    size: int
    pictures: int
    batch: int
    steps: int
    rate: float
    last: int


PHASES = (Phase(64, 12000, 64, 2600, 1e-3, last=900), Phase(128, 7000, 32, 2200, 8e-4, last=1500))


def schedule() -> Tensor:
    """SD1's alphas_cumprod, (1000,) float32."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


@torch.no_grad()
def encode(folder: Path, phase: Phase, seed: int) -> tuple[Tensor, list[Scene]]:
    """Latents (pictures, 4, size/8, size/8) of freshly drawn scenes; kept in `folder` for the next start."""
    rng = random.Random(seed + phase.size)
    scenes = [draw_lots(rng) for _ in range(phase.pictures)]
    target = folder / f"latents-{phase.size}-{phase.pictures}-{seed}.pt"
    if target.exists():
        return torch.load(target, weights_only=True), scenes
    vae = soft_norms(new_vae())
    vae.load_state_dict(torch.load(folder / "vae.pt", weights_only=True))
    vae = vae.eval().to(memory_format=torch.channels_last)
    parts = []
    for start in range(0, len(scenes), 16):
        drawn = [np.asarray(render(s, phase.size, seed + start + i)) for i, s in enumerate(scenes[start : start + 16])]
        pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
        mean = vae.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        parts.append(mean * VAE_CONFIG["scaling_factor"])
        if start % 1600 == 0:
            log.info("encoded %d of %d at %d px", start, len(scenes), phase.size)
    latents = torch.cat(parts).contiguous()
    torch.save(latents, target)
    return latents, scenes


def batches(count: int, batch: int, rng: random.Random) -> Iterator[list[int]]:
    """Endless batches of indices, each index once an epoch."""
    while True:
        order = list(range(count))
        rng.shuffle(order)
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]


class Average:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float = 0.998) -> None:
        self.module, self.decay, self.seen = copy.deepcopy(module).requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's present parameters."""
        self.seen += 1
        decay = min(self.decay, (1 + self.seen) / (10 + self.seen))
        for mine, its in zip(self.module.parameters(), module.parameters(), strict=True):
            mine.lerp_(its, 1 - decay)


def run_phase(folder: Path, phase: Phase, unet: Any, average: Average, seed: int) -> None:
    """Train one phase; `folder/unet.pt` holds the averaged weights after every 100 steps."""
    rng = random.Random(seed)
    gen = torch.Generator().manual_seed(seed)
    latents, scenes = encode(folder, phase, seed)
    tokenizer, text = load_tokenizer(folder / "clip"), new_text_encoder().eval()
    text.load_state_dict(torch.load(folder / "text.pt", weights_only=True))
    abar = schedule()
    weight = torch.minimum(abar / (1 - abar), torch.tensor(5.0)) / (abar / (1 - abar))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=phase.rate, betas=(0.9, 0.99), weight_decay=1e-2)
    pace = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, phase.rate, phase.steps, pct_start=0.05, div_factor=10, final_div_factor=10
    )
    order, recent, began = batches(len(scenes), phase.batch, rng), [], time.monotonic()
    for step in range(1, phase.last + 1):
        rows = next(order)
        texts = ["" if rng.random() < 0.1 else caption(scenes[i], rng) for i in rows]
        with torch.no_grad():
            states = text(token_batch(tokenizer, texts, rng, junk=0.1)).last_hidden_state
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=gen)
        times = (1000 * torch.rand(len(rows), generator=gen) ** 0.75).long().clamp_(0, 999)
        a = abar[times][:, None, None, None]
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        error = (unet(noisy, times, states).sample - noise).pow(2).mean((1, 2, 3))
        loss = (error * weight[times]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        pace.step()
        average.update(unet)
        recent.append(loss.detach())
        if step % 100 == 0:
            mean = torch.stack(recent[-100:]).mean()
            speed = step / (time.monotonic() - began)
            log.info("unet %d px %d/%d loss %.4f, %.2f steps/s", phase.size, step, phase.steps, mean, speed)
            torch.save(average.module.state_dict(), folder / "unet.pt")


def train_unet(folder: Path, seed: int, phases: tuple[Phase, ...] = PHASES) -> None:
    """All phases in turn, each from the average of the one before; leaves `folder/unet.pt`."""
    torch.manual_seed(seed)
    unet = new_unet()
    for number, phase in enumerate(phases):
        done = folder / f"unet-{number}.pt"
        if not done.exists():
            average = Average(unet)
            run_phase(folder, phase, unet, average, seed + number)
            torch.save(average.module.state_dict(), done)
        unet.load_state_dict(torch.load(done, weights_only=True))
    torch.save(unet.state_dict(), folder / "unet.pt")
