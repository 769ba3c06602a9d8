"""The pictures step in gradio: it builds, and its events give as many values as there are outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora.train.looking import Looker
from lib_lora.ui import pictures
from lib_lora.ui.picture_page import Pictures
from lib_lora.ui.pictures import Turn, _Wires
from tests.train.drawn import put
from tests.ui.fake_trainer import FakeTrainer


@pytest.fixture
def wires(tmp_path: Path) -> _Wires:
    return _Wires(Pictures(FakeTrainer(tmp_path / "server"), Looker()), [], range(9))


def test_the_step_builds_with_its_folder(tmp_path: Path) -> None:
    import gradio as gr

    trainer = FakeTrainer(tmp_path)
    with gr.Blocks() as blocks:
        step = pictures.add(trainer)
    ids = {str(getattr(block, "elem_id", "")) for block in blocks.blocks.values()}
    assert step.folder.elem_id == "lorakit_folder" and isinstance(step.looker, Looker)
    assert {
        "lorakit_drop",
        "lorakit_remove",
        "lorakit_remove_value",
        "lorakit_pictures_open",
        "lorakit_pictures_sync",
    } <= ids
    assert trainer.calls == []  # the webui builds the page at its start
    dependencies = blocks.get_config_file()["dependencies"]
    assert dependencies and not any(one["queue"] for one in dependencies)


def test_events_fill_every_output(wires: _Wires, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put(folder, "a.png", 1)
    turn = Turn()
    for act in (wires.first, wires.same, wires.next, wires.previous, wires.put_back):
        assert len(act(str(folder), False, 0, turn)) == 9
    shown = wires.remove(str(folder), False, 0, turn, "a.png")
    assert len(shown) == 9 and "a.png" in shown[-1] and shown[5]["visible"] is True


def test_a_late_answer_gives_way_to_a_newer_question(
    wires: _Wires, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "set", "a.png", 1)
    turn, view = Turn(), wires.page.view

    def slow(*given: Any) -> Any:
        turn.take()  # somebody asks anew meanwhile
        return view(*given)

    monkeypatch.setattr(wires.page, "view", slow)
    shown = wires.first(str(tmp_path / "set"), False, 0, turn)
    assert all(isinstance(one, dict) and "value" not in one for one in shown)


def test_a_failed_removal_is_told(wires: _Wires, tmp_path: Path) -> None:
    put(tmp_path / "set", "a.png", 1)
    assert "lk-bad" in wires.remove(str(tmp_path / "set"), False, 0, Turn(), "gone.png")[-1]
