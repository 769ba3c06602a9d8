"""Run folders as training leaves them, without training: for the parts of the page that read and change them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora.train.config import JobConfig, make_job
from lib_lora.train.jobs import Run, file_digest, stamp
from lib_lora.train.methods.base import NETWORK, Product
from lib_lora.train.methods.registry import method_of
from lib_lora.ui.trainer import Point, RunFacts, Sample
from tests.ui.fake_trainer import FakeTrainer

PROMPTS = ("a photo of sks dog in the snow", "sks dog <script>alert(1)</script> on a beach")


def make_run(root: Path, name: str = "rex", *, steps: int = 400, saves: int = 100, **settings: Any) -> RunFacts:
    """A finished run with networks at every `saves` steps, samples and a card; `settings` as `section__name`."""
    values: dict[str, Any] = {
        "output.folder": str(root / "runs"), "output.name": name,
        "output.network_folder": str(root / "networks"), "output.checkpoint_folder": str(root / "models"),
        "output.embedding_folder": str(root / "embeddings"), "output.hypernetwork_folder": str(root / "hypernetworks"),
        "data.trigger": "sks", "data.class_word": "dog", "training.steps": steps, "output.sample_prompts": PROMPTS,
    }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in settings.items()}
    run = Run.create(make_job(values))
    job, saved, finished = run.job(), dict[int, Path](), list[Path]()
    for step in range(saves, steps, saves):
        files = [run.checkpoints / product.name for product in products(job, f"{name}-{step:06d}")]
        for file in files:
            file.write_bytes(f"{name if file == files[0] else file.name} at {step}".encode() * 1000)
        saved[step] = files[0]
    for product in products(job, name):
        own, folder = run.folder / product.name, product.target_folder(job)
        copy = Path(folder) / product.name if folder else own
        own.write_bytes(f"{product.name if finished else name} at the end".encode() * 1000)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(own.read_bytes())
        if product.place == NETWORK:
            card = {"activation text": "sks dog", "mine": [1], "preferred weight": 1}
            copy.with_suffix(".json").write_text(json.dumps(card))
        finished.append(copy)
    own, final = run.folder / finished[0].name, finished[0]
    samples = []
    for step in range(saves, steps + 1, saves):
        for place, prompt in enumerate(PROMPTS):
            path = run.samples / f"{step:06d}-{place}.png"
            Image.new("RGB", (64, 64), (step % 256, 90 * place, 80)).save(path)
            samples.append(Sample(step, prompt, path))
    falling = [0.1 + 0.1 * math.exp(-step / 80) for step in range(steps + 1)]
    points = tuple(Point(step, falling[step], falling[step] + 0.01, 1e-4) for step in range(1, steps + 1))
    run.append(stamp("started", steps=steps, step=0))
    run.append(stamp("saved", step=steps, path=str(own), sha256=file_digest(own)))
    run.append(stamp("finished", step=steps, steps=steps, file=str(final)))
    return RunFacts(
        id=run.folder.name, folder=run.folder, name=name, method=job.method.name, state="finished", made=1.7e9,
        step=steps, steps=steps, loss=0.1312, files=tuple(finished), saved=saved, samples=tuple(samples),
        points=points, can_resume=True,
    )  # fmt: skip


def products(job: JobConfig, stem: str) -> tuple[Product, ...]:
    """The files of that name, the main one first."""
    return method_of(job.method.name).products(job, stem)


def trainer_with(root: Path, *runs: RunFacts) -> FakeTrainer:
    """A fake trainer that knows these runs."""
    from lib_lora.train.history import History

    trainer = FakeTrainer(root, known=list(runs))
    history = History(root / "runs")
    trainer.made_with = {run.id: history.settings_of(run.id) for run in runs}
    return trainer
