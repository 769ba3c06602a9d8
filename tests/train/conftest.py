"""Two small pictures, and jobs on them short enough for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train.config import JobConfig, make_job
from tests.train import trained as cases


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files say when they were trained; equal runs make equal files where that is fixed."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two captioned pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("one", "red"), ("two", "blue")):
        picture = Image.new("RGB", (96, 64), "white")
        ImageDraw.Draw(picture).ellipse((20, 10, 70, 55), fill=colour)
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {colour} {{trigger}} toy", encoding="utf-8")
    return folder


@pytest.fixture
def make(pictures: Path, tmp_path: Path) -> Callable[..., JobConfig]:
    """`make(section__name=value)`: a job of 3 steps on the two pictures, in a folder of its own."""

    def build(**changes: Any) -> JobConfig:
        values: dict[str, Any] = {
            "data.folder": str(pictures),
            "data.trigger": "sks",
            "data.resolution": 64,  # with single pictures take 128: at 1x1 this narrow UNet has nothing to normalise
            "network.rank": 4,
            "network.alpha": 4.0,
            "optimizer.lr": 1e-3,
            "optimizer.te_lr": 1e-3,
            "training.steps": 3,
            "training.batch_size": 2,
            "training.seed": 7,
            "output.folder": str(tmp_path / "runs"),
            "output.name": "toy",
            "output.dtype": "fp32",
            "output.sidecar": False,  # the card's picture is drawn where nothing else was, which takes time
        }
        return make_job({**values, **{key.replace("__", "."): value for key, value in changes.items()}})

    return build


@pytest.fixture(scope="session")
def trained(tiny_model: DiffusersModel, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> cases.Make:
    """`trained(name)`: the finished run of a case of tests/train/trained.py, each made once."""
    folder, made = tmp_path_factory.mktemp("trained"), dict[str, cases.Trained]()

    def get(name: str) -> cases.Trained:
        if name not in made:
            made[name] = cases.run(cases.job_of(name, pictures, folder), tiny_model)
        return made[name]

    return get
