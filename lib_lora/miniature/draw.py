"""Paints scenes and toys with Pillow: flat shapes, simple objects, backgrounds and textures, all from code."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from lib_lora.miniature.scenes import COLOURS, PLAIN_BACKGROUNDS, POSITIONS, SIZES, TOY, Scene
from lib_lora.miniature.stencils import SHAPES, Layer, Polygon
from lib_lora.miniature.toys import Toy, toy_layers

OVERSAMPLE = 3
Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Pose:
    """Where a thing stands: centre and half-width in pixels, turn in degrees."""

    x: float
    y: float
    half: float
    turn: float = 0.0

    def place(self, outline: Polygon) -> list[tuple[float, float]]:
        """Unit-box points in pixels of the oversampled canvas."""
        c, s = math.cos(math.radians(self.turn)), math.sin(math.radians(self.turn))
        k = OVERSAMPLE
        return [
            (k * (self.x + self.half * (c * px - s * py)), k * (self.y + self.half * (s * px + c * py)))
            for px, py in outline
        ]


def shade(colour: Rgb, factor: float) -> Rgb:
    """A colour made darker (factor < 1) or moved towards white (factor > 1)."""
    if factor <= 1:
        r, g, b = (c * factor for c in colour)
    else:
        r, g, b = (c + (255 - c) * (factor - 1) for c in colour)
    return int(r), int(g), int(b)


def jitter(colour: Rgb, rng: random.Random, by: int = 8) -> Rgb:
    """The colour, each channel off by at most `by`."""
    r, g, b = (min(255, max(0, c + rng.randint(-by, by))) for c in colour)
    return r, g, b


def paints(main: Rgb) -> dict[str, Rgb]:
    """What each named paint of a stencil is for a thing of this main colour."""
    bright = sum(main) > 380
    return {
        "main": main,
        "dark": shade(main, 0.45) if bright else shade(main, 1.45),
        "light": (238, 244, 250) if sum(main) < 690 else (120, 150, 180),
        "ink": (30, 30, 34) if sum(main) > 120 else (120, 120, 126),
        "wood": (112, 74, 44),
    }


def noise(rng: np.random.Generator, size: int, cells: tuple[int, ...], stretch: float = 1.0) -> np.ndarray:
    """Fractal value noise in [0, 1], (size, size) float32: one random grid for each entry of `cells`."""
    total: np.ndarray = np.zeros((size, size), np.float32)
    weight = 1.0
    for n in cells:
        grid = rng.random((max(2, int(n * stretch)), n), np.float32)
        total += weight * np.asarray(Image.fromarray(grid).resize((size, size), Image.BICUBIC))
        weight *= 0.6
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def _blend(t: np.ndarray, low: Rgb, high: Rgb) -> np.ndarray:
    return np.asarray(low, np.float32) + t[..., None] * (np.asarray(high, np.float32) - np.asarray(low, np.float32))


def texture(name: str, size: int, seed: int) -> Image.Image:
    """One of the textured backgrounds, (size, size) RGB. Raises KeyError for a name not in `TEXTURES`."""
    rng = np.random.default_rng(seed)
    rows: np.ndarray = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    if name == "grass":
        pixels = _blend(noise(rng, size, (5, 40, 64), 0.5), (38, 92, 30), (128, 186, 78))
    elif name == "sand":
        pixels = _blend(noise(rng, size, (4, 12, 70), 2.0), (196, 166, 112), (236, 214, 166))
    elif name == "sky":
        clouds = np.clip(noise(rng, size, (3, 6, 13)) * 2.4 - 1.2, 0, 1)
        pixels = _blend(np.clip(clouds + 0 * rows, 0, 1), (104, 170, 232), (250, 252, 255))
    elif name == "wood":
        grain = np.sin((noise(rng, size, (3, 8), 0.4) * 5 + rows * 7) * 6.28) * 0.5 + 0.5
        pixels = _blend(grain, (120, 78, 44), (176, 122, 74))
    elif name == "stone":
        pixels = _blend(noise(rng, size, (4, 9, 24, 60)), (84, 86, 92), (168, 168, 166))
    else:
        waves = {"water": np.sin((noise(rng, size, (3, 6)) * 2 + rows * 9) * 6.28) * 0.5 + 0.5}[name]
        pixels = _blend(waves * noise(rng, size, (6, 20), 2.0), (24, 104, 150), (120, 206, 226))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def background(name: str, size: int, seed: int) -> Image.Image:
    """A plain colour with a hint of uneven light, or a texture."""
    if name not in PLAIN_BACKGROUNDS:
        return texture(name, size, seed)
    rng = random.Random(seed)
    base: np.ndarray = np.asarray(jitter(PLAIN_BACKGROUNDS[name], rng, 6), np.float32)
    slope: np.ndarray = np.linspace(-1, 1, size, dtype=np.float32)
    light = rng.uniform(-5, 5) * slope[:, None] + rng.uniform(-5, 5) * slope[None, :]
    return Image.fromarray((base + light[..., None]).clip(0, 255).astype(np.uint8))


def paint(canvas: Image.Image, layers: tuple[Layer, ...], colours: dict[str, Rgb], pose: Pose) -> Image.Image:
    """The canvas with a thing on it, edges smoothed by oversampling."""
    big = canvas.resize((canvas.width * OVERSAMPLE, canvas.height * OVERSAMPLE), Image.BILINEAR)
    pen = ImageDraw.Draw(big)
    for layer in layers:
        pen.polygon(pose.place(layer.outline), fill=colours[layer.paint])
    return big.reduce(OVERSAMPLE)


def pose_for(scene: Scene, size: int, rng: random.Random) -> Pose:
    """A pose that agrees with the scene's words for size and position."""
    share = rng.uniform(*SIZES[scene.size])
    dx, dy = POSITIONS[scene.position]
    room = (1 - share) / 2
    x = 0.5 + dx * room * rng.uniform(0.7, 0.95) + rng.uniform(-0.03, 0.03)
    y = 0.5 + dy * room * rng.uniform(0.7, 0.95) + rng.uniform(-0.03, 0.03)
    return Pose(x * size, y * size, share * size / 2, rng.uniform(-8, 8))


def render(scene: Scene, size: int, seed: int) -> Image.Image:
    """The picture of a scene, (size, size) RGB. The same arguments give the same pixels."""
    rng = random.Random(seed)
    canvas = background(scene.background, size, rng.getrandbits(32))
    pose = pose_for(scene, size, rng)
    if scene.thing == TOY:
        return draw_toy(canvas, Toy.from_seed(scene.look), pose)
    return paint(canvas, SHAPES[scene.thing], paints(jitter(COLOURS[scene.colour], rng)), pose)


def draw_toy(canvas: Image.Image, toy: Toy, pose: Pose) -> Image.Image:
    """The canvas with one toy on it."""
    return paint(canvas, toy_layers(toy), toy.paints(), pose)
