"""Several concepts in one run: what each leaves empty is filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora.errors import BadDataset
from lib_lora.train.captions import read_dataset
from lib_lora.train.concepts import slug, subjects_of
from lib_lora.train.config import JobConfig, make_job


def put(folder: Path, *names: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (64, 96), "red").save(folder / name)
    return str(folder)


def job(concepts: list[dict[str, Any]], **values: Any) -> JobConfig:
    return make_job({"concept": concepts, **{key.replace("__", "."): value for key, value in values.items()}})


def test_without_concepts_data_is_the_one() -> None:
    subjects = subjects_of(job([], data__folder="x", data__class_word="dog", prior__folder="classes"))
    assert [(s.data.folder, s.class_prompt, s.class_folder) for s in subjects] == [("x", "dog", "classes")]


def test_concepts_are_read_each_with_its_own_words(tmp_path: Path) -> None:
    dog, cat = put(tmp_path / "dog", "a.png"), put(tmp_path / "cat", "b.png", "c.png")
    both = job(
        [
            {"folder": dog, "trigger": "sks", "class_word": "dog", "repeats": 3},
            {"folder": cat, "trigger": "zwx", "template": "{trigger} the {class}"},
        ],
        data__class_word="cat", data__repeats=2, data__prepend_trigger=True,
    )  # fmt: skip
    items = read_dataset(both).items
    assert [(i.path.name, i.caption, i.repeats, i.concept, i.trigger) for i in items] == [
        ("a.png", "sks dog", 6, 0, "sks"),
        ("b.png", "zwx the cat", 2, 1, "zwx"),
        ("c.png", "zwx the cat", 2, 1, "zwx"),
    ]


def test_a_concept_without_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="empty"):
        read_dataset(job([{"folder": put(tmp_path / "dog", "a.png")}, {"folder": put(tmp_path / "empty")}]))


def test_classes_have_folders_of_their_own(tmp_path: Path) -> None:
    concepts = [{"class_word": "dog"}, {"class_word": "cat"}, {"class_word": "Dog", "class_folder": "mine"}]
    assert [s.class_folder for s in subjects_of(job(concepts, prior__folder="all"))] == ["all/dog", "all/cat", "mine"]
    assert [s.class_folder for s in subjects_of(job(concepts[:1] * 2, prior__folder="all"))] == ["all", "all"]


def test_class_pictures_become_items(tmp_path: Path) -> None:
    folder, classes = put(tmp_path / "dog", "a.png"), put(tmp_path / "classes", "x.png", "y.png")
    (tmp_path / "classes" / "y.txt").write_text("a dog, running")
    values = {"data__folder": folder, "data__class_word": "dog", "data__buckets": True, "prior__folder": classes}
    dataset = read_dataset(job([], prior__weight=1.0, **values))
    assert [(i.caption, i.prior, i.bucket) for i in dataset.items] == [
        ("dog", False, (384, 640)),
        ("dog", True, (512, 512)),
        ("a dog, running", True, (512, 512)),
    ]
    assert (dataset.visits(), dataset.class_items()) == ([0], [1, 2])
    assert len(read_dataset(job([], **values)).items) == 1
    with pytest.raises(BadDataset, match="no class picture"):
        read_dataset(job([], prior__weight=1.0, **{**values, "prior__folder": str(tmp_path / "none")}))


@pytest.mark.parametrize(("text", "name"), [("a photo of a Dog!", "a-photo-of-a-dog"), ("", "any"), ("../x", "x")])
def test_slugs(text: str, name: str) -> None:
    assert slug(text) == name
    assert len(slug(text * 99)) <= 60
