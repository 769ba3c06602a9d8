"""The demo: from a folder of pictures to a tag in the prompt, on the miniature or any SD1.x checkpoint."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora.errors import BadConfig, BadDataset, LoraError
from lib_lora.files.library import NetworkLibrary
from lib_lora.miniature.place import checkpoint_path
from lib_lora.miniature.score import subject_score
from lib_lora.miniature.subjects import SUBJECTS, photograph, write_photos
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.sample import SampleRequest, sample
from lib_lora.ports import DiffusionModel
from lib_lora.prompt import extract
from lib_lora.runtime import Runtime
from lib_lora.standalone.sheet import Row, comparison_sheet
from lib_lora.train.captions import read_dataset
from lib_lora.train.config import JobConfig, make_job
from lib_lora.train.engine import train
from lib_lora.train.images import open_picture

TRIGGER = "sks"
STRENGTHS = (0.0, 0.5, 1.0)
SEEDS = (1, 2)
CFG = 4.0
MINIATURE_SETTINGS: dict[str, Any] = {
    "network.rank": 16,
    "network.alpha": 16.0,
    "optimizer.lr": 2e-3,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 20,
    "training.steps": 400,
    "training.batch_size": 4,
    "training.min_snr_gamma": 5.0,
    "data.resolution": 128,
}
FULL_SIZE_SETTINGS: dict[str, Any] = {
    "network.rank": 16,
    "network.alpha": 8.0,
    "optimizer.lr": 1e-4,
    "training.steps": 800,
    "training.checkpointing": True,
    "data.resolution": 512,
}


@dataclass(frozen=True)
class Plan:
    """What this demo run trains on and draws; `size` is the side of the drawn pictures in pixels."""

    photos: Path
    class_word: str
    prompts: tuple[str, ...]
    settings: dict[str, Any]
    size: int
    steps: int = 20


def run_demo(photos: Path | None, class_word: str | None, checkpoint: Path | None, out: Path) -> int:
    """Train on `photos` (default: drawings of a toy), draw with and without the tag, and say where everything is.

    Returns the process's exit code: 0, or 2 with one line on stderr for bad input.
    """
    try:
        _run(photos, class_word, checkpoint, _fresh(out))
    except LoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(photos: Path | None, class_word: str | None, checkpoint: Path | None, out: Path) -> None:
    tiny = checkpoint is None
    carry_out(_plan(photos, class_word, tiny, out), checkpoint or checkpoint_path(), out)
    if tiny and photos is not None:
        print("The miniature knows drawings only: on photographs this proves the way, not the quality.")
        print("For real results name a Stable Diffusion 1.x checkpoint: --checkpoint FILE.safetensors")


def carry_out(plan: Plan, checkpoint: Path, out: Path) -> dict[str, float]:
    """Train, draw, score, and write `comparison.png` and `scores.json` into `out`; the scores by strength."""
    began = time.monotonic()
    model = load_checkpoint(checkpoint)
    job = make_job(
        {
            **plan.settings,
            "base.checkpoint": str(checkpoint),
            "data.folder": str(plan.photos),
            "data.trigger": TRIGGER,
            "data.class_word": plan.class_word,
            "output.folder": str(out / "runs"),
            "output.name": "demo",
            "output.network_folder": str(out / "networks"),
        }
    )
    references = _references(job)
    print(f"Training a LoRA on {len(references)} pictures of '{TRIGGER} {plan.class_word}' ({plan.photos})")
    file = _train(job, model)
    rows = draw_rows(model, plan, file)
    scores = {f"{s:g}": subject_score([p for row in rows for p in row.at(s)], references) for s in STRENGTHS}
    comparison_sheet(references, rows, STRENGTHS, scores).save(out / "comparison.png")
    (out / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
    _tell(out, file, scores, time.monotonic() - began)
    return scores


def _plan(photos: Path | None, class_word: str | None, tiny: bool, out: Path) -> Plan:
    settings, size = (MINIATURE_SETTINGS, 128) if tiny else (FULL_SIZE_SETTINGS, 512)
    if photos is None:
        if class_word is not None:
            raise BadConfig(f"--class {class_word!r} says what your pictures show; name their folder with --photos too")
        folder = out / "pictures"
        write_photos(photograph(SUBJECTS["bo"], 12, seed=1), folder, TRIGGER)
        words = ("big {} on a gray background", "big {} on grass", "{} on a yellow background", "big {} on sand")
        return Plan(folder, "toy", tuple("a " + w.format(f"{TRIGGER} toy") for w in words), settings, size)
    if not photos.is_dir():
        raise BadDataset(f"--photos {str(photos)!r} is not a folder; name the folder your pictures are in")
    word = class_word or "thing"
    places = ("on a blue background", "on grass", "on sand", "on a white background")
    return Plan(photos, word, tuple(f"a {TRIGGER} {word} {p}" for p in places), settings, size)


def _references(job: JobConfig) -> list[Image.Image]:
    pictures = [open_picture(item.path) for item in read_dataset(job.data).items]
    for picture in pictures:
        picture.thumbnail((256, 256))
    return pictures


def _train(job: JobConfig, model: DiffusionModel) -> Path:
    from tqdm import tqdm

    with tqdm(total=job.training.steps, unit="step", desc="training") as bar:

        def show(event: dict[str, Any]) -> None:
            if event["type"] == "step":
                bar.set_postfix(loss="none" if event["loss"] is None else f"{event['loss']:.4f}", refresh=False)
                bar.update(1)

        return train(job, model, on_event=show).file


def draw_rows(model: DiffusionModel, plan: Plan, file: Path) -> list[Row]:
    """One row for each prompt and seed, the same noise at every strength; the network comes in by its tag."""
    from tqdm import tqdm

    runtime = Runtime(NetworkLibrary([file.parent]))
    jobs = [(prompt, strength) for prompt in plan.prompts for strength in STRENGTHS]
    rows = [Row(prompt, seed, {}) for prompt in plan.prompts for seed in SEEDS]
    try:
        for prompt, strength in tqdm(jobs, unit="prompt", desc="drawing"):
            tag = f" <lora:{file.stem}:{strength:g}>" if strength else ""
            text, requests = extract(prompt + tag)
            report = runtime.activate(model, requests)
            if report.errors:
                raise LoraError("; ".join(report.errors))
            pictures = _draw(model, text, plan)
            for row in rows:
                if row.prompt == prompt:
                    row.pictures[strength] = pictures[SEEDS.index(row.seed)]
    finally:
        runtime.deactivate()
    return rows


def _draw(model: DiffusionModel, prompt: str, plan: Plan) -> Sequence[Image.Image]:
    request = SampleRequest(
        (prompt,), seed=SEEDS[0], steps=plan.steps, cfg=CFG, width=plan.size, height=plan.size, batch=len(SEEDS)
    )
    return sample(model, request)


def _tell(out: Path, file: Path, scores: dict[str, float], seconds: float) -> None:
    print(f"Done in {seconds:.0f} s.")
    print(f"  network     {file}   (tag: <lora:{file.stem}:1>)")
    print(f"  comparison  {out / 'comparison.png'}")
    print(f"  pictures, job, log and samples in {out}")
    told = ", ".join(f"strength {s}: {v:.2f}" for s, v in scores.items())
    print(f"Subject score against the training pictures (0 nothing alike, 1 the same): {told}")


def _fresh(out: Path) -> Path:
    """`out`, or `out-2`, `out-3`, ... if it has something in it already: nothing is overwritten."""
    out = out.resolve()
    folder, number = out, 1
    try:
        while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            number += 1
            folder = out.parent / f"{out.name}-{number}"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadConfig(f"--out {str(out)!r} cannot be used ({error}); name another folder") from error
    return folder
