"""What a run writes while it goes on: networks, states and sample pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from lib_lora.files.codec import write_network
from lib_lora.networks.network import Network
from lib_lora.train.checkpoint import save_state
from lib_lora.train.jobs import Event, Run, stamp
from lib_lora.train.metadata import metadata_of
from lib_lora.train.session import Session, kept_rng

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Outputs:
    """The files of one run. Steps are counted as completed ones."""

    def __init__(self, session: Session, run: Run, send: Callable[[Event], object]) -> None:
        self._session, self._run, self._send = session, run, send
        self._output = session.job.output

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
        made = self._write(self._run.folder / f"{self._output.name}.safetensors", step)
        self.keep_state(step)
        if not self._output.network_folder:
            return made
        folder = Path(self._output.network_folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / made.name
        part = folder / f".{made.name}.part"
        shutil.copyfile(made, part)
        part.replace(target)
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
        prompts = output.sample_prompts or (self._session.dataset.items[0].caption,)
        for number, prompt in enumerate(prompts):
            request = SampleRequest(
                prompt=prompt,
                seed=output.sample_seed,
                steps=output.sample_steps,
                cfg=output.sample_cfg,
                width=data.resolution,
                height=data.resolution,
            )
            with kept_rng(), torch.no_grad():
                picture = sample(self._session.model, request)[0]
            path = self._run.samples / f"{step:06d}-{number}.png"
            picture.save(path)
            self._send(stamp("sample", step=step, prompt=prompt, picture=str(path)))

    def _write(self, path: Path, step: int) -> Path:
        session = self._session
        layers = {key: session.layers[key] for key in sorted(session.layers)}
        metadata = metadata_of(session.job, session.model, session.dataset, step)
        network = Network(self._output.name, layers, metadata)
        write_network(path, network, metadata, DTYPES[self._output.dtype])
        self._send(stamp("saved", step=step, path=str(path)))
        return path


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
