"""The part of the page that is seen while training, on plain values."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadConfig
from lib_lora.ui import running
from lib_lora.ui.live import Request
from lib_lora.ui.running import Running
from lib_lora.ui.trainer import TrainStatus
from tests.ui import fake_trainer
from tests.ui.real_runs import make_run, trainer_with


@pytest.fixture
def part(tmp_path: Path) -> Running:
    trainer = fake_trainer.FakeTrainer(tmp_path)
    trainer.now = fake_trainer.running()
    return Running(trainer)


def asked(part: Running) -> list[tuple[str, tuple[Any, ...]]]:
    read = ("status", "runs", "run", "home")
    return [(name, arguments) for name, arguments in part.trainer.calls if name not in read]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("do", "call"),
    [
        ({"do": "pause"}, ("pause", ())),
        ({"do": "resume", "id": "rex-1"}, ("resume", ("rex-1",))),
        ({"do": "resume"}, ("resume", ("",))),
        ({"do": "save"}, ("save_now", ())),
        ({"do": "cancel", "id": "b"}, ("cancel", ("b",))),
        ({"do": "cancel", "id": ["b"]}, ("cancel", ("",))),
    ],
)
def test_buttons_reach_the_trainer(part: Running, do: dict[str, Any], call: tuple[str, tuple[Any, ...]]) -> None:
    told = part.answer(Request(do=do))["told"]
    assert asked(part) == [call] and told and "lk-bad" not in told


def test_queue_is_moved(part: Running) -> None:
    trainer: Any = part.trainer
    trainer.now = replace(trainer.now, waiting=("a", "b"))
    part.act({"do": "move", "id": "b", "by": -1})
    assert trainer.now.waiting == ("b", "a")
    part.act({"do": "move", "id": "b", "by": 10**9})
    assert trainer.named("move")[-1] == ("b", 1)
    html = part.answer(Request())["queue"]
    assert html.index(">a</b>") < html.index(">b</b>")


def test_errors_are_told_escaped_and_nothing_else_changes(part: Running) -> None:
    trainer: Any = part.trainer
    trainer.errors["pause"] = BadConfig("<b>no</b>; wait")
    found = part.answer(Request(do={"do": "pause"}))
    assert "lk-bad" in found["told"] and "&lt;b&gt;no" in found["told"] and "Training" in found["progress"]
    assert "lk-bad" in part.act({"do": "format the disk"}) and "lk-bad" in part.act({"do": ["pause"]})


def test_what_was_told_stays_until_the_next_button(part: Running) -> None:
    assert "told" not in part.answer(Request())


def test_idle_shows_no_curves(part: Running) -> None:
    trainer: Any = part.trainer
    trainer.now = TrainStatus()
    found = part.answer(Request())
    assert found["curves"] == found["samples"] == found["queue"] == found["log"] == found["look"] == ""
    assert "Ready to train" in found["progress"]
    assert trainer.named("runs") == []  # listing every run at each poll would be waste


def test_a_picture_is_shown_large(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    part = Running(trainer_with(tmp_path, run))
    html = part.answer(Request(view={"look": {"run": run.id, "sample": 2}}))["look"]
    assert "data:image/jpeg" in html and "step 200: a photo of sks dog in the snow" in re.sub("<[^>]*>", "", html)
    assert html.count("data-look=") == 2 and "disabled" not in html
    assert json.dumps({"run": run.id, "sample": 4}).replace('"', "&quot;") in html
    first = part.answer(Request(view={"look": {"run": run.id, "sample": 1}}))["look"]
    assert "<script>" not in first and "disabled>Previous" in first
    for wrong in ({"run": "other", "sample": 0}, {"run": run.id, "sample": 99}, {"run": run.id, "sample": "0"}, 5, {}):
        assert part.answer(Request(view={"look": wrong}))["look"] == ""


def test_building_asks_the_trainer_nothing(tmp_path: Path) -> None:
    import gradio as gr

    trainer = fake_trainer.FakeTrainer(tmp_path)
    with gr.Blocks() as blocks:
        part = running.add(trainer)
    assert trainer.calls == [] and part.refresh.elem_id == "lorakit_refresh"
    config = json.dumps(blocks.get_config_file(), default=str)
    for id in ("lorakit_progress", "lorakit_samples", "lorakit_log", "lorakit_queue", "lorakit_look"):
        assert f'id=\\"{id}\\"' in config


def test_a_run_that_the_next_one_has_followed_is_told_when_asked_for(tmp_path: Path) -> None:
    run = fake_trainer.finished_run(tmp_path, "max-1", message="it's <b>over")
    trainer = fake_trainer.FakeTrainer(tmp_path, now=fake_trainer.running(), known=[run])
    part = Running(trainer)

    def ended(view: dict[str, Any]) -> list[Any]:
        html = part.answer(Request(view=view))["progress"]
        return [json.loads(unescape(found)) for found in re.findall(r'data-ended="([^"]*)"', html)]

    told = {"id": "max-1", "name": "max", "state": "finished", "step": 600, "doing": "it's <b>over"}
    assert ended({"watched": "max-1"}) == [told]
    for view in ({}, {"watched": "rex-1"}, {"watched": "gone"}, {"watched": ["max-1"]}, {"watched": ""}):
        assert ended(view) == []
