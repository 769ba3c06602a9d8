"""The first step of the page on plain values: what is shown, put aside, brought back, uploaded."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadConfig, BadDataset
from lib_lora.train import picture_set
from lib_lora.train.looking import Looker
from lib_lora.ui import picture_page
from lib_lora.ui.picture_page import Pictures
from tests.train.drawn import put
from tests.ui.fake_trainer import SD1, SDXL, FakeTrainer

SIZE = (256, 256)
SMALL = replace(SD1, resolution=256)


@pytest.fixture
def trainer(tmp_path: Path) -> FakeTrainer:
    return FakeTrainer(tmp_path / "server", SMALL)


@pytest.fixture
def page(trainer: FakeTrainer) -> Pictures:
    return Pictures(trainer, Looker())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(3):
        put(tmp_path / "set", f"{n}.png", n, size=SIZE)
    return tmp_path / "set"


def names(html: str) -> list[str]:
    return re.findall(r'<div class="lk-name[^"]*" id="[^"]*" title="([^"]*)"', html)


def test_a_folder_is_shown_with_counts(page: Pictures, folder: Path) -> None:
    view = page.view(f' "{folder}" ')
    assert names(view.grid) == ["0.png", "1.png", "2.png"] and view.filled
    assert view.grid.count("data:image/jpeg;base64,") == 3
    assert '<span class="lk-number">256 × 256</span>' in view.summary
    assert (view.page, view.pages, view.aside) == (0, 1, 0)


def test_the_summary_says_for_which_text_it_is(page: Pictures, folder: Path) -> None:
    assert f'data-lk-shows="{folder}/"' in page.view(f"{folder}/").summary
    assert 'data-lk-shows="/no&lt;where&gt;"' in page.view("/no<where>").summary
    assert 'data-lk-shows=""' in page.view("   ").summary


def test_the_state_follows_pictures_and_captions(page: Pictures, folder: Path) -> None:
    first = page.view(str(folder)).state
    assert page.view(str(folder)).state == first
    (folder / "0.txt").write_text("a dog")
    second = page.view(str(folder)).state
    page.remove(str(folder), "1.png")
    assert len({first, second, page.view(str(folder)).state}) == 3


def test_pages_and_the_filter(page: Pictures, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_page, "PAGE", 2)
    put(folder, "small.png", 9, size=(100, 100))
    put(folder, "tiny.png", 8, size=(90, 90))
    assert names(page.view(str(folder), 1).grid) == ["2.png", "small.png"]
    last = page.view(str(folder), 99)
    assert (last.page, last.pages, names(last.grid)) == (2, 3, ["tiny.png"])
    assert page.view(str(folder), -5).page == 0
    bad = page.view(str(folder), 0, only_bad=True)
    assert names(bad.grid) == ["small.png", "tiny.png"] and bad.pages == 1


def test_the_base_says_what_is_small(page: Pictures, trainer: FakeTrainer, folder: Path) -> None:
    assert "Too small" not in page.view(str(folder)).summary
    trainer.facts = SDXL
    assert "Too small" in page.view(str(folder)).summary


def test_names_and_captions_are_escaped(page: Pictures, folder: Path) -> None:
    put(folder, "<img src=x onerror=alert(1)>'\".png", 5, size=SIZE)
    (folder / "0.txt").write_text("<script>alert(1)</script>")
    (folder / "<b>.png").write_bytes(b"broken")
    view = page.view(str(folder))
    for text in (view.grid, view.summary):
        assert "<script" not in text and "<b>.png" not in text and "<img src=x" not in text
    assert "&lt;script&gt;" in view.grid and "&lt;b&gt;.png" in view.grid


def test_what_is_not_looked_at_yet_is_asked_for_again(
    page: Pictures, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_page, "SECONDS", -1)
    monkeypatch.setattr(picture_page, "PAGE", 1)
    view = page.view(str(folder))
    assert 'data-lk-go-on="lorakit_pictures_more"' in view.summary
    assert view.grid.count("data:image/jpeg") == 1  # the page's own pictures are shown all the same
    monkeypatch.setattr(picture_page, "SECONDS", 60)
    assert "data-lk-go-on" not in page.view(str(folder)).summary


def test_errors_are_told_in_place(page: Pictures, trainer: FakeTrainer, tmp_path: Path, folder: Path) -> None:
    missing = page.view(str(tmp_path / "nowhere"))
    assert "lk-bad" in missing.summary and "nowhere" in missing.summary and not missing.filled
    trainer.outside = (folder,)
    assert "outside" in page.view(str(folder)).summary
    for act in (lambda: page.remove(str(folder), "0.png"), lambda: page.put_back(str(folder))):
        with pytest.raises(BadConfig, match="outside"):
            act()


def test_each_remove_button_says_which_picture_it_is_of(page: Pictures, folder: Path) -> None:
    html = page.view(str(folder)).grid
    ids = re.findall(r'class="lk-name[^"]*" id="([^"]*)"', html)
    assert len(set(ids)) == len(ids) > 1 and re.findall(r'aria-describedby="([^"]*)"', html) == ids


def test_removing_and_bringing_back(page: Pictures, folder: Path) -> None:
    put(folder / "10_sks dog", "deep.png", 7, size=SIZE)
    assert "deep.png" in page.remove(str(folder), "10_sks dog/deep.png")
    assert page.view(str(folder)).aside == 1
    assert "deep.png" in page.put_back(str(folder))
    assert (folder / "10_sks dog" / "deep.png").is_file()
    assert "Nothing is left" in page.put_back(str(folder))


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "gone.png", "", ".removed/0.png"])
def test_only_listed_pictures_can_be_removed(page: Pictures, folder: Path, name: str) -> None:
    outside = put(folder.parent, "outside.png", 1, size=SIZE)
    with pytest.raises(BadDataset, match="not in the folder"):
        page.remove(str(folder), name)
    assert outside.is_file() and len(list(folder.glob("*.png"))) == 3


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return lambda name, seed=1: str(put(tmp_path / "gradio", name, seed, size=SIZE))


def test_uploads_go_to_a_folder_of_their_own(page: Pictures, trainer: FakeTrainer, folder: Path, sent: Any) -> None:
    before = sorted(folder.iterdir())
    made, told = page.upload([sent("a.png"), sent("b.png", 2)], str(folder))
    assert Path(made).parent == trainer.home() / "pictures" and page.is_upload(made)
    assert sorted(path.name for path in Path(made).iterdir()) == ["a.png", "b.png"]
    assert "<b>2</b>" in told and sorted(folder.iterdir()) == before
    again, _ = page.upload([sent("c.png", 3)], made)
    assert again == made and len(list(Path(made).iterdir())) == 3
    other, _ = page.upload([sent("d.png", 4)], "")
    assert other != made


def test_refused_uploads_are_named_and_change_nothing(
    page: Pictures, trainer: FakeTrainer, tmp_path: Path, sent: Any
) -> None:
    text = tmp_path / "gradio" / "<b>.png"
    text.parent.mkdir(exist_ok=True)
    text.write_text("no picture")
    shown, told = page.upload([str(text), str(put(tmp_path, "forged.png", 1, size=SIZE))], "/where/i/was")
    assert shown == "/where/i/was"
    assert "&lt;b&gt;.png" in told and "not a picture" in told and "forged.png" in told and "<b>.png" not in told
    assert not list((trainer.home() / "pictures").glob("*"))


def test_an_upload_joins_no_folder_of_the_users_own(page: Pictures, folder: Path, sent: Any) -> None:
    assert not page.is_upload(str(folder)) and not page.is_upload("") and not page.is_upload("/nowhere")


@pytest.mark.parametrize("text", ["a" * 5000, "/a\0b", "\0"])
def test_names_that_no_file_system_takes(page: Pictures, text: str) -> None:
    assert "there is no folder" in page.view(text).summary


def test_two_pictures_put_aside_at_once_both_come_back(
    page: Pictures, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = picture_set._journal

    def slow(aside: Path) -> Any:
        found = real(aside)
        time.sleep(0.2)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(picture_set, "_journal", slow)
        both = [threading.Thread(target=page.remove, args=(str(folder), f"{n}.png")) for n in range(2)]
        for one in both:
            one.start()
        for one in both:
            one.join()
    assert page.view(str(folder)).aside == 2
    page.put_back(str(folder))
    page.put_back(str(folder))
    assert sorted(path.name for path in folder.glob("*.png")) == ["0.png", "1.png", "2.png"]


def test_captions_are_uploaded_with_their_pictures(page: Pictures, sent: Any) -> None:
    picture = sent("a.png")
    text = Path(getattr(picture, "name", picture)).with_name("a.txt")
    text.write_text("a dog")
    made, told = page.upload([picture, str(text)], "")
    assert (Path(made) / "a.txt").read_text() == "a dog"
    assert "Pictures saved:" in told and "Captions saved:" in told and "lk-bad" not in told
    (Path(made) / "a.txt").unlink()
    again, told = page.upload([str(text)], made)
    assert again == made and "Captions saved:" in told and "Pictures saved:" not in told
    alone, told = page.upload([str(text)], "")
    assert alone == "" and "no picture of this name" in told
    assert [path.name for path in Path(made).parent.iterdir()] == [Path(made).name]
