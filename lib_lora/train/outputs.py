"""What a run writes while it goes on: networks, states and sample pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lib_lora.files.codec import network_tensors, write_network
from lib_lora.files.hashes import add_hashes
from lib_lora.files.metadata import build_metadata
from lib_lora.files.tensors import atomic_file
from lib_lora.networks.network import Network
from lib_lora.prompt import extract
from lib_lora.train.checkpoint import save_state
from lib_lora.train.jobs import Event, Run, network_target, stamp
from lib_lora.train.metadata import record_of
from lib_lora.train.session import Session, kept_rng

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Outputs:
    """The files of one run. Steps are counted as completed ones."""

    def __init__(self, session: Session, run: Run, send: Callable[[Event], object]) -> None:
        self._session, self._run, self._send = session, run, send
        self._output = session.job.output
        # The network in training is on already, no other can be: tags say nothing here. Bad ones are told at once.
        self._prompts = [extract(prompt)[0].strip() for prompt in self._output.sample_prompts]

    def after(self, step: int) -> None:
        """Whatever is due after this step; the state last, so that a kill in between repeats work and loses none."""
        last = step == self._session.plan.steps
        if _due(step, self._output.sample_every):
            self.sample(step)
        if _due(step, self._output.save_every) and not last:
            self.keep_network(step)
        if _due(step, self._output.state_every) and not last:
            self.keep_state(step)

    def finish(self, step: int) -> Path:
        """The finished network's file: in the run's folder and, if the job names one, in the networks folder."""
        target = network_target(self._session.job, self._run)  # once more: a file may have come there meanwhile
        made = self._write(self._run.folder / f"{self._output.name}.safetensors", step)
        self.keep_state(step)
        if target is None:
            return made
        with atomic_file(target) as file:
            file.write(made.read_bytes())
        return target

    def keep_network(self, step: int) -> Path:
        """Write the network as it is now into the run's checkpoints."""
        return self._write(self._run.checkpoints / f"{self._output.name}-{step:06d}.safetensors", step)

    def keep_state(self, step: int) -> Path:
        """Write what resuming needs."""
        save_state(self._run.state, self._session.layers, self._session.optimizer, step)
        return self._run.state

    def sample(self, step: int) -> None:
        """Draw the sample prompts with the network as it is now; training notices nothing of it."""
        from lib_lora.models.sample import SampleRequest, sample

        output, data = self._output, self._session.job.data
        prompts = self._prompts or (self._session.dataset.items[0].caption,)
        for number, prompt in enumerate(prompts):
            request = SampleRequest(
                prompts=[prompt],
                seed=output.sample_seed,
                steps=output.sample_steps,
                cfg=output.sample_cfg,
                width=data.resolution,
                height=data.resolution,
            )
            with kept_rng(), torch.no_grad():
                picture = sample(self._session.model, request)[0]
            path = self._run.samples / f"{step:06d}-{number}.png"
            with atomic_file(path) as file:
                picture.save(file, "png")
            self._send(stamp("sample", step=step, prompt=prompt, picture=str(path)))

    def _write(self, path: Path, step: int) -> Path:
        session = self._session
        layers = {key: session.layers[key] for key in sorted(session.layers)}
        dtype = DTYPES[self._output.dtype]
        network = Network(self._output.name, layers)
        record = build_metadata(record_of(session.job, session.model, session.dataset, step))
        write_network(path, network, add_hashes(record, network_tensors(network, dtype)), dtype)
        self._send(stamp("saved", step=step, path=str(path)))
        return path


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
