"""The comparison picture: the subject on top, then a row for each prompt and seed, a column for each strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

GAP, TEXT, HEAD = 8, 18, 26
LEAST = 32  # pixels of a training picture's side; beyond what fits only the first ones are shown
INK, PAPER = (32, 34, 40), (250, 250, 250)


@dataclass(frozen=True)
class Row:
    """The pictures of one prompt and one seed, by strength."""

    prompt: str
    seed: int
    pictures: dict[float, Image.Image]

    def at(self, strength: float) -> list[Image.Image]:
        """The picture at this strength, as a list of one."""
        return [self.pictures[strength]]


def comparison_sheet(
    references: Sequence[Image.Image], rows: Sequence[Row], strengths: Sequence[float], scores: Mapping[str, float]
) -> Image.Image:
    """One PNG-ready sheet. Rows of the same prompt stand side by side, so that all fits a screen."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    side = min(next(iter(rows[0].pictures.values())).width, 192)
    seeds = [row.seed for row in rows if row.prompt == prompts[0]]
    columns = len(strengths) * len(seeds)
    width = GAP + columns * (side + GAP)
    references = references[: (width - GAP) // (LEAST + 4)]
    thumb = min(96, (width - GAP) // max(len(references), 1) - 4)
    top = HEAD + thumb + GAP + HEAD
    height = top + TEXT + len(prompts) * (side + TEXT + GAP) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 8), "The subject: the pictures it was trained on", fill=INK)
    for i, picture in enumerate(references):
        sheet.paste(_square(picture, thumb), (GAP + i * (thumb + 4), HEAD))
    for j, seed in enumerate(seeds):
        for k, strength in enumerate(strengths):
            x = GAP + (j * len(strengths) + k) * (side + GAP)
            label = f"strength {strength:g}, seed {seed}" if strength else f"without, seed {seed}"
            pen.text((x, top - 6), label, fill=INK)
            if j == 0:
                pen.text((x, top + 8), f"score {scores[f'{strength:g}']:.2f}", fill=(90, 96, 110))
    for i, prompt in enumerate(prompts):
        y = top + TEXT + i * (side + TEXT + GAP) + GAP
        pen.text((GAP, y), prompt, fill=INK)
        for row in rows:
            if row.prompt == prompt:
                for k, strength in enumerate(strengths):
                    x = GAP + (seeds.index(row.seed) * len(strengths) + k) * (side + GAP)
                    sheet.paste(_square(row.pictures[strength], side), (x, y + TEXT))
    return sheet


def _square(picture: Image.Image, side: int) -> Image.Image:
    short = min(picture.size)
    x, y = (picture.width - short) // 2, (picture.height - short) // 2
    return picture.convert("RGB").crop((x, y, x + short, y + short)).resize((side, side), Image.LANCZOS)
