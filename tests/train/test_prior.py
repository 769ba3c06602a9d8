"""Class pictures: only what lacks is drawn, each number always the same, and never over what is there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_lora.errors import BadConfig, Cancelled
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.sample import SampleRequest
from lib_lora.train.captions import read_dataset
from lib_lora.train.config import JobConfig, make_job
from lib_lora.train.prior import make_class_images
from lib_lora.train.watch import Watch


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    for name, caption in (("a", "sks dog on grass"), ("b", "sks, running")):
        Image.new("RGB", (64, 64), "red").save(place / f"{name}.png")
        (place / f"{name}.txt").write_text(caption)
    return place


@pytest.fixture
def job(pictures: Path, tmp_path: Path) -> Any:
    def make(concept: Sequence[dict[str, Any]] = (), **values: Any) -> JobConfig:
        chosen = {
            "data.folder": str(pictures), "data.trigger": "sks", "data.class_word": "dog", "data.resolution": 64,
            "prior.weight": 1.0, "prior.images": 5, "prior.draw_batch": 2, "prior.draw_steps": 1,
            "output.folder": str(tmp_path / "runs"), "concept": list(concept),
        }  # fmt: skip
        return make_job({**chosen, **{key.replace("__", "."): value for key, value in values.items()}})

    return make


class Painter:
    """Stands in for the sampler; keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[SampleRequest] = []

    def __call__(self, model: object, request: SampleRequest, cancelled: Any = None) -> list[Image.Image]:
        self.asked.append(request)
        return [
            Image.new("RGB", (request.width, request.height), ((request.seed + place) % 256, 0, 0))
            for place in range(request.batch)
        ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_lacks_is_drawn_by_the_model_itself(job: Any, tiny_model: DiffusersModel, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    made = make_class_images(
        job(prior__images=3), tiny_model, Watch(progress=lambda done, total: told.append((done, total)))
    )
    folder = Path(made.prior.folder)
    assert folder.parent == tmp_path / "runs" / "class-images" and folder.name.startswith("dog-")
    assert sorted(path.name for path in folder.glob("*.png")) == [f"class-{n:05d}.png" for n in range(3)]
    assert {path.read_text() for path in folder.glob("*.txt")} == {"dog"}
    assert len({path.read_bytes() for path in folder.glob("*.png")}) == 3
    assert told == [(2, 3), (3, 3)]
    dataset = read_dataset(made)
    assert len(dataset.class_items()) == 3 and dataset.visits() == [0, 1]
    before = contents(folder)
    again = Painter()
    assert make_class_images(job(prior__images=3), tiny_model, draw=again) == made
    assert again.asked == [] and contents(folder) == before
    for path in folder.glob("class-0000[02].*"):
        path.unlink()
    make_class_images(job(prior__images=3), tiny_model)
    assert contents(folder).keys() == before.keys()
    for path in folder.glob("*.png"):  # drawn one by one now, and still the same
        earlier = np.asarray(Image.open(io.BytesIO(before[path.name])), dtype=int)
        assert np.abs(np.asarray(Image.open(path), dtype=int) - earlier).max() <= 2


def test_nothing_is_written_over(job: Any, tiny_model: DiffusersModel, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    Image.new("RGB", (64, 64), "blue").save(own / "mine.jpg")
    Image.new("RGB", (64, 64), "blue").save(own / "class-00001.png")
    (own / "class-00002.png").write_text("torn")
    before = contents(own)
    painter = Painter()
    make_class_images(job(prior__folder=str(own)), tiny_model, draw=painter)
    after = contents(own)
    assert before.items() <= after.items()
    assert sorted(name for name in after if name.endswith(".png")) == [f"class-{n:05d}.png" for n in (0, 1, 2, 3, 4)]
    assert [request.batch for request in painter.asked] == [1, 2]
    base = painter.asked[0].seed
    assert [request.seed - base for request in painter.asked] == [0, 3]
    painter.asked.clear()
    make_class_images(job(prior__folder=str(own)), tiny_model, draw=painter)
    assert painter.asked == []


def test_settings_reach_the_sampler(job: Any, tiny_model: DiffusersModel) -> None:
    painter = Painter()
    make_class_images(
        job(prior__prompt="a {class}", prior__negative="blurry", prior__draw_cfg=3.0, prior__draw_steps=7),
        tiny_model,
        draw=painter,
    )
    request = painter.asked[0]
    assert (request.prompts, request.negative, request.cfg, request.steps) == (["a dog"] * 2, "blurry", 3.0, 7)
    assert (request.width, request.height) == (64, 64)


def test_a_stopped_drawing_goes_on(job: Any, tiny_model: DiffusersModel) -> None:
    whole = contents(Path(make_class_images(job(), tiny_model, draw=Painter()).prior.folder))
    painter = Painter()
    with pytest.raises(Cancelled):
        make_class_images(
            job(prior__draw_seed=1), tiny_model, Watch(cancelled=lambda: len(painter.asked) == 1), draw=painter
        )
    made = make_class_images(job(prior__draw_seed=1), tiny_model, draw=painter)
    assert [request.batch for request in painter.asked] == [2, 2, 1]
    stopped = contents(Path(made.prior.folder))
    assert stopped.keys() == whole.keys() and stopped != whole  # another seed, another folder


def test_filewords_make_a_prompt_of_each_caption(job: Any, tiny_model: DiffusersModel) -> None:
    painter = Painter()
    make_class_images(job(prior__prompt="photo, [filewords]"), tiny_model, draw=painter)
    drawn = [prompt for request in painter.asked for prompt in request.prompts]
    captions = ["photo, dog on grass", "photo, dog, running"]
    assert drawn == [captions[n % 2] for n in range(5)]


def test_each_concept_has_its_class(job: Any, tiny_model: DiffusersModel, pictures: Path) -> None:
    painter = Painter()
    concepts = [{"class_word": "dog"}, {"class_word": "cat", "class_prompt": "a cat"}, {"class_word": "dog"}]
    made = make_class_images(job(concepts, prior__images=2), tiny_model, draw=painter)
    assert [request.prompts for request in painter.asked] == [["dog", "dog"], ["a cat", "a cat"]]
    folders = [concept.class_folder for concept in made.concepts]
    assert folders[0] == folders[2] != folders[1]
    items = read_dataset(made).items
    assert [item.concept for item in items if item.prior] == [0, 0, 1, 1, 2, 2]


def test_a_class_needs_a_name(job: Any, tiny_model: DiffusersModel) -> None:
    with pytest.raises(BadConfig, match=r"prior.weight = 1 needs the name of the class"):
        make_class_images(job(data__class_word=""), tiny_model, draw=Painter())
    without = job(data__class_word="", prior__weight=0.0)
    assert make_class_images(without, tiny_model, draw=Painter()) is without
