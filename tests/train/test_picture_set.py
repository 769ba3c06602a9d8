"""Uploads are pictures under names of our own; what is removed can be brought back; nothing is overwritten."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lib_lora.errors import BadDataset
from lib_lora.train import picture_set
from lib_lora.train.images import list_pictures
from lib_lora.train.picture_set import new_folder, put_back, remove, removed_count, safe_stem, save_uploads
from tests.train.drawn import put


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_uploads_get_safe_names_and_the_ending_of_their_format(tmp_path: Path) -> None:
    jpeg = put(tmp_path / "up", "x1", 1, format="JPEG")
    png = put(tmp_path / "up", "x2", 2, format="PNG")
    given = [(jpeg, "../../etc/My dog (1).PNG"), (png, "C:\\a\\b\\猫 1.jpeg"), (png, ".."), (png, "con.png")]
    saved = save_uploads(given, tmp_path / "set")
    assert names(tmp_path / "set") == ["My-dog-1.jpg", "picture-con.png", "picture.png", "猫-1.png"]
    assert saved.refused == [] and sorted(saved.files) == list_pictures(tmp_path / "set")
    assert (tmp_path / "set" / "My-dog-1.jpg").read_bytes() == jpeg.read_bytes()


def test_nothing_is_overwritten_whatever_the_ending_or_case(tmp_path: Path) -> None:
    old = put(tmp_path / "set", "rex.jpg", 1)
    before = old.read_bytes()
    new = put(tmp_path, "up", 2, format="PNG")
    saved = save_uploads([(new, "rex.jpg"), (new, "REX.png")], tmp_path / "set")
    assert [path.name for path in saved.files] == ["rex-2.png", "REX-3.png"]
    assert old.read_bytes() == before


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<svg onload=alert(1)>")
    cut = put(tmp_path, "cut.png")
    cut.write_bytes(cut.read_bytes()[:3000])
    eps = tmp_path / "a.eps"
    Image.new("RGB", (8, 8)).save(eps)
    files = [(tmp_path / "page.png", "page.png"), (cut, "cut.png"), (eps, "a.png")]
    saved = save_uploads(files, tmp_path / "set")
    assert saved.files == [] and names(tmp_path / "set") == []
    assert [name for name, _ in saved.refused] == ["page.png", "cut.png", "a.png"]
    assert {reason for _, reason in saved.refused} == {"not a picture, or broken"}


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("MAX_BYTES", 10, "larger than"),
        ("MAX_IN_SET", 0, "files already"),
        ("MAX_TOTAL", 10, "would be larger"),
        ("MAX_FILES", 0, "at once"),
        ("MAX_PIXELS", 100, "pixels"),
        ("SPARE", 1 << 60, "disk"),
    ],
)
def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, reason: str) -> None:
    path = put(tmp_path, "a.png", size=(64, 64))
    assert len(save_uploads([(path, "a.png")], tmp_path / "before").files) == 1
    monkeypatch.setattr(picture_set, limit, value)
    saved = save_uploads([(path, "a.png")], tmp_path / "set")
    assert saved.files == [] and reason in saved.refused[0][1]


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "a.png", size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert save_uploads([(path, "a.png")], tmp_path / "set").files == []


@given(st.text(max_size=120))
def test_any_name_becomes_a_safe_one(name: str) -> None:
    stem = safe_stem(name)
    assert stem and len(stem) <= 100
    assert not set(stem) & set('/\\:*?"<>|. \0\n') and not stem.startswith(("-", "."))
    assert Path(stem).name == stem and not stem.endswith("-masklabel")


def test_a_new_folder_is_named_by_the_day_and_nobody_elses(tmp_path: Path) -> None:
    day = date(2026, 11, 21)
    assert new_folder(tmp_path / "sets", day) == tmp_path / "sets" / "2026-11-21"
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: new_folder(tmp_path / "sets", day), range(40)))
    assert sorted(path.name for path in made) == sorted(f"2026-11-21-{number}" for number in range(2, 42))
    assert all(path.is_dir() for path in made)


def test_folders_of_uploads_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_set, "MAX_SETS", 3)
    for _ in range(3):
        new_folder(tmp_path, date(2026, 11, 21))
    with pytest.raises(BadDataset, match="there are 3 folders of pictures .* delete some"):
        new_folder(tmp_path, date(2026, 11, 22))
    (tmp_path / "2026-11-21-2").rmdir()
    assert new_folder(tmp_path, date(2026, 11, 21)) == tmp_path / "2026-11-21-2"


def test_uploads_at_the_same_time_take_no_name_twice(tmp_path: Path) -> None:
    files = [put(tmp_path / "up", f"{n}", n, format=kind) for n, kind in enumerate(["PNG", "JPEG"] * 4)]

    def upload(path: Path) -> list[Path]:
        return save_uploads([(path, name) for name in ("rex.png", "Rex.png", "max.png")], tmp_path / "set").files

    with ThreadPoolExecutor(8) as threads:
        made = [path for found in threads.map(upload, files) for path in found]
    assert len({path.stem.lower() for path in made}) == len(made) == 24
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == sorted(path.name for path in made)
    sizes = sorted(path.stat().st_size for path in made)
    assert sizes == sorted([path.stat().st_size for path in files] * 3)


def test_captions_come_with_their_pictures(tmp_path: Path) -> None:
    png, jpeg = put(tmp_path / "up", "1", 1, format="PNG"), put(tmp_path / "up", "2", 2, format="JPEG")
    text = tmp_path / "up" / "t"
    text.write_bytes(b"\xef\xbb\xbfa dog, \xe7\x8a\xac\n")
    put(tmp_path / "set", "my-dog.png", 3)
    (tmp_path / "set" / "my-dog.txt").write_text("the old one")
    given = [(text, "my dog.txt"), (png, "my dog.png"), (jpeg, "a/cat.jpeg"), (text, "cat.TXT"), (text, "cow.txt")]
    saved = save_uploads(given, tmp_path / "set")
    assert names(tmp_path / "set") == ["cat.jpg", "cat.txt", "my-dog-2.png", "my-dog-2.txt", "my-dog.png", "my-dog.txt"]
    assert (tmp_path / "set" / "my-dog-2.txt").read_text(encoding="utf-8") == "a dog, 犬\n"
    assert (tmp_path / "set" / "my-dog.txt").read_text() == "the old one"
    assert (len(saved.files), saved.captions) == (2, 2)
    assert saved.refused == [("cow.txt", "no picture of this name")]
    late = save_uploads([(text, "my-dog.txt"), (text, "cat.txt")], tmp_path / "set")
    assert [reason for _, reason in late.refused] == ["its picture has a caption already"] * 2
    (tmp_path / "set" / "cat.txt").unlink()
    assert save_uploads([(text, "cat.txt")], tmp_path / "set").captions == 1


def test_a_caption_goes_with_the_picture_that_came_with_it(tmp_path: Path) -> None:
    """Not with one of before, nor with one whose name is only made safe as the same."""
    put(tmp_path / "set", "1.png", 1)
    given = []
    for name in ("1", "a b", "a-b"):
        text = tmp_path / f"of {name}"
        text.write_text(f"of {name}")
        given += [(put(tmp_path / "up", name, len(given), format="PNG"), f"{name}.png"), (text, f"{name}.txt")]
    saved = save_uploads(given, tmp_path / "set")
    found = {path.name: path.read_text() for path in (tmp_path / "set").glob("*.txt")}
    assert found == {"1-2.txt": "of 1", "a-b.txt": "of a b", "a-b-2.txt": "of a-b"}
    assert (saved.captions, saved.refused) == (3, [])


def test_captions_beyond_the_most_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_set, "MAX_FILES", 1)
    text, pictures = tmp_path / "t", [put(tmp_path / "set", f"{name}.png", 1) for name in "ab"]
    text.write_text("a dog")
    saved = save_uploads([(text, f"{path.stem}.txt") for path in pictures], tmp_path / "set")
    assert saved.captions == 1 and [name for name, _ in saved.refused] == ["b.txt"]
    assert "at once" in saved.refused[0][1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"x" * 70000, "64 KiB"), (b"caf\xe9", "UTF-8"), (b"\x89PNG\0", "UTF-8"), (b"a\0b", "not a text")],
)
def test_what_is_no_caption_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    text, picture = tmp_path / "t", put(tmp_path / "up", "a", 1, format="PNG")
    text.write_bytes(content)
    saved = save_uploads([(picture, "a.png"), (text, "a.txt")], tmp_path / "set")
    assert names(tmp_path / "set") == ["a.png"] and saved.captions == 0
    assert [name for name, _ in saved.refused] == ["a.txt"] and reason in saved.refused[0][1]


def test_removing_takes_captions_and_mask_along_and_all_comes_back(tmp_path: Path) -> None:
    path = put(tmp_path, "a [1].png", 1)
    put(tmp_path, "b.png", 2)
    (tmp_path / "a [1].txt").write_text("a dog")
    (tmp_path / "a [1].caption").write_text("the dog")
    put(tmp_path, "a [1]-masklabel.png", 3)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    remove(path)
    assert names(tmp_path) == ["b.png"] and removed_count(tmp_path) == 1
    assert put_back(tmp_path) == "a [1].png"
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert removed_count(tmp_path) == 0 and put_back(tmp_path) == ""


def test_a_shared_caption_stays_with_the_picture_that_stays(tmp_path: Path) -> None:
    path = put(tmp_path, "a.png", 1)
    put(tmp_path, "a.jpg", 2)
    (tmp_path / "a.txt").write_text("a dog")
    remove(path)
    assert names(tmp_path) == ["a.jpg", "a.txt"]


def test_several_come_back_the_last_one_first(tmp_path: Path) -> None:
    for n in range(3):
        remove(put(tmp_path, f"{n}.png", n))
    assert removed_count(tmp_path) == 3
    assert [put_back(tmp_path) for _ in range(3)] == ["2.png", "1.png", "0.png"]


def test_removing_a_second_picture_of_the_same_name_loses_neither(tmp_path: Path) -> None:
    first = put(tmp_path, "a.png", 1).read_bytes()
    remove(tmp_path / "a.png")
    second = put(tmp_path, "a.png", 2).read_bytes()
    remove(tmp_path / "a.png")
    put_back(tmp_path)
    assert (tmp_path / "a.png").read_bytes() == second
    with pytest.raises(BadDataset, match="a.png.*again"):
        put_back(tmp_path)
    os.rename(tmp_path / "a.png", tmp_path / "b.png")
    put_back(tmp_path)
    assert (tmp_path / "a.png").read_bytes() == first


def test_a_picture_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="gone.png"):
        remove(tmp_path / "gone.png")


def test_a_forged_or_broken_journal_moves_nothing_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    remove(put(folder, "a.png"))
    journal = folder / ".removed" / "journal.json"
    (tmp_path / "outside.txt").write_text("mine")
    for text in ("{", "[1]", json.dumps([{"picture": "x", "moved": {"x": "../../outside.txt"}}])):
        journal.write_text(text)
        assert put_back(folder) == "" and removed_count(folder) == 0
    assert (tmp_path / "outside.txt").read_text() == "mine"
    assert names(folder) == []


def test_removed_pictures_are_not_of_the_set(tmp_path: Path) -> None:
    put(tmp_path, "a.png", 1)
    remove(put(tmp_path, "b.png", 2))
    assert [path.name for path in list_pictures(tmp_path)] == ["a.png"]
