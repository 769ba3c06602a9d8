"""A folder at a glance: what each picture has wrong, which ones are alike, what to do about the whole set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance, ImageFilter

from lib_lora.errors import BadDataset
from lib_lora.train.looking import Looker
from lib_lora.train.survey import ADVICE, PROBLEMS, Survey, survey
from tests.train.drawn import put, scene


def of(folder: Path, resolution: int = 200) -> Survey:
    return survey(folder, resolution, Looker())


def problems(found: Survey) -> dict[str, tuple[str, ...]]:
    return {picture.path.name: picture.problems for picture in found.pictures}


def test_a_good_folder_has_nothing_wrong(tmp_path: Path) -> None:
    for n in range(6):
        put(tmp_path, f"{n}.png", n)
    found = of(tmp_path)
    assert set(problems(found).values()) == {()}
    assert (found.visits, found.unseen, found.groups, found.advice, found.notes) == (6, 0, (), (), ())
    assert [picture.header.size for picture in found.pictures] == [(256, 256)] * 6


def test_every_problem_is_found(tmp_path: Path) -> None:
    put(tmp_path, "small.png", 1, size=(120, 120))
    put(tmp_path, "long.png", 2, size=(620, 210))
    put(tmp_path, "shared.png", 3)
    put(tmp_path, "shared.jpg", 4)
    scene(5).filter(ImageFilter.GaussianBlur(9)).save(tmp_path / "blurred.png")
    scene(6).save(tmp_path / "animated.gif", save_all=True, append_images=[scene(7)])
    clear = scene(8).convert("RGBA")
    clear.putalpha(Image.radial_gradient("L").resize(clear.size))
    clear.save(tmp_path / "transparent.png")
    (tmp_path / "corrupt.jpg").write_bytes(b"\xff\xd8 nothing more")
    put(tmp_path, "twin-a.png", 9)
    put(tmp_path, "twin-b.jpg", 9, quality=60)
    found = of(tmp_path)
    told = problems(found)
    for name, expected in told.items():
        assert expected == (name.partition(".")[0].partition("-")[0],), name
    assert {problem for each in told.values() for problem in each} == set(PROBLEMS)
    assert found.count("shared") == 2 and found.visits == 9


def test_damage_in_the_middle_is_found_when_decoded(tmp_path: Path) -> None:
    path = put(tmp_path, "a.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path.write_bytes(bytes(data))
    early = survey(tmp_path, 200, Looker(), seconds=-1)
    assert early.unseen == 1 and problems(early) == {"a.png": ()}
    assert problems(of(tmp_path)) == {"a.png": ("corrupt",)}


def test_small_is_told_against_the_resolution(tmp_path: Path) -> None:
    put(tmp_path, "a.png", size=(360, 280))
    assert problems(of(tmp_path, 200))["a.png"] == () and problems(of(tmp_path, 400))["a.png"] == ("small",)
    assert problems(of(tmp_path, 307))["a.png"] == ()  # enlarged by a tenth


def test_changed_copies_are_one_group_and_others_are_not(tmp_path: Path) -> None:
    picture = scene(0)
    copies = {
        "small.png": picture.resize((85, 85)),
        "bright.png": ImageEnhance.Brightness(picture).enhance(1.3),
        "dark.png": ImageEnhance.Brightness(picture).enhance(0.6),
        "grey.png": picture.convert("L"),
        "original.png": picture,
    }
    for name, copy in copies.items():
        copy.save(tmp_path / name)
    picture.save(tmp_path / "jpeg.jpg", quality=20)
    for n in range(1, 13):
        put(tmp_path, f"other-{n}.png", n)
    [group] = of(tmp_path).groups
    assert sorted(path.name for path in group) == sorted([*copies, "jpeg.jpg"])


def test_pictures_of_one_colour_are_alike_only_in_the_same_shade(tmp_path: Path) -> None:
    for name, grey in (("a", 20), ("b", 21), ("c", 200)):
        Image.new("L", (240, 240), grey).save(tmp_path / f"{name}.png")
    [group] = of(tmp_path).groups
    assert [path.name for path in group] == ["a.png", "b.png"]


def test_captions_and_where_they_stand(tmp_path: Path) -> None:
    for n in range(4):
        put(tmp_path, f"{n}.png", n)
    (tmp_path / "0.txt").write_text("a dog\nthe dog")
    (tmp_path / "1.caption").write_text("a cat")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "2.png", "text": "a table"}))
    found = of(tmp_path)
    assert [(picture.caption, picture.kept_in) for picture in found.pictures] == [
        ("a dog\nthe dog", "txt"),
        ("a cat", "txt"),
        ("a table", "table"),
        ("", ""),
    ]
    assert "captions" in found.advice


def test_a_broken_table_is_noted_and_the_rest_is_told(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("a dog")
    (tmp_path / "metadata.jsonl").write_text("{")
    found = of(tmp_path)
    assert found.pictures[0].caption == "a dog" and "metadata.jsonl" in found.notes[0]


def test_folders_with_repeats_are_counted(tmp_path: Path) -> None:
    for n in range(3):
        put(tmp_path / "10_sks dog", f"{n}.png", n)
        put(tmp_path / "2_dog", f"{n}.png", 10 + n)
    put(tmp_path, "loose.png", 99)
    found = of(tmp_path)
    parts = {part.path.name: (part.repeats, part.words, part.pictures) for part in found.parts}
    assert parts == {"10_sks dog": (10, "sks dog", 3), "2_dog": (2, "dog", 3), tmp_path.name: (1, "", 1)}
    assert found.visits == 37 and len(found.pictures) == 7


def test_advice_for_the_whole_set(tmp_path: Path) -> None:
    put(tmp_path / "few", "a.png")
    assert of(tmp_path / "few").advice == ("few",)
    for n in range(6):
        put(tmp_path / "mixed", f"{n}.png", n, size=(256, 256) if n % 2 else (256, 400))
        put(tmp_path / "small", f"{n}.png", n, size=(80, 80))
        put(tmp_path / "nested" / "rex", f"{n}.png", n)
    assert of(tmp_path / "mixed").advice == ("mixed",)
    assert of(tmp_path / "small").advice == ("small",)
    assert of(tmp_path / "nested").advice == ("nested",)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.png").write_bytes(b"")
    assert of(tmp_path / "empty").advice == ("none",) and of(tmp_path / "empty").visits == 0
    seen = {"few", "mixed", "small", "nested", "none", "captions"}
    assert seen == set(ADVICE)


def test_a_sub_folder_that_cannot_be_read_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    real = Path.iterdir

    def refuse(path: Path):  # type: ignore[no-untyped-def]
        if path.name == "closed":
            raise PermissionError("not yours")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert of(tmp_path).advice == ("none",)


def test_no_such_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="nowhere"):
        of(tmp_path / "nowhere")


def test_what_is_known_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        put(tmp_path, f"{n}.png", n)
    looker = Looker()
    first = survey(tmp_path, 200, looker)
    monkeypatch.setattr(Image.Image, "load", lambda *args: pytest.fail("decoded again"))
    assert survey(tmp_path, 200, looker, seconds=-1) == first
