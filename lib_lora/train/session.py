"""A run made ready: pictures, latents, text states, layers, objective and optimizer in one place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib_lora.errors import BadConfig
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.networks.base import Layer
from lib_lora.ports import DiffusionModel
from lib_lora.train import keyed
from lib_lora.train.attach import new_layers
from lib_lora.train.captions import Dataset, read_dataset
from lib_lora.train.config import JobConfig
from lib_lora.train.latents import Latents, TextStates, Visit
from lib_lora.train.metadata import prediction_of
from lib_lora.train.objective import Objective, draw
from lib_lora.train.optim import make_optimizer, parameter_groups
from lib_lora.train.plan import Plan


@dataclass
class Session:
    """Everything one run works with. `device` is the UNet's; layers and losses live there."""

    job: JobConfig
    model: DiffusionModel
    dataset: Dataset
    latents: Latents
    texts: TextStates
    layers: dict[LayerKey, Layer]
    objective: Objective
    optimizer: torch.optim.Optimizer
    accelerator: Any
    plan: Plan
    device: torch.device

    def losses(self, visits: Sequence[Visit]) -> Tensor:
        """(batch,) weighted losses of one forward pass."""
        training = self.job.training
        clean = self.latents.batch(visits)
        places = [(visit.step, visit.slot) for visit in visits]
        chance = draw(training.seed, places, clean.shape[1:], training.offset_noise)
        clean, noise = clean.to(self.device), chance.noise.to(self.device)
        noisy = self.objective.noisy(clean, noise, chance.timesteps)
        text = self.texts.batch([self.dataset.items[visit.index].caption for visit in visits])
        output = self.model.predict(noisy, chance.timesteps.to(self.device), text)
        return self.objective.losses(output, self.objective.target(clean, noise, chance.timesteps), chance.timesteps)

    def backward(self, step: int) -> Tensor:
        """Add up the gradients of a step's mean loss, batch by batch; returns that loss as a tensor without a wait."""
        visits, size = self.plan.visits(step), self.job.training.batch_size
        total = torch.zeros((), device=self.device)
        for start in range(0, len(visits), size):
            loss = self.losses(visits[start : start + size]).sum() / len(visits)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def parameters(self) -> list[Tensor]:
        """Every trained tensor."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def prepare(job: JobConfig, model: DiffusionModel) -> Session:
    """Read, encode and build what `job` needs on `model`. Raises BadConfig or BadDataset."""
    from accelerate import Accelerator

    device = next(model.roots()[UNET].parameters()).device
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    if accelerator.num_processes > 1:
        raise BadConfig(f"started as {accelerator.num_processes} processes; start one (num_processes: 1)")
    dataset = read_dataset(job.data)
    layers = new_layers(model, job.network, keyed.generator(job.training.seed, "layers"))
    optimizer = make_optimizer(job.optimizer, parameter_groups(layers, job.optimizer))
    captions = [item.caption for item in dataset.items]
    return Session(
        job=job,
        model=model,
        dataset=dataset,
        latents=Latents(model, dataset, job.data, job.training.seed),
        texts=TextStates(model, captions, trained=job.network.train_text_encoder),
        layers=layers,
        objective=Objective(model.alphas_cumprod(), prediction_of(job, model), job.training.min_snr_gamma),
        optimizer=accelerator.prepare_optimizer(optimizer, device_placement=False),
        accelerator=accelerator,
        plan=Plan(dataset.visits(), job.training),
        device=device,
    )


@contextmanager
def kept_rng() -> Iterator[None]:
    """Torch's global random state is afterwards what it was before."""
    state = torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def kept_flags() -> Iterator[None]:
    """Whether gradients are on, inference mode and cuDNN's choices are what training needs, and restored afterwards."""
    cudnn = torch.backends.cudnn
    kept = (cudnn.benchmark, cudnn.deterministic)
    try:
        cudnn.benchmark, cudnn.deterministic = False, True
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = kept
