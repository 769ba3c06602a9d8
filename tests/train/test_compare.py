"""Comparisons: their numbers, pictures, sheet, and what is read back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora.errors import BadConfig, BadFile
from lib_lora.prompt import extract
from lib_lora.train.compare import (
    Grid,
    files_of,
    grids,
    prompt_with,
    read_prompts,
    read_strengths,
    ticked,
    write_sheet,
)
from lib_lora.train.drawable import Drawable

PROMPTS = ("dog", "犬 in snow")
FACTS: dict[str, Any] = {"labels": ("step 100", "final"), "strengths": (0.5, 1.0, 1.2), "prompts": PROMPTS}


def test_grid_is_numbered_on_and_read_back(tmp_path: Path) -> None:
    first = Grid.create(tmp_path, **FACTS, seed=7, steps=12, cfg=5.5, negative="blurry")
    second = Grid.create(tmp_path, **FACTS)
    assert (first.name, second.name) == ("001", "002")
    assert grids(tmp_path) == ["002", "001"]
    assert Grid.open(tmp_path, "001") == first
    assert [(c.row, c.column, c.table) for c in first.cells()][:3] == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert len({first.picture(cell) for cell in first.cells()}) == 12


def test_those_made_at_one_moment_have_numbers_of_their_own(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def create(_: int) -> str:
        together.wait(20)
        return Grid.create(tmp_path, **FACTS).name

    with ThreadPoolExecutor(8) as pool:
        names = sorted(pool.map(create, range(8)))
    assert names == [f"{number:03d}" for number in range(1, 9)]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "compare").write_text("")
    with pytest.raises(BadFile, match="cannot make a folder in .*compare"):
        Grid.create(tmp_path / "file", **FACTS)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(BadFile, match="No space left"):
        Grid.create(tmp_path, **FACTS)


@pytest.mark.parametrize("name", ["", "..", "../001", "001/..", "7", "x"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    Grid.create(tmp_path, **FACTS)
    with pytest.raises(BadConfig, match="no comparison"):
        Grid.open(tmp_path, name)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"labels": 5}'])
def test_facts_that_cannot_be_read_are_told(tmp_path: Path, content: str) -> None:
    grid = Grid.create(tmp_path, **FACTS)
    (grid.folder / "grid.json").write_text(content)
    with pytest.raises(BadConfig, match="cannot be read"):
        Grid.open(tmp_path, "001")


def test_too_few_and_too_many_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="nothing to compare"):
        Grid.create(tmp_path, **{**FACTS, "labels": ()})
    with pytest.raises(BadConfig, match="600 pictures"):
        Grid.create(tmp_path, **{**FACTS, "strengths": tuple(i / 10 for i in range(1, 151))})
    assert grids(tmp_path) == []


def test_sheet_has_every_picture_in_its_place(tmp_path: Path) -> None:
    grid = Grid.create(tmp_path, **FACTS)
    colours = {}
    for number, cell in enumerate(grid.cells()[:-1]):  # stopped before the last one
        colours[cell] = (number * 20, 255 - number * 20, 60)
        grid.add(cell, Image.new("RGB", (96, 64), colours[cell]))
    path = write_sheet(grid)
    assert path == tmp_path / "compare" / "001.png"
    with Image.open(path) as sheet:
        found = sheet.convert("RGB")
    seen = [found.getpixel((x, y)) for y in range(0, found.height, 4) for x in range(0, found.width, 4)]
    for cell, colour in colours.items():
        assert seen.count(colour) > 200, cell
    middle = {cell: [i for i, colour in enumerate(seen) if colour == colours[cell]] for cell in colours}
    across = len(range(0, found.width, 4))
    for cell, other in ((grid.cells()[0], grid.cells()[2]), (grid.cells()[2], grid.cells()[4])):  # next strength: right
        assert middle[cell][0] % across < middle[other][0] % across
    assert middle[grid.cells()[0]][0] // across < middle[grid.cells()[6]][0] // across  # next network: below


def test_strengths_and_prompts_are_read() -> None:
    assert read_strengths(" 0.6, 0.8;1  1 -0.5") == (0.6, 0.8, 1.0, -0.5)
    assert read_strengths("") == ()
    for wrong in ("much", "1e9", "nan", "0.5,inf"):
        with pytest.raises(BadConfig, match="is not accepted"):
            read_strengths(wrong)
    assert read_prompts(" a dog \n\n a cat\na dog") == ("a dog", "a cat")


def test_prompt_has_a_tag_that_reads_back() -> None:
    text, (request,) = extract(prompt_with("a dog", "lorakit-0", 0.85))
    assert text.strip() == "a dog" and request.name == "lorakit-0" and request.te == 0.85
    assert prompt_with("a dog", "lorakit-0", 0) == "a dog"


def test_files_are_the_chosen_ones_in_order() -> None:
    labels = {label: Drawable(Path(label)) for label in ("step 100", "step 200", "final")}
    assert list(files_of(labels, ["final", "step 100"])) == ["step 100", "final"]
    with pytest.raises(BadConfig, match="'step 300'"):
        files_of(labels, ["step 300"])


def test_strength_0_is_one_picture_for_all_networks(tmp_path: Path) -> None:
    grid = Grid.create(tmp_path, **{**FACTS, "strengths": (0.0, 1.0)})
    base = [cell for cell in grid.cells() if not cell.strength]
    assert [(cell.prompt, cell.row, cell.label) for cell in base] == [(p, 0, "base model") for p in PROMPTS]
    assert [grid.title(cell) for cell in base] == ["base model"] * 2
    assert len(grid.cells()) == 2 + 4
    only = Grid.create(tmp_path, **{**FACTS, "strengths": (0.0,)})
    assert len(only.cells()) == 2


def test_embeddings_stand_beside_each_other_without_strengths(tmp_path: Path) -> None:
    grid = Grid.create(tmp_path, **{**FACTS, "strengths": ()}, words=True)
    assert Grid.open(tmp_path, "001") == grid
    assert grid.columns() == ("step 100", "final") and grid.rows() == ("",)
    assert [(c.row, c.column, c.table, c.label, c.strength) for c in grid.cells()] == [
        (0, 0, 0, "step 100", 1.0), (0, 0, 1, "step 100", 1.0), (0, 1, 0, "final", 1.0), (0, 1, 1, "final", 1.0),
    ]  # fmt: skip
    assert [grid.title(cell) for cell in grid.cells()] == ["step 100", "step 100", "final", "final"]
    for cell in grid.cells():
        grid.add(cell, Image.new("RGB", (64, 64), "red"))
    with Image.open(write_sheet(grid)) as sheet:
        assert sheet.width < 3 * 200 and sheet.height < 2 * 200  # one row of two for each of two prompts


@pytest.mark.parametrize(
    ("count", "places"),
    [(0, []), (1, [0]), (2, [0, 1]), (6, [0, 1, 2, 3, 4, 5]), (11, [0, 2, 4, 6, 8, 10]), (40, [0, 8, 16, 23, 31, 39])],
)
def test_ticked_are_spread_over_all(count: int, places: list[int]) -> None:
    labels = [f"step {at}" for at in range(count)]
    assert ticked(labels) == [labels[place] for place in places]
