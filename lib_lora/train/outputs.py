"""What a run writes while it goes on: networks, states and sample pictures."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lib_lora.files.tensors import atomic_file
from lib_lora.prompt import extract
from lib_lora.train.checkpoint import save_state
from lib_lora.train.jobs import Event, Run, file_digest, stamp, targets
from lib_lora.train.methods.base import Product
from lib_lora.train.preview import AsTrained
from lib_lora.train.session import Session, kept_rng
from lib_lora.train.sidecar import write_config, write_sidecar


class Outputs:
    """The files of one run. Steps are counted as completed ones. Only the first of several processes has one."""

    def __init__(self, session: Session, run: Run, send: Callable[[Event], object]) -> None:
        self._session, self._run, self._send = session, run, send
        self._output = session.job.output
        self._asked = {event["step"] for event in run.events() if event["type"] == "saved" and event.get("asked")}
        # The network in training is on already, no other can be: tags say nothing here. Bad ones are told at once.
        given = self._output.sample_prompts or tuple(filter(None, (c.sample_prompt for c in session.job.concepts)))
        self._prompts = [extract(prompt)[0].strip() for prompt in given]

    def after(self, step: int) -> None:
        """Whatever is due after this step; the state last, so that a kill in between repeats work and loses none."""
        last = step == self._session.plan.steps
        if _due(step, self._output.sample_every):
            self.sample(step)
        if _due(step, self._output.save_every) and not last:
            self.keep_products(step)
            self._forget(step)
        if _due(step, self._output.state_every) and not last:
            self.keep_state(step)

    def finish(self, step: int) -> list[Path]:
        """The files of the finished run, the main one first: where the job wants them, or in the run's folder."""
        self.keep_state(step)  # first: writing large files may take more memory than there is
        self._cover(step)
        products = self._write(self._run.folder, self._output.name, step)
        final = targets(self._session.job, self._run)  # once more: a file may have come there meanwhile
        files = []
        for product in products:
            made, target = self._run.folder / product.name, final.get(product.name)
            if target is not None:
                copy_file(made, target)
            files.append(target or made)
            write_config(self._session, product, files[-1])
            if self._output.sidecar:
                write_sidecar(self._session, product, files[-1], self._last_sample())
        return files

    def _cover(self, step: int) -> None:
        """Draw what the card shows, if nothing was drawn yet; short memory costs the picture, not the run."""
        if not self._output.sidecar or self._last_sample() is not None:
            return
        try:
            self.sample(step)
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            self._send(stamp("note", message=f"no picture for the card: {str(error).partition(chr(10))[0]}"))

    def keep_products(self, step: int, **facts: Any) -> None:
        """Write what the run makes as it is now into the run's checkpoints; `facts` are told with the files."""
        self._write(self._run.checkpoints, f"{self._output.name}-{step:06d}", step, **facts)

    def keep_asked(self, step: int) -> None:
        """The same because the user asked for it: such files are not removed again."""
        self._asked.add(step)
        self.keep_products(step, asked=True)

    def keep_state(self, step: int) -> Path:
        """Write what resuming needs."""
        save_state(self._run.state, self._session, step)
        return self._run.state

    def sample(self, step: int) -> None:
        """Draw the sample prompts with the network as it is now; training notices nothing of it."""
        from lib_lora.models.sample import SampleRequest, sample

        session, output = self._session, self._output
        side, training = session.job.data.resolution, session.job.training
        model: Any = AsTrained(session.model, session.objective.prediction, ends_in_noise=training.zero_terminal_snr)
        for number, prompt in enumerate(self._prompts or (session.dataset.items[0].caption,)):
            request = SampleRequest(
                prompts=[prompt],
                negative=output.sample_negative,
                seed=output.sample_seed,
                steps=output.sample_steps,
                cfg=output.sample_cfg,
                width=side,
                height=side,
                options=dataclasses.replace(session.text_options, weights=True),
            )
            with kept_rng(), session.best(), session.attached(), torch.no_grad():
                picture = sample(model, request)[0]
            path = self._run.samples / f"{step:06d}-{number}.png"
            with atomic_file(path) as file:
                picture.save(file, "png")
            self._send(stamp("sample", step=step, prompt=prompt, picture=str(path)))

    def _write(self, folder: Path, stem: str, step: int, **facts: Any) -> tuple[Product, ...]:
        session = self._session
        products = session.method.products(session.job, stem)
        with session.best():
            session.method.write(session, folder, products, step)
        for product in products:
            path = folder / product.name
            copied = folder == self._run.folder and product.target_folder(session.job)
            known = {"sha256": file_digest(path)} if copied else {}  # by which a copy is known as the run's own
            self._send(stamp("saved", step=step, path=str(path), **known, **facts))
        return products

    def _forget(self, step: int) -> None:
        """Remove what was kept beyond `keep_last`, but for what the user asked for."""
        every, keep = self._output.save_every, self._output.keep_last
        for old in range(step - every * keep, 0, -every) if keep else ():
            if old in self._asked:
                continue
            names = self._session.method.products(self._session.job, f"{self._output.name}-{old:06d}")
            for product in names:
                (self._run.checkpoints / product.name).unlink(missing_ok=True)

    def _last_sample(self) -> Path | None:
        return max(self._run.samples.glob("*-0.png"), default=None)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file of any size, atomically. Raises BadFile."""
    with atomic_file(target) as out, source.open("rb") as file:
        shutil.copyfileobj(file, out, 1 << 24)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
