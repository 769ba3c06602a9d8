"""LCM and sliders, which are not about a subject: pictures in four steps, and a property moved both ways.

python benchmarks/quality_extra.py --out DIR [--steps 60] [--seeds 1] [--only lcm,slider]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from benchmarks.quality_cases import SIZE
from benchmarks.quality_methods import COMMON
from lib_lora.errors import LoraError
from lib_lora.files.library import NetworkLibrary
from lib_lora.miniature.draw import render
from lib_lora.miniature.exam import contact_sheet
from lib_lora.miniature.judge import judge
from lib_lora.miniature.place import checkpoint_path
from lib_lora.miniature.regions import plain_mask
from lib_lora.miniature.scenes import Scene, ground, held_out, judge_prompts
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.sample import SampleRequest, sample
from lib_lora.prompt import extract
from lib_lora.runtime import Runtime
from lib_lora.train.config import make_job
from lib_lora.train.engine import train

PICTURES, DRAWN = 24, 8
FEW = 4  # steps of a distilled model
STRENGTHS = (-1.0, 0.0, 1.0)


def lcm(model: Any, out: Path, seed: int, steps: int) -> dict[str, Any]:
    """Distil, then draw held-out prompts in four steps without guidance, with and without the file.

    `right`: share of things the judge finds as asked; `usual` is the base's own with ten guided steps.
    """
    folder = out / f"lcm-{seed}"
    _scenes(folder / "pictures")
    file = _train(model, folder, seed, steps, {"method.name": "lcm", "method.lcm_cfg_high": 6.0, "optimizer.lr": 5e-4})
    asked = judge_prompts(200)[20 : 20 + DRAWN]
    prompts = tuple(prompt for _, prompt in asked)
    few = {"steps": FEW, "cfg": 1.0, "sampler": "Euler", "trailing": True}
    sets = {
        "usual": _draw(model, prompts, seed, None, steps=10, cfg=4.0),
        "without": _draw(model, prompts, seed, None, **few),
        "with": _draw(model, prompts, seed, (file, 1.0), **few),
    }
    contact_sheet([p for pictures in sets.values() for p in pictures], DRAWN).save(out / f"lcm-{seed}.png")
    right = {k: float(np.mean([judge(p).agrees(s) for p, (s, _) in zip(v, asked)])) for k, v in sets.items()}
    overlap = {k: float(np.mean([judge(p).overlap for p in v])) for k, v in sets.items()}
    return {"right": right, "overlap": overlap}


def slider(model: Any, out: Path, seed: int, steps: int) -> dict[str, Any]:
    """Train small against big, and measure the thing's side at strengths -1, 0 and 1."""
    folder = out / f"slider-{seed}"
    settings = {
        "method.name": "slider",
        "method.slider_target": "a circle",
        "method.slider_positive": "a big circle",
        "method.slider_negative": "a small circle",
        "method.slider_steps": 6,
        "training.batch_size": 2,
        "optimizer.lr": 1e-3,
    }
    file = _train(model, folder, seed, steps, settings)
    grounds = ("white", "gray", "yellow", "black")
    prompts = tuple(f"a {c} circle on {ground(g)}" for g in grounds for c in ("red", "blue"))
    sets = {s: _draw(model, prompts, seed, (file, s) if s else None, steps=10, cfg=4.0) for s in STRENGTHS}
    contact_sheet([p for pictures in sets.values() for p in pictures], len(prompts)).save(out / f"slider-{seed}.png")
    return {
        "side": {f"{s:g}": float(np.mean([_side(p) for p in pictures])) for s, pictures in sets.items()},
        "circles": {f"{s:g}": float(np.mean([judge(p).shape == "circle" for p in v])) for s, v in sets.items()},
    }


def _side(picture: Image.Image) -> float:
    """The side of a square of the thing's area, as a share of the picture's."""
    mask, _ = plain_mask(np.asarray(picture.convert("RGB")))
    return float(np.sqrt(mask.mean()))


def _scenes(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    every = [
        Scene(thing, colour, name)
        for thing in ("circle", "square", "triangle", "heart", "star", "ring", "moon", "house")
        for colour in ("red", "yellow", "green", "blue", "black")
        for name in ("white", "gray", "pink", "orange")
    ]
    chosen = [scene for scene in every if not held_out(scene)]
    for number, at in enumerate(rng.choice(len(chosen), PICTURES, replace=False)):
        scene = chosen[at]
        render(scene, SIZE, 100 + number).save(folder / f"{number:02}.png")
        text = f"a {scene.colour} {scene.thing} on {ground(scene.background)}"
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")


def _train(model: Any, folder: Path, seed: int, steps: int, settings: dict[str, Any]) -> Path:
    job = make_job(
        {
            **COMMON,
            "data.trigger": "",
            "data.folder": str(folder / "pictures"),
            **settings,
            "training.steps": steps,
            "training.seed": seed,
            "output.folder": str(folder / "runs"),
            "output.name": f"{settings['method.name']}-{seed}",
        }
    )
    return train(job, model).file


def _draw(
    model: Any, prompts: Sequence[str], seed: int, network: tuple[Path, float] | None, **how: Any
) -> list[Image.Image]:
    request = SampleRequest(prompts, seed=500 + 100 * seed, width=SIZE, height=SIZE, batch=len(prompts), **how)
    if network is None:
        return sample(model, request)
    file, strength = network
    runtime = Runtime(NetworkLibrary([file.parent]))
    try:
        report = runtime.activate(model, extract(f"<lora:{file.stem}:{strength:g}>")[1])
        if not report.complete:
            raise LoraError(f"{file.name}: {report.summary()}")
        return sample(model, request)
    finally:
        runtime.deactivate()


def main() -> None:
    """Measure both, a line each in DIR/extra.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="slider,lcm")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_checkpoint(checkpoint_path())
    for seed in range(options.seeds):
        for name in options.only.split(","):
            measure = {"lcm": lcm, "slider": slider}[name]
            facts = measure(model, options.out, seed, options.steps)
            line = json.dumps({"method": name, "seed": seed, "steps": options.steps, **facts})
            with (options.out / "extra.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
