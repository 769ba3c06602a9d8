"""Captions on plain values: shown, saved against what was shown, changed in bulk, written by captioners."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadConfig, BadDataset
from lib_lora.train.caption_edit import Edit
from lib_lora.train.looking import Looker
from lib_lora.ui import caption_page
from lib_lora.ui.caption_page import Captions, Wish, saved_message
from lib_lora.ui.captioners import MODES
from lib_lora.ui.html_captions import mark
from lib_lora.ui.picture_page import Pictures
from tests.train.drawn import put
from tests.ui.fake_captioners import FakeCaptioner
from tests.ui.fake_trainer import FakeTrainer, running

TEXTS = ("dog, red collar, grass", "dog, red collar, sofa", "cat, grass")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n, text in enumerate(TEXTS):
        put(tmp_path / "set", f"{n}.png", n, size=(64, 64))
        (tmp_path / "set" / f"{n}.txt").write_text(text)
    return tmp_path / "set"


@pytest.fixture
def trainer(tmp_path: Path) -> FakeTrainer:
    return FakeTrainer(tmp_path / "server")


@pytest.fixture
def captioner() -> FakeCaptioner:
    return FakeCaptioner()


@pytest.fixture
def page(trainer: FakeTrainer, captioner: FakeCaptioner) -> Captions:
    return Captions(trainer, Looker(), lambda: [captioner])


def texts(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("*.txt"))]


def shown(html: str) -> list[str]:
    return re.findall(r"<textarea[^>]*>([^<]*)</textarea>", html)


def edit(folder: Path, name: str, was: str, text: str, n: int = 1) -> dict[str, Any]:
    return {"folder": str(folder), "name": name, "was": mark(was), "text": text, "n": n}


def test_the_view_shows_captions_tags_and_proposal(page: Captions, folder: Path) -> None:
    view = page.view(Wish(str(folder)))
    assert shown(view.grid) == list(TEXTS)
    assert view.grid.count("data:image/jpeg") == 3
    assert re.findall(r'lk-tag-name">([^<]*)</span> <span class="lk-number">(\d)', view.tags)[:3] == [
        ("dog", "2"),
        ("red collar", "2"),
        ("grass", "2"),
    ]
    assert "red collar" in view.absorb and view.undo == ""
    assert page.view(Wish(str(folder), stays="sks, dog")).absorb.count(">dog</b>") == 0
    assert page.view(Wish(str(folder))).absorb.count(">dog</b>") == 1


def test_both_steps_agree_on_the_state_of_a_folder(page: Captions, trainer: FakeTrainer, folder: Path) -> None:
    pictures = Pictures(trainer, page.looker)
    assert page.view(Wish(str(folder))).state == pictures.view(str(folder)).state
    (folder / "0.txt").write_text("new\nlines")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "9.png", "text": "table"}))
    put(folder, "9.png", 9, size=(64, 64))
    assert page.view(Wish(str(folder))).state == pictures.view(str(folder)).state


def test_pages_and_the_filter_by_tag(page: Captions, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_page, "PAGE", 1)
    view = page.view(Wish(str(folder), 1))
    assert shown(view.grid) == [TEXTS[1]] and (view.page, view.pages) == (1, 3)
    found = page.view(Wish(str(folder), 5, "Red_Collar"))
    assert (found.page, found.pages, found.tag) == (1, 2, "Red_Collar")
    assert page.view(Wish(str(folder), 0, "no such tag")).pages == 3


def test_everything_from_files_is_escaped(page: Captions, folder: Path) -> None:
    text = '</textarea><script>alert("1")</script>, <b>x</b>'
    for n in range(3):
        (folder / f"{n}.txt").write_text(text)
    put(folder, "<i>.png", 5, size=(64, 64))
    view = page.view(Wish(str(folder)))
    for html in (view.grid, view.tags, view.absorb, view.status):
        assert "<script" not in html and "<b>x" not in html and "<i>." not in html
    changed = page.bulk(str(folder), Edit("prepend", "<u>"))
    assert (
        "<u>" not in caption_page.html_captions.preview(changed) and "<script" not in page.view(Wish(str(folder))).undo
    )


def test_saving_writes_only_what_was_changed(page: Captions, folder: Path) -> None:
    done = page.save(
        json.dumps([edit(folder, "1.png", TEXTS[1], "new text", 7), edit(folder, "0.png", TEXTS[0], TEXTS[0], 8)])
    )
    assert (done.files, done.saved, done.refused) == (1, [("1.png", 7), ("0.png", 8)], [])
    assert texts(folder) == [TEXTS[0], "new text", TEXTS[2]]
    assert page.view(Wish(str(folder))).undo == "Edited by hand"
    assert "Taken back" in page.take_back(str(folder)) and texts(folder) == list(TEXTS)


def test_sending_the_same_edit_twice_is_no_conflict(page: Captions, folder: Path) -> None:
    message = json.dumps([edit(folder, "1.png", TEXTS[1], "new text")])
    assert page.save(message).files == 1
    again = page.save(message)
    assert (again.files, again.saved, again.refused) == (0, [("1.png", 1)], [])


def test_a_caption_changed_elsewhere_is_not_overwritten(page: Captions, folder: Path) -> None:
    (folder / "1.txt").write_text("theirs")
    done = page.save(json.dumps([edit(folder, "1.png", TEXTS[1], "mine"), edit(folder, "2.png", TEXTS[2], "fine")]))
    assert done.refused == ["1.png"] and done.saved == [("2.png", 1)]
    assert texts(folder) == [TEXTS[0], "theirs", "fine"]
    assert "1.png" in saved_message(done) and "lk-bad" in saved_message(done)


@pytest.mark.parametrize("name", ["../set/1.png", "gone.png", "/etc/passwd", "1.txt", ""])
def test_only_listed_pictures_get_captions(page: Captions, folder: Path, name: str) -> None:
    before = sorted(folder.parent.rglob("*"))
    assert page.save(json.dumps([edit(folder, name, "", "x")])).refused == [name]
    assert sorted(path for path in folder.parent.rglob("*") if "server" not in path.parts) == before


@pytest.mark.parametrize(
    "message",
    ["{", "{}", "[1]", '[{"folder": "/x"}]', '[{"folder":1,"name":"","was":"","text":"","n":1}]', "[" * 99999],
)
def test_messages_that_are_no_edits_are_refused(page: Captions, message: str) -> None:
    with pytest.raises(BadConfig, match="no captions"):
        page.save(message)


def test_forbidden_folders_stay_closed(page: Captions, trainer: FakeTrainer, folder: Path) -> None:
    trainer.outside = (folder,)
    for act in (
        lambda: page.view(Wish(str(folder))),
        lambda: page.save(json.dumps([edit(folder, "1.png", TEXTS[1], "x")])),
        lambda: page.apply(str(folder), Edit("prepend", "x"), "x"),
        lambda: page.remove_tags(str(folder), '["dog"]'),
        lambda: page.to_files(str(folder)),
        lambda: page.take_back(str(folder)),
        lambda: page.describe(str(folder), "Fake (tags)", "replace", ("", False)),
    ):
        with pytest.raises(BadConfig, match="outside"):
            act()
    assert texts(folder) == list(TEXTS)


def test_bulk_edits_and_absorbing(page: Captions, folder: Path) -> None:
    assert [after for _, after in page.bulk(str(folder), Edit("remove", "dog"))] == [
        "red collar, grass",
        "red collar, sofa",
    ]
    assert texts(folder) == list(TEXTS)
    assert page.apply(str(folder), Edit("prepend", "sks"), "Put before sks") == 3
    assert page.remove_tags(str(folder), '["red collar", "dog"]') == 2
    assert texts(folder) == ["sks, grass", "sks, sofa", "sks, cat, grass"]
    for bad in ("dog", "[]", "[1]", '{"a": 1}'):
        with pytest.raises(BadConfig, match="list of tags"):
            page.remove_tags(str(folder), bad)


def test_captions_of_a_table_become_files(page: Captions, folder: Path) -> None:
    put(folder, "t.png", 9, size=(64, 64))
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "t.png", "text": "from the table"}))
    assert page.view(Wish(str(folder))).in_tables == 1
    assert page.to_files(str(folder)) == 1 and (folder / "t.txt").read_text() == "from the table"
    assert page.view(Wish(str(folder))).in_tables == 0


def test_a_captioner_runs_with_the_label_of_the_page(page: Captions, folder: Path, captioner: FakeCaptioner) -> None:
    page.describe(str(folder), captioner.name, MODES["replace"], ("sks", False))
    page.run.wait(20)
    assert texts(folder)[0] == "sks, dog 1, grass"


def test_what_stands_in_a_captioners_way_is_told(
    page: Captions, folder: Path, captioner: FakeCaptioner, trainer: FakeTrainer
) -> None:
    def start(name: str = captioner.name, allow: bool = False) -> None:
        page.describe(str(folder), name, "replace", ("", allow))

    with pytest.raises(BadConfig, match="'nobody'"):
        start("nobody")
    captioner.fetches = "about 1 GB"
    with pytest.raises(BadConfig, match="1 GB.*allow"):
        start()
    trainer.now = running()
    with pytest.raises(BadConfig, match="being trained"):
        start(allow=True)
    trainer.now = replace(trainer.now, state="paused")
    captioner.why_not = "it is broken"
    with pytest.raises(BadConfig, match="it is broken"):
        start(allow=True)
    captioner.why_not = ""
    start(allow=True)
    page.run.wait(20)
    assert texts(folder)[2] == "dog 3, grass"


def test_a_folder_that_is_gone_is_told(page: Captions, tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="nowhere"):
        page.view(Wish(str(tmp_path / "nowhere")))
    assert page.view(Wish("  ")).grid == ""


@pytest.mark.parametrize("text", ["a" * 5000, "/a\0b", "\0"])
def test_names_that_no_file_system_takes(page: Captions, text: str) -> None:
    with pytest.raises(BadDataset, match="no folder"):
        page.view(Wish(text))


def test_a_caption_that_a_table_brings_back_is_not_said_to_be_saved(page: Captions, folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "red"}))
    (folder / "0.txt").unlink()
    message = json.dumps([edit(folder, "0.png", "red", "", 4), edit(folder, "1.png", TEXTS[1], "", 5)])
    done = page.save(message)
    assert (done.files, done.back, done.saved) == (1, ["0.png"], [("0.png", 4), ("1.png", 5)])
    told = saved_message(done)
    assert "take them out of that table" in told and "0.png" in told and "lk-bad" in told
    assert not (folder / "0.txt").exists() and (folder / "1.txt").read_text() == ""
    with pytest.raises(BadDataset, match="a table says would count again"):
        page.apply(str(folder), Edit("remove", "red"), "Remove tags: red")
    assert texts(folder) == ["", TEXTS[2]]
