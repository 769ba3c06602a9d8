"""Comparisons: pictures of a run's networks x strengths x prompts, kept in the run's folder and as one sheet (.png).

Embeddings have no strengths: theirs are pictures of files x prompts, a row of files for each prompt.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora.errors import BadConfig, BadFile
from lib_lora.files.tensors import atomic_file
from lib_lora.train.drawable import Drawable

FOLDER, FACTS = "compare", "grid.json"
STRENGTHS = (0.6, 0.8, 1.0)
MOST = 400  # pictures of one comparison
TICKED = 6  # networks that are compared unless the user says otherwise
BASE = "base model"
CELL, GAP, LEFT, TOP = 384, 8, 120, 30  # pixels of the sheet


@dataclass(frozen=True)
class Cell:
    """One picture of a comparison; `row`, `column` and `table` are its place, `table` that of the prompt.

    `label` names the network; at strength 0 there is none, and one picture of the base model stands for all of them.
    """

    row: int
    column: int
    table: int
    label: str
    strength: float
    prompt: str


@dataclass(frozen=True)
class Grid:
    """A comparison. `labels` name the networks ("step 200"), in the order of their rows.

    `words`: they are embeddings, which have no strengths; then they are the columns of one row.
    """

    folder: Path
    name: str
    labels: tuple[str, ...]
    strengths: tuple[float, ...]
    prompts: tuple[str, ...]
    seed: int = 1
    steps: int = 20
    cfg: float = 7.0
    negative: str = ""
    words: bool = False

    @classmethod
    def create(cls, run_folder: Path, **facts: Any) -> Grid:
        """A new comparison in the run's folder, numbered on. Raises BadConfig if it has no pictures or too many."""
        count = len(cls(run_folder, "", **facts).cells())
        if not count:
            raise BadConfig("nothing to compare: choose at least one network, a strength and a prompt")
        if count > MOST:
            raise BadConfig(f"that would be {count} pictures, {MOST} are the most; choose fewer")
        home = run_folder / FOLDER
        name = _next_folder(home)
        grid = cls(home / name, name, **facts)
        with atomic_file(grid.folder / FACTS) as out:
            written = {k: v for k, v in dataclasses.asdict(grid).items() if k not in ("folder", "name")}
            out.write(json.dumps(written, ensure_ascii=False, indent=1).encode())
        return grid

    @classmethod
    def open(cls, run_folder: Path, name: str) -> Grid:
        """A comparison made earlier. Raises BadConfig if there is none of that name or its facts cannot be read."""
        folder = run_folder / FOLDER / name
        if not re.fullmatch(r"\d+", name) or not (folder / FACTS).is_file():
            raise BadConfig(f"there is no comparison {name!r} in this run; choose one of the list")
        try:
            facts = json.loads((folder / FACTS).read_bytes())
            return cls(
                folder,
                name,
                labels=tuple(str(label) for label in facts["labels"]),
                strengths=tuple(float(value) for value in facts["strengths"]),
                prompts=tuple(str(prompt) for prompt in facts["prompts"]),
                seed=int(facts["seed"]),
                steps=int(facts["steps"]),
                cfg=float(facts["cfg"]),
                negative=str(facts["negative"]),
                words=bool(facts.get("words", False)),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BadConfig(f"comparison {name!r} cannot be read ({error}); draw it again") from error

    def cells(self) -> list[Cell]:
        """Every picture, in the order of drawing: network by network, so that each is applied once for a strength."""
        strengths = enumerate((1.0,) if self.words else self.strengths)
        places = [(row, column, strength) for column, strength in strengths for row in range(len(self.labels))]
        return [
            Cell(*((0, row) if self.words else (row, column)), table, self._label(row, strength), strength, prompt)
            for row, column, strength in sorted(places)
            if strength or not row
            for table, prompt in enumerate(self.prompts)
        ]

    def rows(self) -> tuple[str, ...]:
        """The headings of the rows; "" where the one row needs none."""
        return ("",) if self.words else self.labels

    def columns(self) -> tuple[str, ...]:
        """The headings of the columns."""
        return self.labels if self.words else tuple(f"strength {strength:g}" for strength in self.strengths)

    def title(self, cell: Cell) -> str:
        """What a picture is called."""
        return cell.label if self.words or not cell.strength else f"{cell.label}, strength {cell.strength:g}"

    def _label(self, row: int, strength: float) -> str:
        return self.labels[row] if strength else BASE

    def picture(self, cell: Cell) -> Path:
        """Where a picture is kept."""
        return self.folder / f"{cell.table:02d}-{cell.row:02d}-{cell.column:02d}.png"

    def add(self, cell: Cell, picture: Any) -> None:
        """Keep a drawn PIL picture."""
        with atomic_file(self.picture(cell)) as out:
            picture.save(out, "png")

    @property
    def sheet(self) -> Path:
        """All pictures with their headings as one; written by `write_sheet`."""
        return self.folder.with_suffix(".png")


def _next_folder(home: Path) -> str:
    """Make the folder of the next number, which nobody else then gets. Raises BadFile if it cannot be made."""
    number = max((int(path.name) for path in home.glob("[0-9]*") if path.name.isdigit()), default=0) + 1
    try:
        home.mkdir(parents=True, exist_ok=True)
        while not _made(home / f"{number:03d}"):
            number += 1
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadFile(
            f"cannot make a folder in {str(home)!r}: {reason}; free some space, or remove that file"
        ) from error
    return f"{number:03d}"


def _made(folder: Path) -> bool:
    """Make a folder; whether it was not there."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def grids(run_folder: Path) -> list[str]:
    """The names of the comparisons in a run's folder, the newest first."""
    found = (path.parent.name for path in (run_folder / FOLDER).glob(f"*/{FACTS}"))
    return sorted((name for name in found if name.isdigit()), key=int, reverse=True)


def prompt_with(prompt: str, name: str, strength: float) -> str:
    """A prompt with the tag of a network; strength 0 says the base model alone."""
    return f"{prompt} <lora:{name}:{strength:g}>".strip() if strength else prompt


def read_strengths(text: str) -> tuple[float, ...]:
    """The numbers in a text like `0.6, 0.8, 1`. Raises BadConfig."""
    found = []
    for piece in filter(None, re.split(r"[\s,;]+", text)):
        try:
            value = float(piece)
        except ValueError:
            value = math.nan
        if not abs(value) <= 10:
            raise BadConfig(f"strength {piece!r} is not accepted; write numbers with commas, e.g. 0.6, 0.8, 1")
        found.append(value)
    return tuple(dict.fromkeys(found))


def read_prompts(text: str) -> tuple[str, ...]:
    """The prompts in a text, one a line."""
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def write_sheet(grid: Grid) -> Path:
    """All pictures there are as one, a table for each prompt: a row for each network, a column for each strength."""
    from PIL import Image

    there = {cell: path for cell in grid.cells() if (path := grid.picture(cell)).is_file()}
    side = max((_size(path) for path in there.values()), default=(64, 64))
    side = (min(side[0], CELL), min(side[1], CELL))
    font = _font()
    width = LEFT + len(grid.columns()) * (side[0] + GAP)
    height = 2 * TOP + len(grid.rows()) * (side[1] + GAP)
    sheet = Image.new("RGB", (width, height * len(grid.prompts)), "white")
    for text, place in _headings(grid, side, height):
        _write(sheet, text, place, font)
    for cell, path in there.items():
        with Image.open(path) as full:
            small = full.convert("RGB")
        small.thumbnail(side)
        x, y = LEFT + cell.column * (side[0] + GAP), cell.table * height + 2 * TOP + cell.row * (side[1] + GAP)
        sheet.paste(small, (x, y))
    with atomic_file(grid.sheet) as out:
        sheet.save(out, "png")
    return grid.sheet


def _headings(grid: Grid, side: tuple[int, int], height: int) -> Iterator[tuple[str, tuple[int, int]]]:
    for table, prompt in enumerate(grid.prompts):
        top = table * height
        yield prompt, (GAP, top + GAP)
        for column, heading in enumerate(grid.columns()):
            yield heading, (LEFT + column * (side[0] + GAP), top + TOP + GAP)
        for row, label in enumerate(grid.rows()):
            yield label, (GAP, top + 2 * TOP + row * (side[1] + GAP) + side[1] // 2)


def _write(sheet: Any, text: str, place: tuple[int, int], font: Any) -> None:
    from PIL import ImageDraw

    try:
        ImageDraw.Draw(sheet).text(place, text, fill="black", font=font)
    except UnicodeEncodeError:  # Pillow's own font before 10.1 knows Latin letters only
        ImageDraw.Draw(sheet).text(place, text.encode("latin-1", "replace").decode("latin-1"), fill="black", font=font)


def _font() -> Any:
    from PIL import ImageFont

    for name in ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "arial.ttf", "Arial.ttf"):
        try:
            return ImageFont.truetype(name, 14)
        except OSError:
            continue
    return ImageFont.load_default()


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as picture:
        return int(picture.width), int(picture.height)


def ticked(labels: Sequence[str]) -> list[str]:
    """At most `TICKED` labels spread over all of them, the first and the last always among them."""
    count = min(len(labels), TICKED)
    return [labels[round(at * (len(labels) - 1) / max(count - 1, 1))] for at in range(count)]


def files_of(labels: Mapping[str, Drawable], chosen: Sequence[str]) -> dict[str, Drawable]:
    """The chosen ones of the networks there are, by label, in their order. Raises BadConfig for an unknown one."""
    unknown = [label for label in chosen if label not in labels]
    if unknown:
        raise BadConfig(f"{unknown[0]!r} is no network of this run any more; load the page again")
    return {label: path for label, path in labels.items() if label in chosen}
