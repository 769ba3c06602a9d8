"""The usual loss: noise is added to a picture's latents, and the model says what was added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from lib_lora.train.plan import Visit

if TYPE_CHECKING:
    from lib_lora.train.session import Session


def diffusion_losses(session: Session, visits: Sequence[Visit]) -> Tensor:
    """(batch,) weighted losses of one forward pass (Ho et al. 2020, https://arxiv.org/abs/2006.11239)."""
    batch, text = session.latents.batch(visits), session.text_of(visits)
    objective, device = session.objective, session.device
    places = [(visit.step, visit.slot) for visit in visits]
    chance = objective.draw(session.job.training.seed, places, batch.latents)
    clean, noise = batch.latents.to(device), chance.noise.to(device)
    noisy = objective.noisy(clean, chance.input_noise.to(device), chance.timesteps)
    if text.pooled is not None:
        text = replace(text, time_ids=batch.time_ids.to(device))
    output = session.model.predict(noisy, chance.timesteps.to(device), text)
    masks = batch.masks.to(device) if batch.masks is not None else None
    return objective.losses(output, objective.target(clean, noise, chance.timesteps), chance.timesteps, masks)
