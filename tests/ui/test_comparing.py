"""Drawing a comparison in the background."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora.errors import BadConfig, BadFile
from lib_lora.train.compare import Grid
from lib_lora.train.drawable import Drawable
from lib_lora.ui.comparing import Comparer
from tests.ui.fake_trainer import FakeTrainer, running


def grid(folder: Path, **facts: Any) -> Grid:
    usual: dict[str, Any] = {"labels": ("step 1", "final"), "strengths": (0.0, 1.0), "prompts": ("dog", "cat")}
    return Grid.create(folder, **{**usual, **facts})


FILES = {"step 1": Drawable(Path("1.safetensors")), "final": Drawable(Path("2.safetensors"))}


def test_every_picture_is_drawn_with_its_file_and_strength(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    comparer = Comparer(trainer)
    shown = grid(tmp_path, seed=9, steps=3, cfg=2.5, negative="blurry")
    comparer.start("rex", lambda: shown, FILES)
    done = comparer.wait(20)
    assert not done.active and (done.done, done.total) == (6, 6) and "ready" in done.message
    assert all(shown.picture(cell).is_file() for cell in shown.cells()) and shown.sheet.is_file()
    calls = trainer.named("draw")
    assert [call[0] for call in calls] == [
        ("dog",), ("cat",), ("dog <lora:lorakit-0:1>",), ("cat <lora:lorakit-0:1>",),
        ("dog <lora:lorakit-1:1>",), ("cat <lora:lorakit-1:1>",),
    ]  # fmt: skip
    assert {call[1:5] for call in calls} == {(9, 3, 2.5, "blurry")}
    assert [call[5:] for call in calls] == [
        ({}, {}), ({}, {}), *[({"lorakit-0": Path("1.safetensors")}, {})] * 2,
        *[({"lorakit-1": Path("2.safetensors")}, {})] * 2,
    ]  # fmt: skip


def test_embeddings_are_drawn_by_their_words(tmp_path: Path) -> None:
    trainer, shown = FakeTrainer(tmp_path), grid(tmp_path, strengths=(), words=True, prompts=("a sks dog",))
    comparer, words = Comparer(trainer), {"sks": Path("1.pt"), "rex": Path("1.pt")}
    files = {"step 1": Drawable(words=words), "final": Drawable(Path("2"), {"sks": Path("2.pt")})}
    comparer.start("rex", lambda: shown, files)
    assert comparer.wait(20).done == 2
    first, second = trainer.named("draw")
    assert first[0] == ("a sks dog",) and first[5:] == ({}, words)
    assert second[0] == ("a sks dog <lora:lorakit-0:1>",) and second[5:] == (
        {"lorakit-0": Path("2")}, {"sks": Path("2.pt")},
    )  # fmt: skip


def test_stop_keeps_what_is_drawn_and_another_can_begin(tmp_path: Path) -> None:
    trainer, gate, drawn = FakeTrainer(tmp_path), threading.Event(), threading.Semaphore(0)

    def hook(method: str) -> None:
        if method == "draw":
            drawn.release()
            gate.wait(20)

    trainer.hook = hook
    comparer, shown = Comparer(trainer), grid(tmp_path)
    comparer.start("rex", lambda: shown, FILES)
    drawn.acquire(timeout=20)
    assert comparer.now.active
    with pytest.raises(BadConfig, match="is being drawn"):
        comparer.start("rex", lambda: shown, FILES)
    assert comparer.stop() == "Stopping after this picture."
    gate.set()
    done = comparer.wait(20)
    assert done.done == 1 and done.message == "Stopped after 1 of 6 pictures." and shown.sheet.is_file()
    comparer.start("rex", lambda: grid(tmp_path), FILES)
    assert comparer.wait(20).done == 6
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
    comparer.start("rex", lambda: shown, FILES)
    done = comparer.wait(20)
    assert "is being trained" in done.message and done.done == 2 and shown.sheet.is_file() and not done.active


def test_another_checkpoint_that_is_chosen_meanwhile_ends_it(tmp_path: Path) -> None:
    """Pictures of two base models tell nothing of the networks."""
    trainer = FakeTrainer(tmp_path)
    comparer, shown, before = Comparer(trainer), grid(tmp_path), trainer.facts
    seen: list[str] = []

    def hook(method: str) -> None:
        seen.append(method)
        if seen.count("draw") == 3:
            trainer.facts = replace(before, name="another")

    trainer.hook = hook
    comparer.start("rex", lambda: shown, FILES)
    done = comparer.wait(20)
    assert done.done == 2 and not done.active and shown.sheet.is_file()
    assert repr(before.name) in done.message and "another" in done.message and "choose" in done.message


def test_a_disk_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparer, shown = Comparer(FakeTrainer(tmp_path)), grid(tmp_path)

    def full(*_: Any) -> None:
        raise BadFile("cannot write x: No space left on device; free some space")

    monkeypatch.setattr(Grid, "add", full)
    comparer.start("rex", lambda: shown, FILES)
    done = comparer.wait(20)
    assert "No space" in done.message and not done.active and not shown.sheet.exists()


def test_an_error_nobody_foresaw_ends_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FakeTrainer(tmp_path)
    monkeypatch.setattr(trainer, "draw", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    comparer = Comparer(trainer)
    comparer.start("rex", lambda: grid(tmp_path), FILES)
    done = comparer.wait(20)
    assert not done.active and "console" in done.message


def test_pictures_are_those_drawn(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    comparer, shown = Comparer(trainer), grid(tmp_path)
    comparer.start("rex", lambda: shown, FILES)
    comparer.wait(20)
    for cell in shown.cells():
        name = f"lorakit-{cell.row}"
        prompt = f"{cell.prompt} <lora:{name}:1>" if cell.strength else cell.prompt
        shade = sum(f"{prompt}1".encode()) % 256
        with Image.open(shown.picture(cell)) as picture:
            assert picture.getpixel((0, 0)) == (shade, 128, 255 - shade)


def test_that_it_is_ready_is_told_for_a_while_and_why_not_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = FakeTrainer(tmp_path)
    comparer, later = Comparer(trainer), time.monotonic() + 61
    comparer.start("rex", lambda: grid(tmp_path), FILES)
    assert "ready" in comparer.wait(20).message
    with monkeypatch.context() as clock:
        clock.setattr(time, "monotonic", lambda: later)
        assert comparer.now.message == "" and comparer.now.done == 6
    trainer.errors["draw"] = BadFile("it is gone; save again")
    comparer.start("rex", lambda: grid(tmp_path), FILES)
    assert "it is gone" in comparer.wait(20).message
    monkeypatch.setattr(time, "monotonic", lambda: later + 99)
    assert "it is gone" in comparer.now.message
