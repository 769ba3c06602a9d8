"""Where captions come from, and how often a picture is visited."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lib_lora.errors import BadDataset
from lib_lora.train.captions import clean_name, read_dataset
from lib_lora.train.sections_data import Data


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


def captions(data: Data) -> dict[str, str]:
    return {item.path.name: item.caption for item in read_dataset(data).items}


def test_auto_takes_the_first_source_that_says_something(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "c_cat.png")
    (tmp_path / "a.txt").write_text("﻿a {class} in  the sun\n", encoding="utf-8")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "b.png", "text": "by {trigger}"}) + "\n\n")
    assert captions(Data(folder=str(tmp_path), trigger="sks", class_word="dog")) == {
        "a.png": "a dog in the sun",
        "b.png": "by sks",
        "c_cat.png": "sks dog",
    }
    assert captions(Data(folder=str(tmp_path)))["c_cat.png"] == "c cat"


def test_sources_can_be_chosen(tmp_path: Path) -> None:
    put(tmp_path, "red_ball-01.png")
    (tmp_path / "red_ball-01.txt").write_text("from text")
    folder = str(tmp_path)
    assert captions(Data(folder=folder, captions="filename")) == {"red_ball-01.png": "red ball"}
    assert captions(Data(folder=folder, captions="trigger", trigger="sks", template="a {trigger}!")) == {
        "red_ball-01.png": "a sks!"
    }
    with pytest.raises(BadDataset, match=r"red_ball-01.png.*metadata.jsonl"):
        read_dataset(Data(folder=folder, captions="metadata"))


@pytest.mark.parametrize(
    ("stem", "words"), [("red_ball-01", "red ball"), ("dog (3)", "dog"), ("12 cat", "cat"), ("007", "007")]
)
def test_clean_name(stem: str, words: str) -> None:
    assert clean_name(stem) == words


def test_folders_that_count_their_repeats(tmp_path: Path) -> None:
    put(tmp_path / "3_sks toy", "a.png")
    put(tmp_path / "1_blue_hat", "b.png", "c.png")
    put(tmp_path / "unrelated", "d.png")
    dataset = read_dataset(Data(folder=str(tmp_path)))
    assert [(i.path.name, i.caption, i.repeats) for i in dataset.items] == [
        ("b.png", "blue hat", 1),
        ("c.png", "blue hat", 1),
        ("a.png", "sks toy", 3),
    ]
    assert dataset.visits() == [0, 1, 2, 2, 2]
    assert read_dataset(Data(folder=str(tmp_path / "3_sks toy"))).visits() == [0, 0, 0]


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="data.folder = ''"):
        read_dataset(Data())
    (tmp_path / "broken.png").write_text("no")
    with pytest.raises(BadDataset, match=r"1 unreadable.*broken.png"):
        read_dataset(Data(folder=str(tmp_path)))
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    with pytest.raises(BadDataset, match="line 1"):
        read_dataset(Data(folder=str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"file_name": "a.png", "text": null}', "line 1"),
        (b'{"file_name": ["a.png"], "text": "x"}', "line 1"),
        (b"[" * 100_000, "line 1"),
        (b'{"file_name": "a.png", "text": "caf\xe9"', "line 1"),
    ],
)
def test_broken_metadata_names_file_and_line(tmp_path: Path, content: bytes, told: str) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(content)
    with pytest.raises(BadDataset, match=told):
        read_dataset(Data(folder=str(tmp_path)))


def test_metadata_may_hold_a_line_separator(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    row = json.dumps({"file_name": "a.png", "text": "red\u2028toy"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(row.encode() + b"\r\n")
    assert captions(Data(folder=str(tmp_path))) == {"a.png": "red toy"}


@pytest.mark.parametrize("folder", ["x" * 5000, "~nobody-of-this-name/pictures", ""])
def test_folders_no_system_has(folder: str) -> None:
    with pytest.raises(BadDataset, match="data.folder = "):
        read_dataset(Data(folder=folder))


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(BadDataset, match="data.folder = .*Permission denied"):
        read_dataset(Data(folder=str(tmp_path)))


def test_lines_of_a_caption_file_are_variants(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("a {class}\n\nby {trigger}\n")
    item = read_dataset(Data(folder=str(tmp_path), trigger="sks", class_word="dog")).items[0]
    assert (item.caption, item.variants) == ("a dog", ("by sks",))


def test_guessed_encodings_are_told(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("café".encode("cp1252"))
    dataset = read_dataset(Data(folder=str(tmp_path)))
    assert dataset.items[0].caption == "café"
    assert len(dataset.notes) == 1 and "a.txt" in dataset.notes[0] and "cp1252" in dataset.notes[0]


def test_filewords_in_the_template(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "a_running_dog.png", "plain.png")
    (tmp_path / "a.txt").write_text("a dog on grass")
    data = Data(folder=str(tmp_path), trigger="sks", class_word="dog", template="photo, [filewords]")
    assert captions(data) == {
        "a.png": "photo, sks on grass",
        "a_running_dog.png": "photo, a running sks",
        "plain.png": "sks, photo, plain",
    }


def test_sizes_buckets_and_masks(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1000, 500), "red").save(tmp_path / "a.jpg", exif=exif)
    put(tmp_path, "b.png")
    Image.new("L", (8, 8)).save(tmp_path / "a-masklabel.png")
    data = Data(folder=str(tmp_path), buckets=True, masks="folder", bucket_high=2048)
    dataset = read_dataset(data)
    first, second = dataset.items
    assert (first.size, first.bucket) == ((500, 1000), (320, 704))
    assert (second.size, second.bucket) == ((8, 8), (512, 512))
    assert (first.mask, second.mask) == (tmp_path / "a-masklabel.png", None)
    assert any("'b.png' have no mask" in note for note in dataset.notes)
    assert dataset.bucket_info()["buckets"]["0"] == {"resolution": [320, 704], "count": 1}


def test_masks_that_are_nowhere(tmp_path: Path) -> None:
    put(tmp_path / "pictures", "a.png")
    data = Data(folder=str(tmp_path / "pictures"), masks="folder")
    with pytest.raises(BadDataset, match="no mask of any picture"):
        read_dataset(data)
    with pytest.raises(BadDataset, match="data.mask_folder = .*nowhere"):
        read_dataset(replace(data, mask_folder=str(tmp_path / "nowhere")))
    put(tmp_path / "masks", "a.webp")
    assert (
        read_dataset(replace(data, mask_folder=str(tmp_path / "masks"))).items[0].mask == tmp_path / "masks" / "a.webp"
    )


def test_equal_pictures_and_shared_captions_are_told(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "b.jpg")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "c.png")
    notes = read_dataset(Data(folder=str(tmp_path))).notes
    assert notes == (
        "'a.png', 'b.png' are the same picture; keep one, or count its repeats",
        "'b.jpg', 'b.png' share one caption file; rename one",
    )


def test_broken_items_are_visited_no_more(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.jpg", "c.bmp")
    dataset = read_dataset(Data(folder=str(tmp_path), repeats=2)).without({1: "it is torn"})
    assert dataset.visits() == [0, 0, 2, 2]
    assert [(item.path.name, item.reason) for item in dataset.skipped] == [("b.jpg", "it is torn")]
