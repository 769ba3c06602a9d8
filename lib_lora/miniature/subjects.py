"""Subjects to train on: toys that no training picture of the miniature showed, and pictures of them with captions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lib_lora.miniature.draw import background, draw_toy, pose_for
from lib_lora.miniature.scenes import PLAIN_BACKGROUNDS, POSITIONS, SIZES, TEXTURES, TOY, Scene, ground
from lib_lora.miniature.toys import Toy

# Three colours, a body, a top and a mark chosen by hand; `Toy.from_seed` draws its colours from other ranges.
SUBJECTS: dict[str, Toy] = {
    "bo": Toy("egg", "antenna", "belt", 2, True, (20, 150, 150), (250, 200, 60), (200, 60, 50)),
    "kiki": Toy("cup", "ears", "dots", 3, False, (235, 120, 70), (60, 40, 110), (250, 235, 200)),
    "zed": Toy("block", "horns", "stripe", 1, True, (90, 60, 40), (150, 220, 120), (240, 240, 90)),
}
GROUNDS = (*PLAIN_BACKGROUNDS, *TEXTURES)


@dataclass(frozen=True)
class Photo:
    """A picture of a subject and what it shows apart from the subject."""

    image: Image.Image
    scene: Scene

    def caption(self, trigger: str) -> str:
        """E.g. `a big sks toy on grass`."""
        words = " ".join(w for w in (self.scene.size, trigger, TOY) if w)
        place = "" if self.scene.position == "in the middle" else f" {self.scene.position}"
        return f"a {words}{place} on {ground(self.scene.background)}"


def photograph(toy: Toy, count: int, size: int = 128, seed: int = 0) -> list[Photo]:
    """`count` pictures of a toy, each on another background while there are any left, in all sizes and places."""
    rng = random.Random(seed)
    order: list[str] = []
    photos: list[Photo] = []
    while len(photos) < count:
        order = order or rng.sample(GROUNDS, len(GROUNDS))
        scene = Scene(
            TOY, "", order.pop(), rng.choice(("", "big", *SIZES)), rng.choice(("in the middle", *POSITIONS)), look=0
        )
        pose = pose_for(scene, size, rng)
        photos.append(Photo(draw_toy(background(scene.background, size, rng.getrandbits(30)), toy, pose), scene))
    return photos


def write_photos(photos: Sequence[Photo], folder: Path, trigger: str) -> None:
    """Write pictures and captions as `00.png`, `00.txt`, ... into `folder`, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(photos):
        photo.image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(photo.caption(trigger), encoding="utf-8")
