"""A picture shown large over the page: a sample of a run or a picture of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lib_lora.errors import LoraError
from lib_lora.train.compare import Grid
from lib_lora.ui.html_parts import button
from lib_lora.ui.spoken import spoken
from lib_lora.ui.thumbs import LARGE, Thumbs
from lib_lora.ui.trainer import Sample, Trainer

Look = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """A picture, what it is called, its prompt, and what one asks for to see the one before and after it."""

    path: Path
    label: str
    prompt: str
    before: Look | None = None
    after: Look | None = None


def find(trainer: Trainer, look: Look) -> Shown | None:
    """The picture that `{"run": id, "sample": place}` or `{"run": id, "grid": name, "cell": place}` means, if any."""
    run, place = look.get("run"), look.get("sample", look.get("cell"))
    if not isinstance(run, str) or type(place) is not int or place < 0:
        return None
    try:
        if "grid" in look:
            return _cell(Grid.open(trainer.run(run).folder, str(look["grid"])), run, place)
        return _sample(samples_of(trainer, run), run, place)
    except LoraError:
        return None


def samples_of(trainer: Trainer, run: str) -> Sequence[Sample]:
    """A run's sample pictures, oldest first. Raises BadConfig if there is no such run."""
    status = trainer.status()
    return status.samples if status.id == run else trainer.run(run).samples


def html(shown: Shown | None, look: Look, thumbs: Thumbs) -> str:
    """The picture with its buttons; empty if there is none."""
    url = thumbs.url(shown.path, LARGE) if shown else ""
    if shown is None or not url:
        return ""
    steps = "".join(
        button(label, None, on=other is not None, data={"look": json.dumps(dict(other or {}))})
        for label, other in (("Previous", shown.before), ("Next", shown.after))
    )
    return (
        f'<div class="lk-look" role="dialog" aria-modal="true" aria-label="Picture" '
        f'data-shown="{escape(json.dumps(dict(look)))}"><img src="{url}" alt="{escape(shown.prompt)}">'
        f'<p>{spoken(shown.label)}: <span class="notranslate">{escape(shown.prompt)}</span></p>'
        f'<div class="lk-buttons">{steps}'
        + button("Use as the card's picture", {"do": "preview", **look}, data={"close": "1"})
        + button("Close", None, data={"close": "1"})
        + "</div></div>"
    )


def _sample(samples: Sequence[Sample], run: str, place: int) -> Shown | None:
    if place >= len(samples):
        return None
    sample = samples[place]
    same = [i for i, other in enumerate(samples) if other.prompt == sample.prompt]
    at = same.index(place)
    before = {"run": run, "sample": same[at - 1]} if at else None
    after = {"run": run, "sample": same[at + 1]} if at + 1 < len(same) else None
    return Shown(sample.path, f"step {sample.step}", sample.prompt, before, after)


def _cell(grid: Grid, run: str, place: int) -> Shown | None:
    cells = grid.cells()
    if place >= len(cells):
        return None
    cell = cells[place]
    shown = sorted(range(len(cells)), key=lambda i: (cells[i].table, cells[i].row, cells[i].column))  # as in the table
    at = shown.index(place)
    before = {"run": run, "grid": grid.name, "cell": shown[at - 1]} if at else None
    after = {"run": run, "grid": grid.name, "cell": shown[at + 1]} if at + 1 < len(shown) else None
    return Shown(grid.picture(cell), grid.title(cell), cell.prompt, before, after)
