"""What is learned: toys that no picture of the miniature's training showed, and styles; their pictures and prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.quality_styles import STYLES
from lib_lora.miniature.draw import background, draw_toy, pose_for, render
from lib_lora.miniature.scenes import TOY, Scene, ground, held_out, judge_prompts
from lib_lora.miniature.subjects import photograph, write_photos
from lib_lora.miniature.toys import Toy

TRIGGER = "sks"
SIZE = 128
FIRST_TOY = 2**31  # the miniature's own toys have seeds below 2**30
SUBJECTS = 8
PICTURES = {"subject": 8, "style": 12}  # to train on
ROUNDS = {"subject": 2, "style": 1}  # pictures of each prompt: how alike a toy is differs more from noise to noise
REFERENCES = {"subject": 6, "style": 2}  # held-out drawings: of the toy, and of each prompt's scene in the style
TUNING = "toy-tuning"
# What is asked of the subject: background, size, position; each attribute that is named is looked for.
ASKED = (
    Scene(TOY, "", "gray", "big"),
    Scene(TOY, "", "grass"),
    Scene(TOY, "", "yellow", "", "on the left"),
    Scene(TOY, "", "sand", "big"),
    Scene(TOY, "", "white", "small"),
    Scene(TOY, "", "blue", "", "on the right"),
    Scene(TOY, "", "black", "", "at the top"),
    Scene(TOY, "", "wood", "small"),
)
CLASS_GROUNDS = ("gray", "grass", "pink", "sand")


@dataclass(frozen=True)
class Case:
    """One thing to learn. `asked[i]` is what `prompts[i]` asks for; `references[i]` are right answers to it."""

    name: str
    kind: str  # "subject" or "style"
    class_word: str
    prompts: tuple[str, ...]
    asked: tuple[Scene, ...]
    references: tuple[tuple[Image.Image, ...], ...]

    def write(self, folder: Path) -> None:
        """The training pictures and captions, into an empty or missing folder."""
        if self.kind == "subject":
            write_photos(photograph(_toy(self.name), PICTURES["subject"], SIZE, seed=5), folder, TRIGGER)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(_style_scenes()[1][: PICTURES["style"]]):
            picture = STYLES[self.name](render(scene, SIZE, 7000 + number))
            picture.save(folder / f"{number:02}.png")
            (folder / f"{number:02}.txt").write_text(styled(scene), encoding="utf-8")


def subject_case(name: str) -> Case:
    """`toy-0` to `toy-7`, or `toy-tuning`, on which learning rates are chosen."""
    toy, rng = _toy(name), random.Random(99)
    references = tuple(
        draw_toy(background(s.background, SIZE, rng.getrandbits(30)), toy, pose_for(s, SIZE, rng))
        for s in ASKED[: REFERENCES["subject"]]
    )
    asked = ASKED * ROUNDS["subject"]
    prompts = tuple(words(scene, f"{TRIGGER} {TOY}") for scene in asked)
    return Case(name, "subject", TOY, prompts, asked, (references,) * len(asked))


def style_case(name: str) -> Case:
    """A style, asked of scenes that are not among its training pictures."""
    asked = _style_scenes()[0] * ROUNDS["style"]
    references = tuple(
        tuple(STYLES[name](render(scene, SIZE, 9000 + i)) for i in range(REFERENCES["style"])) for scene in asked
    )
    return Case(name, "style", "", tuple(styled(scene) for scene in asked), asked, references)


def case_of(name: str) -> Case:
    """The case called so. Raises KeyError."""
    return style_case(name) if name in STYLES else subject_case(name)


def case_names(subjects: int = SUBJECTS, styles: int = len(STYLES)) -> list[str]:
    """Subjects first, then styles."""
    return [f"toy-{number}" for number in range(subjects)] + list(STYLES)[:styles]


def turn_by_turn(names: Sequence[str]) -> list[str]:
    """The cases with each style after two subjects, so that a run that is cut has some of both."""
    styles = [name for name in names if name in STYLES]
    subjects = [name for name in names if name not in STYLES]
    mixed = []
    while subjects or styles:
        mixed += [*subjects[:2], *styles[:1]]
        subjects, styles = subjects[2:], styles[1:]
    return mixed


def ordinary(count: int) -> list[tuple[Scene, str]]:
    """Prompts that have nothing to do with what is learned, of things the judge knows."""
    return judge_prompts(200)[100 : 100 + count]


def class_prompts(count: int) -> list[str]:
    """Prompts of the subject's class without the trigger."""
    return [f"a {TOY} on {ground(name)}" for name in (CLASS_GROUNDS * count)[:count]]


def words(scene: Scene, thing: str) -> str:
    """`a big sks toy on the left on grass`: as the training captions say it."""
    place = "" if scene.position == "in the middle" else f" {scene.position}"
    return f"a {' '.join(w for w in (scene.size, thing) if w)}{place} on {ground(scene.background)}"


def styled(scene: Scene) -> str:
    """A scene's caption with the style's word."""
    return f"{words(scene, f'{scene.colour} {scene.thing}')}, {TRIGGER} style"


def _toy(name: str) -> Toy:
    label = name.removeprefix("toy-")
    return Toy.from_seed(FIRST_TOY + (1000 if label == "tuning" else int(label)))


def _style_scenes() -> tuple[tuple[Scene, ...], Sequence[Scene]]:
    """(asked, trained on): plain scenes the miniature was trained with, so that the style alone is new."""
    rng = random.Random(3)
    known = [
        Scene(thing, colour, name)
        for thing in ("circle", "square", "triangle", "heart", "cross", "house")
        for colour in ("red", "yellow", "green", "blue", "purple", "orange")
        for name in ("white", "gray", "blue", "yellow", "pink", "green")
        if colour != name and not held_out(Scene(thing, colour, name))
    ]
    chosen = rng.sample(known, len(ASKED) + PICTURES["style"])
    return tuple(chosen[: len(ASKED)]), chosen[len(ASKED) :]
