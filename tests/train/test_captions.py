"""Where captions come from, and how often a picture is visited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lib_lora.errors import BadDataset
from lib_lora.train.captions import clean_name, read_dataset
from lib_lora.train.config import Data


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


def captions(data: Data) -> dict[str, str]:
    return {item.path.name: item.caption for item in read_dataset(data).items}


def test_auto_takes_the_first_source_that_says_something(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "c_cat.png")
    (tmp_path / "a.txt").write_text("﻿a {class} in\nthe sun", encoding="utf-8")
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
