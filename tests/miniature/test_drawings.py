"""Drawings, captions, the judge and the subject score."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_lora.miniature.draw import render
from lib_lora.miniature.judge import judge
from lib_lora.miniature.regions import largest_patch
from lib_lora.miniature.scenes import (
    COLOURS,
    PLAIN_BACKGROUNDS,
    POSITIONS,
    SHAPE_NAMES,
    SIZES,
    TEXTURES,
    TOY,
    Scene,
    caption,
    draw_lots,
    held_out,
    judge_prompts,
)
from lib_lora.miniature.score import auc, features, likeness, subject_score
from lib_lora.miniature.subjects import SUBJECTS, photograph, write_photos
from lib_lora.miniature.toys import Toy


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_same_seed_gives_the_same_pixels_and_another_gives_others(seed: int) -> None:
    scene = draw_lots(random.Random(seed))
    one, two = render(scene, 64, seed), render(scene, 64, seed)
    assert one.tobytes() == two.tobytes()
    assert render(scene, 64, seed + 1).tobytes() != one.tobytes()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_captions_never_say_what_is_not_there(seed: int) -> None:
    rng = random.Random(seed)
    scene = draw_lots(rng)
    text = caption(scene, rng)
    words = set(text.replace(",", "").split())
    shown = {scene.colour, scene.background, scene.thing, scene.size}
    assert scene.thing in words
    assert words & (set(COLOURS) | set(PLAIN_BACKGROUNDS) | set(TEXTURES) | set(SHAPE_NAMES)) <= shown
    assert all(p == scene.position for p in POSITIONS if p in text)


def test_the_judged_prompts_are_200_and_no_training_scene_is_among_them() -> None:
    asked = judge_prompts()
    assert len({prompt for _, prompt in asked}) == 200
    assert all(held_out(scene) for scene, _ in asked)
    rng = random.Random(0)
    assert not any(held_out(draw_lots(rng)) for _ in range(2000))


def test_the_judge_is_right_about_drawings() -> None:
    asked = [scene for scene, _ in judge_prompts()]
    right = sum(judge(render(scene, 128, i)).agrees(scene) for i, scene in enumerate(asked))
    assert right >= 0.95 * len(asked)


def test_the_judge_is_not_fooled_by_nothing_or_by_something_else() -> None:
    blank = Image.new("RGB", (128, 128), PLAIN_BACKGROUNDS["blue"])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8).astype(np.uint8))
    assert judge(blank).shape == ""
    assert judge(noise).shape == ""
    circle = Scene("circle", "red", "white")
    assert not judge(render(circle, 128, 1)).agrees(Scene("square", "red", "white"))
    assert not judge(render(circle, 128, 1)).agrees(Scene("circle", "blue", "white"))


def test_the_largest_patch_is_kept_and_specks_are_not() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:10, 2:10] = True
    mask[15, 15] = True
    kept = largest_patch(mask)
    assert kept.sum() == 64
    assert not kept[15, 15]


def test_the_subject_score_tells_same_from_other() -> None:
    rng = random.Random(7)

    def picture(look: int) -> Image.Image:
        ground = rng.choice([*PLAIN_BACKGROUNDS, *TEXTURES])
        scene = Scene(TOY, "red", ground, rng.choice(list(SIZES)), rng.choice(list(POSITIONS)), look)
        return render(scene, 128, rng.getrandbits(30))

    found = [[features(picture(look)) for _ in range(3)] for look in rng.sample(range(10**6), 24)]
    same = [likeness(f[a], f[b]) for f in found for a, b in ((0, 1), (0, 2), (1, 2))]
    other = [likeness(found[i][0], found[j][1]) for i in range(24) for j in range(24) if i != j]
    assert auc(same, other) >= 0.95


def test_the_subjects_of_the_demo_score_high_with_themselves_and_low_with_each_other() -> None:
    pictures = {name: [p.image for p in photograph(toy, 4, seed=3)] for name, toy in SUBJECTS.items()}
    for name, images in pictures.items():
        own = subject_score(images[:2], images[2:])
        others = [subject_score(pictures[o], images) for o in pictures if o != name]
        assert own > max(others) + 0.2


def test_subject_score_without_pictures_says_so() -> None:
    with pytest.raises(ValueError, match="at least one"):
        subject_score([], [Image.new("RGB", (8, 8))])


def test_auc_counts_pairs() -> None:
    assert auc([0.9, 0.8], [0.1, 0.2]) == 1.0
    assert auc([0.1], [0.9]) == 0.0
    assert auc([0.5], [0.5]) == 0.5


def test_photos_are_written_with_captions_that_name_the_trigger(tmp_path: object) -> None:
    photos = photograph(Toy.from_seed(1), 5, size=64)
    folder = tmp_path / "toy"  # type: ignore[operator]
    write_photos(photos, folder, "sks")
    assert sorted(p.name for p in folder.glob("*.png")) == [f"{i:02}.png" for i in range(5)]
    assert all("sks toy" in p.read_text() for p in folder.glob("*.txt"))
