"""What a trained file does: subject or style score, what the prompt asked for, and what is kept of the base."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from benchmarks.quality_cases import SIZE, Case, ordinary
from benchmarks.quality_styles import style_score
from lib_lora.miniature.draw import background
from lib_lora.miniature.judge import judge
from lib_lora.miniature.regions import border_colours, frame, thing_mask
from lib_lora.miniature.scenes import PLAIN_BACKGROUNDS, TEXTURES, Scene
from lib_lora.miniature.score import features, likeness, subject_score

SMALL, BIG = 0.40, 0.52  # sides of the thing's square box, as shares of the picture, that words stand for
ASIDE = 0.09  # how far off the middle "on the left" is at least


def target_score(case: Case, pictures: Sequence[Image.Image]) -> float:
    """How much the pictures, one for each of the case's prompts, look like what was to be learned: 0 to 1."""
    if case.kind == "style":
        return style_score(pictures, case.references)
    return subject_score(pictures, case.references[0])


def prompt_score(case: Case, pictures: Sequence[Image.Image]) -> float:
    """The share of asked attributes that are there; of a style, whose colours are its own, the thing's shape."""
    if case.kind == "style":
        return float(np.mean([judge(p).shape == s.thing for p, s in zip(pictures, case.asked, strict=True)]))
    found = [hit for p, s in zip(pictures, case.asked, strict=True) for hit in attributes(p, s).values()]
    return float(np.mean(found))


def attributes(picture: Image.Image, scene: Scene) -> dict[str, bool]:
    """For each attribute the scene names whether the picture has it: background, size, position."""
    pixels = np.asarray(picture.convert("RGB"))
    mask = thing_mask(pixels)
    left, top, right, bottom = frame(mask)
    side = (right - left) / SIZE
    across, down = ((left + right) / 2 / SIZE - 0.5, (top + bottom) / 2 / SIZE - 0.5)
    found = {"background": ground_of(picture) == scene.background}
    if scene.size:
        found["size"] = side < SMALL if scene.size == "small" else side > BIG
    if scene.position != "in the middle":
        places = {"on the left": -across, "on the right": across, "at the top": -down, "at the bottom": down}
        found["position"] = places[scene.position] > ASIDE
    return found


def ground_of(picture: Image.Image) -> str:
    """The background whose border colours, by mean and spread, are nearest."""
    names, table = _grounds()
    return names[int(((table - _border(picture)) ** 2).sum(1).argmin())]


def prior_scores(pictures: Sequence[Image.Image], own: Sequence[Image.Image], count: int) -> Mapping[str, float]:
    """Of pictures without the trigger, `count` ordinary ones and then those of the class; `own` are the base's.

    `prior`: share of ordinary prompts the judge finds right. `kept`: how alike each thing is to the base's with the
    same prompt and noise.
    """
    asked = [scene for scene, _ in ordinary(count)]
    right = [judge(p).agrees(s) for p, s in zip(pictures, asked)]
    kept = [likeness(features(p), features(o)) for p, o in zip(pictures, own, strict=True)]
    return {
        "prior": float(np.mean(right)),
        "kept": float(np.mean(kept[:count])),
        "kept_class": float(np.mean(kept[count:])),
    }


def leak(case: Case, pictures: Sequence[Image.Image]) -> float:
    """How much pictures of the class alone look like the subject: high where the class was overwritten."""
    return subject_score(pictures, case.references[0])


@functools.lru_cache(maxsize=1)
def _grounds() -> tuple[list[str], np.ndarray]:
    names = [name for name in (*PLAIN_BACKGROUNDS, *TEXTURES) for _ in range(4)]
    table = [_border(background(name, SIZE, seed)) for seed, name in enumerate(names)]
    return names, np.stack(table)


def _border(picture: Image.Image) -> np.ndarray:
    colours = border_colours(np.asarray(picture.convert("RGB")), most=2000)
    return np.concatenate([np.median(colours, 0), colours.std(0)])
