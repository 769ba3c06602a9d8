"""Warnings before a job: said where they help, silent for every preset as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora.train.config import make_job
from lib_lora.train.preflight import pictures_of, warnings
from lib_lora.train.presets import PRESETS, preset_job


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_not_warned_of(name: str) -> None:
    resolution = 1024 if "SDXL" in name else 512
    pictures = 1 if name == "single picture" else 12
    job = preset_job(name, {"data.class_word": "dog", "data.resolution": resolution})
    assert warnings(job, pictures, resolution) == []


@pytest.mark.parametrize(
    ("values", "pictures", "words"),
    [
        ({"training.steps": 200}, 50, "seldom"),
        ({"training.steps": 20000}, 10, "by heart"),
        ({"data.resolution": 1024}, 12, "far above"),
        ({"data.resolution": 128}, 12, "far below"),
        ({"optimizer.lr": 0.01}, 12, "is high"),
        ({"optimizer.lr": 1e-7}, 12, "is low"),
        ({"network.train_text_encoder": True, "optimizer.te_lr": 5e-4}, 12, "faster than the UNet"),
        ({"optimizer.name": "prodigy"}, 12, "Prodigy"),
        ({"prior.weight": 1.0}, 12, "no class"),
        ({"output.save_every": 5000}, 12, "nothing is kept"),
        ({"method.name": "dreambooth"}, 12, "is high"),
        ({}, 2, "few pictures"),
        ({"training.epochs": 100}, 12, "training.epochs decides"),
    ],
)
def test_what_would_go_wrong_is_told(values: dict[str, Any], pictures: int, words: str) -> None:
    found = warnings(make_job({"training.steps": 1000, **values}), pictures, 512)
    assert any(words in line for line in found), found
    assert len(found) <= 3


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert warnings(make_job({}), 0, 0) == []
    assert warnings(make_job({"method.name": "slider", "training.steps": 50000}), 0, 512) == []


def test_pictures_are_counted(tmp_path: Path) -> None:
    def fill(folder: Path, count: int) -> str:
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        (folder / "0.txt").write_text("x")
        return str(folder)

    plain = fill(tmp_path / "plain", 3)
    assert pictures_of(make_job({"data.folder": plain})) == 3
    fill(tmp_path / "named" / "10_sks dog", 2)
    fill(tmp_path / "named" / "1_ohwx cat", 4)
    assert pictures_of(make_job({"data.folder": str(tmp_path / "named")})) == 6
    several = [{"folder": plain}, {"folder": str(tmp_path / "named")}]
    assert pictures_of(make_job({"concept": several})) == 9
    assert pictures_of(make_job({"data.folder": str(tmp_path / "none")})) == 0
    assert pictures_of(make_job({})) == 0
