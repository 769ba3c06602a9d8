"""The captions step in gradio: it builds, its events give what its outputs need, and say what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lib_lora.train.looking import Looker
from lib_lora.ui import captions
from lib_lora.ui.caption_page import Captions
from lib_lora.ui.captions import KINDS, _Deeds
from lib_lora.ui.html_captions import mark
from lib_lora.ui.pictures import Turn
from tests.train.drawn import put
from tests.ui.fake_captioners import FakeCaptioner
from tests.ui.fake_trainer import FakeTrainer

OUTPUTS = 12
TOLD = 11


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "set", "a.png", 1, size=(64, 64))
    (tmp_path / "set" / "a.txt").write_text("dog, grass")
    return tmp_path / "set"


@pytest.fixture
def deeds(tmp_path: Path) -> _Deeds:
    return _Deeds(Captions(FakeTrainer(tmp_path / "server"), Looker(), lambda: [FakeCaptioner(fetches="1 GB")]))


def seen(folder: Path, edits: str = "") -> tuple[Any, ...]:
    return str(folder), 0, "", "", edits, Turn()


def typed(folder: Path, text: str) -> str:
    return json.dumps([{"folder": str(folder), "name": "a.png", "was": mark("dog, grass"), "text": text, "n": 1}])


@pytest.mark.parametrize("offered", [[], [FakeCaptioner()]])
def test_it_builds_with_and_without_captioners(tmp_path: Path, offered: list[FakeCaptioner]) -> None:
    import gradio as gr

    trainer = FakeTrainer(tmp_path)
    with gr.Blocks() as blocks:
        folder = gr.Textbox(elem_id="lorakit_folder")
        captions.add(trainer, folder, captioners=lambda: offered)
    ids = {str(getattr(block, "elem_id", "")) for block in blocks.blocks.values()}
    assert {"lorakit_captions", "lorakit_caption_edits", "lorakit_tag_filter_value", "lorakit_captioning"} <= ids
    models = next(b for b in blocks.blocks.values() if getattr(b, "label", "") == "Let a model write captions")
    assert models.visible is bool(offered)
    assert trainer.calls == [] and not any(one["queue"] for one in blocks.get_config_file()["dependencies"])


def test_every_event_fills_its_outputs(deeds: _Deeds, folder: Path) -> None:
    for act in (deeds.show, deeds.follow, deeds.next, deeds.previous, deeds.undo, deeds.to_files):
        assert len(act(*seen(folder))) == OUTPUTS, act
    assert len(deeds.open(*seen(folder))) == OUTPUTS + 3
    assert len(deeds.absorb(*seen(folder), '["dog"]')) == OUTPUTS
    operation = (next(iter(KINDS)), "sks", "", 0)
    for act in (deeds.apply, deeds.preview):
        assert len(act(*seen(folder), *operation)) == OUTPUTS + 1
    assert len(deeds.write(*seen(folder), "Fake (tags)", "replace", "", False)) == OUTPUTS + 1
    for act in (deeds.stop, deeds.poll):
        assert len(act(*seen(folder))) == OUTPUTS + 1


def test_what_was_typed_is_saved_before_anything_else(deeds: _Deeds, folder: Path) -> None:
    for act, more in (
        (deeds.show, ()),
        (deeds.next, ()),
        (deeds.open, ()),
        (deeds.apply, ("Put before", "sks", "", 0)),
    ):
        (folder / "a.txt").write_text("dog, grass")
        shown = act(*seen(folder, typed(folder, "typed by hand")), *more)
        assert "typed by hand" in (folder / "a.txt").read_text()
        assert "Captions saved:" in shown[TOLD] and "a.png" in shown[2]
    assert (folder / "a.txt").read_text() == "sks, typed by hand"


def test_looking_by_itself_saves_nothing_and_leaves_the_message(deeds: _Deeds, folder: Path) -> None:
    for act in (deeds.follow, deeds.poll):
        shown = act(*seen(folder, typed(folder, "half a sen")))
        assert (folder / "a.txt").read_text() == "dog, grass" and "value" not in shown[TOLD]


def test_errors_are_told_and_the_captions_still_shown(deeds: _Deeds, folder: Path, tmp_path: Path) -> None:
    shown = deeds.apply(*seen(folder), "Put before", " ", "", 0)
    assert "lk-bad" in shown[TOLD] and "<textarea" in shown[2]
    assert "lk-bad" in deeds.undo(*seen(folder))[TOLD]
    assert "lk-bad" in deeds.preview(*seen(folder), "Keep the first tags", "", "", None)[-1]
    assert "nowhere" in deeds.show(*seen(tmp_path / "nowhere"))[TOLD]
    assert "1 GB" in deeds.write(*seen(folder), "Fake (tags)", "replace", "", False)[-1]


def test_a_folder_that_cannot_be_used_has_no_captions_to_show(deeds: _Deeds, tmp_path: Path) -> None:
    found = deeds.follow(*seen(tmp_path / "nowhere"))
    assert "no captions to show" in found[0]


def test_opening_says_what_captioners_need(deeds: _Deeds, folder: Path) -> None:
    *_, needs, _, names = deeds.open(*seen(folder))
    assert "1 GB" in needs and names["choices"] == ["Fake (tags)"]


def test_a_late_answer_gives_way_unless_it_has_saved(
    deeds: _Deeds, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, view = Turn(), deeds.page.view

    def slow(*given: Any) -> Any:
        turn.take()
        return view(*given)

    monkeypatch.setattr(deeds.page, "view", slow)
    assert all("value" not in one for one in deeds.show(str(folder), 0, "", "", "", turn))
    assert "a.png" in deeds.show(str(folder), 0, "", "", typed(folder, "new"), turn)[2]
