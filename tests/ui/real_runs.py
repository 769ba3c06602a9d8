"""Run folders as training leaves them, without training: for the parts of the page that read and change them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora.train.config import make_job
from lib_lora.train.jobs import Run, file_digest, stamp
from lib_lora.ui.trainer import Point, RunFacts, Sample
from tests.ui.fake_trainer import FakeTrainer

PROMPTS = ("a photo of sks dog in the snow", "sks dog <script>alert(1)</script> on a beach")


def make_run(root: Path, name: str = "rex", *, steps: int = 400, saves: int = 100, **settings: Any) -> RunFacts:
    """A finished run with networks at every `saves` steps, samples and a card; `settings` as `section__name`."""
    values: dict[str, Any] = {
        "output.folder": str(root / "runs"), "output.network_folder": str(root / "networks"), "output.name": name,
        "data.trigger": "sks", "data.class_word": "dog", "training.steps": steps, "output.sample_prompts": PROMPTS,
    }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in settings.items()}
    run = Run.create(make_job(values))
    saved = {}
    for step in range(saves, steps, saves):
        saved[step] = run.checkpoints / f"{name}-{step:06d}.safetensors"
        saved[step].write_bytes(f"{name} at {step}".encode() * 1000)
    own, final = run.folder / f"{name}.safetensors", root / "networks" / f"{name}.safetensors"
    own.write_bytes(f"{name} at the end".encode() * 1000)
    final.parent.mkdir(exist_ok=True)
    final.write_bytes(own.read_bytes())
    card = {"activation text": "sks dog", "mine": [1], "preferred weight": 1}
    final.with_suffix(".json").write_text(json.dumps(card))
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
        id=run.folder.name, folder=run.folder, name=name, method="network", state="finished", made=1.7e9, step=steps,
        steps=steps, loss=0.1312, files=(final,), saved=saved, samples=tuple(samples), points=points, can_resume=True,
    )  # fmt: skip


def trainer_with(root: Path, *runs: RunFacts) -> FakeTrainer:
    """A fake trainer that knows these runs."""
    from lib_lora.train.history import History

    trainer = FakeTrainer(root, known=list(runs))
    history = History(root / "runs")
    trainer.made_with = {run.id: history.settings_of(run.id) for run in runs}
    return trainer
