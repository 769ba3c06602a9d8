"""What a drawing shows, and the captions that say so. A scene is data; `draw.py` paints it."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from lib_lora.miniature.stencils import SHAPES

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 40),
    "orange": (245, 138, 24),
    "yellow": (247, 222, 52),
    "green": (44, 156, 66),
    "blue": (40, 86, 212),
    "purple": (126, 52, 168),
    "pink": (246, 150, 192),
    "black": (26, 26, 28),
    "white": (246, 246, 244),
}
PLAIN_BACKGROUNDS: dict[str, tuple[int, int, int]] = {**COLOURS, "gray": (140, 142, 146)}
TEXTURES = ("grass", "sand", "sky", "wood", "stone", "water")
SIZES = {"small": (0.30, 0.36), "": (0.44, 0.54), "big": (0.64, 0.74)}  # width as a share of the picture's
POSITIONS = {
    "on the left": (-1.0, 0.0),
    "on the right": (1.0, 0.0),
    "at the top": (0.0, -1.0),
    "at the bottom": (0.0, 1.0),
    "in the middle": (0.0, 0.0),
}
SHAPE_NAMES = tuple(SHAPES)
TOY = "toy"


@dataclass(frozen=True)
class Scene:
    """One thing on one background. `thing` is a shape's name or `toy`; `look` seeds a toy's appearance."""

    thing: str
    colour: str
    background: str
    size: str = ""
    position: str = "in the middle"
    look: int = 0

    @property
    def plain(self) -> bool:
        """Whether the background is one flat colour."""
        return self.background not in TEXTURES


def held_out(scene: Scene) -> bool:
    """Whether this thing-colour-background triple is kept from training (about one in four)."""
    return zlib.crc32(f"{scene.thing}|{scene.colour}|{scene.background}".encode()) % 4 == 0


def draw_lots(rng: random.Random, toys: float = 0.25) -> Scene:
    """A random scene of the training set; `toys` is the share of toys among the things."""
    while True:
        textured = rng.random() < 0.25
        background = rng.choice(TEXTURES) if textured else rng.choice(list(PLAIN_BACKGROUNDS))
        colour = rng.choice([c for c in COLOURS if c != background])
        thing = TOY if rng.random() < toys else rng.choice(SHAPE_NAMES)
        size = rng.choice(("small", "", "", "big"))
        position = rng.choice(list(POSITIONS)) if rng.random() < 0.6 else "in the middle"
        scene = Scene(thing, colour, background, size, position, rng.getrandbits(30))
        if not held_out(scene):
            return scene


def judge_prompts(count: int = 200, seed: int = 2024) -> list[tuple[Scene, str]]:
    """The held-out prompts on plain backgrounds by which the miniature is judged, always the same."""
    every = [
        Scene(thing, colour, ground_name)
        for thing in SHAPE_NAMES
        for colour in COLOURS
        for ground_name in PLAIN_BACKGROUNDS
        if ground_name != colour
    ]
    chosen = [scene for scene in every if held_out(scene)]
    random.Random(seed).shuffle(chosen)
    return [(s, f"a {s.colour} {s.thing} on {ground(s.background)}") for s in chosen[:count]]


def ground(background: str) -> str:
    """A background as a caption names it: `a blue background`, or the texture's own word."""
    return background if background in TEXTURES else f"a {background} background"


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the ways to say what a scene shows; parts are left out now and then, never falsified."""
    words = [scene.thing]
    if scene.thing != TOY and rng.random() < 0.95:
        words.insert(0, scene.colour)
    if scene.size and rng.random() < 0.8:
        words.insert(0, scene.size)
    start = rng.choice(("a ", "a ", "a ", "a drawing of a ", "a picture of a ", "", "a photo of a "))
    text = start + " ".join(words)
    if scene.position != "in the middle" and rng.random() < 0.8:
        text += " " + scene.position
    if rng.random() < 0.92:
        link = " on " if rng.random() < 0.8 else ", "
        text += link + ground(scene.background)
    return text
