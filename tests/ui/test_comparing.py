"""Drawing a comparison in the background."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora.errors import BadConfig, BadFile
from lib_lora.train.compare import Grid
from lib_lora.ui.comparing import Comparer
from tests.ui.fake_trainer import FakeTrainer, running


def grid(folder: Path, **facts: Any) -> Grid:
    usual: dict[str, Any] = {"labels": ("step 1", "final"), "strengths": (0.0, 1.0), "prompts": ("dog", "cat")}
    return Grid.create(folder, **{**usual, **facts})


FILES = {"step 1": Path("1.safetensors"), "final": Path("2.safetensors")}


def test_every_picture_is_drawn_with_its_file_and_strength(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    comparer = Comparer(trainer)
    shown = grid(tmp_path, seed=9, steps=3, cfg=2.5, negative="blurry")
    comparer.start("rex", shown, FILES)
    done = comparer.wait(20)
    assert not done.active and (done.done, done.total) == (8, 8) and "ready" in done.message
    assert all(shown.picture(cell).is_file() for cell in shown.cells()) and shown.sheet.is_file()
    calls = trainer.named("draw")
    assert [call[0] for call in calls] == [
        ("dog",), ("cat",), ("dog <lora:lorakit-0:1>",), ("cat <lora:lorakit-0:1>",),
        ("dog <lora:lorakit-1:1>",), ("cat <lora:lorakit-1:1>",),
    ]  # fmt: skip
    assert {call[1:5] for call in calls} == {(9, 3, 2.5, "blurry")}
    assert calls[2][5] == {"lorakit-0": FILES["step 1"]} and calls[-1][5] == {"lorakit-1": FILES["final"]}
    bare = [shown.picture(cell).read_bytes() for cell in shown.cells() if not cell.strength and cell.table == 0]
    assert bare[0] == bare[1]


def test_stop_keeps_what_is_drawn_and_another_can_begin(tmp_path: Path) -> None:
    trainer, gate, drawn = FakeTrainer(tmp_path), threading.Event(), threading.Semaphore(0)

    def hook(method: str) -> None:
        if method == "draw":
            drawn.release()
            gate.wait(20)

    trainer.hook = hook
    comparer, shown = Comparer(trainer), grid(tmp_path)
    comparer.start("rex", shown, FILES)
    drawn.acquire(timeout=20)
    assert comparer.now.active
    with pytest.raises(BadConfig, match="is being drawn"):
        comparer.start("rex", shown, FILES)
    assert comparer.stop() == "Stopping after this picture."
    gate.set()
    done = comparer.wait(20)
    assert done.done == 1 and done.message == "Stopped after 1 of 8 pictures." and shown.sheet.is_file()
    comparer.start("rex", grid(tmp_path), FILES)
    assert comparer.wait(20).done == 8
    assert comparer.stop() == "Nothing is being drawn."


def test_training_that_begins_meanwhile_is_told(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    comparer, shown = Comparer(trainer), grid(tmp_path)
    seen: list[str] = []

    def hook(method: str) -> None:
        seen.append(method)
        if seen.count("draw") == 3:
            trainer.now = running()

    trainer.hook = hook
    comparer.start("rex", shown, FILES)
    done = comparer.wait(20)
    assert "is being trained" in done.message and done.done == 2 and shown.sheet.is_file() and not done.active


def test_a_disk_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparer, shown = Comparer(FakeTrainer(tmp_path)), grid(tmp_path)

    def full(*_: Any) -> None:
        raise BadFile("cannot write x: No space left on device; free some space")

    monkeypatch.setattr(Grid, "add", full)
    comparer.start("rex", shown, FILES)
    done = comparer.wait(20)
    assert "No space" in done.message and not done.active and not shown.sheet.exists()


def test_an_error_nobody_foresaw_ends_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FakeTrainer(tmp_path)
    monkeypatch.setattr(trainer, "draw", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    comparer = Comparer(trainer)
    comparer.start("rex", grid(tmp_path), FILES)
    done = comparer.wait(20)
    assert not done.active and "console" in done.message


def test_pictures_are_those_drawn(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    comparer, shown = Comparer(trainer), grid(tmp_path)
    comparer.start("rex", shown, FILES)
    comparer.wait(20)
    for cell in shown.cells():
        name = f"lorakit-{cell.row}"
        prompt = f"{cell.prompt} <lora:{name}:1>" if cell.strength else cell.prompt
        shade = sum(f"{prompt}1".encode()) % 256
        with Image.open(shown.picture(cell)) as picture:
            assert picture.getpixel((0, 0)) == (shade, 128, 255 - shade)
