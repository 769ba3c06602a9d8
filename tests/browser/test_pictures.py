"""Pictures and captions in a browser: a folder typed in, pictures dropped, captions typed, saved, disputed, undone."""

from __future__ import annotations

import inspect
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora.ui import captions, pictures
from lib_lora.ui.compat import api_argument, js_argument, page_script, page_style
from tests.browser.person import Person
from tests.train.drawn import put
from tests.ui.fake_captioners import FakeCaptioner
from tests.ui.fake_trainer import FakeTrainer

pytestmark = pytest.mark.browser
ADDRESS = "127.0.0.1"
TEXTS = ("dog, red collar, grass", "dog, red collar, sofa", "dog, red collar, beach")
CARD = ".lk-caption-card textarea"
TYPED = "return window.lorakitCaptions.typed.size"


class Page:
    """Both steps over a trainer that trains nothing, on a port of their own."""

    def __init__(self, root: Path) -> None:
        import gradio as gr

        looks = {"css": page_style()}
        early = "css" in inspect.signature(gr.Blocks.__init__).parameters
        with gr.Blocks(analytics_enabled=False, **(looks if early else {})) as self.blocks:
            with gr.Column(elem_classes=["lorakit"]):
                step = pictures.add(FakeTrainer(root))
                captions.add(FakeTrainer(root), step.folder, step.looker, lambda: [FakeCaptioner()])
            load = self.blocks.load
            load(None, [], [], queue=False, **api_argument(load, None), **js_argument(load, page_script()))
        with socket.socket() as probe:
            probe.bind((ADDRESS, 0))
            port = probe.getsockname()[1]
        self.address = f"http://{ADDRESS}:{port}"
        options: dict[str, Any] = {"server_name": ADDRESS, "server_port": port, "prevent_thread_lock": True}
        self.blocks.launch(**options, quiet=True, share=False, **({} if early else looks))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    made = Page(tmp_path_factory.mktemp("pictures"))
    yield made
    made.blocks.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n, text in enumerate(TEXTS):
        put(tmp_path / "set", f"{n}.png", n, size=(560, 560))
        (tmp_path / "set" / f"{n}.txt").write_text(text)
    return tmp_path / "set"


@pytest.fixture
def at(page: Page, person: Person, folder: Path) -> Person:
    """Somebody who has typed the folder's name."""
    person.open(page.address)
    person.fill("#lorakit_folder", str(folder))
    person.until(lambda: len(person.all(".lk-picture")) == 3, "three pictures")
    return person


@pytest.fixture
def captioning(at: Person) -> Person:
    """Somebody who has opened the captions as well."""
    at.one("#lorakit_captions .label-wrap, #lorakit_captions > button").click()
    at.until(lambda: len(at.all(CARD)) == 3, "three captions")
    return at


def type_at_end(person: Person, number: int, text: str) -> Any:
    from selenium.webdriver.common.keys import Keys

    field = person.all(CARD)[number]
    person.see(field)
    field.send_keys(Keys.CONTROL, Keys.END)
    field.send_keys(text)
    return field


def test_the_folder_shown_is_the_one_typed_last(at: Person, folder: Path) -> None:
    put(folder.parent / "other", "bad<b>.png", 5, size=(90, 90))
    at.fill("#lorakit_folder", str(folder.parent / "other"))
    at.reads("#lorakit_pictures_grid", "bad<b>.png")
    at.reads("#lorakit_pictures", "Too small")
    at.fill("#lorakit_folder", str(folder / "nowhere"))
    at.reads("#lorakit_pictures", "nowhere")
    assert not at.all(".lk-picture")


def test_a_picture_is_put_aside_and_brought_back(at: Person, folder: Path) -> None:
    at.press("Remove", ".lk-picture")
    at.reads("#lorakit_pictures_told", "0.png")
    at.until(lambda: len(at.all(".lk-picture")) == 2, "two pictures")
    assert not (folder / "0.png").exists() and (folder / ".removed" / "0.png").is_file()
    at.press("Bring the last one back")
    at.until(lambda: len(at.all(".lk-picture")) == 3, "three pictures")
    assert (folder / "0.png").is_file() and (folder / "0.txt").read_text() == TEXTS[0]


def test_dropped_pictures_are_saved_and_shown(at: Person, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    files = [str(put(tmp_path / "drop", f"new {n}.jpg", 20 + n)) for n in range(2)]
    field = at.driver.find_element("css selector", "#lorakit_drop input[type=file]")
    (tmp_path / "drop" / "new 1.txt").write_text("a new dog")
    field.send_keys("\n".join([*files, str(tmp_path / "text.png"), str(tmp_path / "drop" / "new 1.txt")]))
    at.reads("#lorakit_pictures_told", "text.png")
    at.reads("#lorakit_pictures_grid", "a new dog")
    at.until(lambda: len(at.all(".lk-picture")) == 2, "two pictures")
    made = Path(at.value("#lorakit_folder"))
    assert sorted(path.name for path in made.iterdir()) == ["new-0.jpg", "new-1.jpg", "new-1.txt"]


def test_captions_are_saved_by_keyboard_and_taken_back(captioning: Person, folder: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    field = type_at_end(captioning, 0, ", typed by hand")
    captioning.one(".lk-caption-card.lk-unsaved")
    field.send_keys(Keys.CONTROL, Keys.ENTER)
    captioning.reads("#lorakit_captions_told", "Captions saved:")
    assert (folder / "0.txt").read_text() == TEXTS[0] + ", typed by hand"
    captioning.until(lambda: captioning.driver.execute_script(TYPED) == 0, "nothing unsaved")
    captioning.reads("#lorakit_pictures_grid", "typed by hand")  # the step above follows
    focused = "return document.activeElement.dataset.lkCaption"
    assert captioning.driver.execute_script(focused) == "0.png"  # one can go on typing
    captioning.press("Undo the last change")
    captioning.reads("#lorakit_captions_told", "Taken back")
    assert (folder / "0.txt").read_text() == TEXTS[0]


def test_what_somebody_else_wrote_is_not_overwritten_nor_what_was_typed_lost(captioning: Person, folder: Path) -> None:
    type_at_end(captioning, 1, ", mine")
    (folder / "1.txt").write_text("theirs")
    captioning.press("Save captions")
    captioning.reads("#lorakit_captions_told", "Changed elsewhere")
    assert (folder / "1.txt").read_text() == "theirs"
    captioning.until(lambda: captioning.all(CARD)[1].get_attribute("value").endswith(", mine"), "what was typed")
    captioning.press("Save captions")
    captioning.until(lambda: (folder / "1.txt").read_text() == TEXTS[1] + ", mine", "the second save")


def test_a_click_on_a_tag_saves_what_was_typed_and_shows_its_pictures(captioning: Person, folder: Path) -> None:
    type_at_end(captioning, 2, ", quick")
    captioning.until(lambda: [b.click() for b in captioning.all(".lk-tag") if "sofa" in b.text], "the tag")
    captioning.until(lambda: len(captioning.all(CARD)) == 1, "one caption")
    assert (folder / "2.txt").read_text() == TEXTS[2] + ", quick"
    captioning.one(".lk-tag[aria-pressed=true]").click()
    captioning.until(lambda: len(captioning.all(CARD)) == 3, "all captions")


def test_all_captions_change_after_a_preview_and_traits_are_absorbed(captioning: Person, folder: Path) -> None:
    _open(captioning, "Change all captions")
    captioning.fill("#lorakit_bulk_text", "sks dog")
    captioning.press("Preview")
    captioning.reads("#lorakit_bulk_changes", "sks dog, dog, red collar, grass")
    assert (folder / "0.txt").read_text() == TEXTS[0]
    captioning.press("Change all")
    captioning.until(lambda: (folder / "2.txt").read_text() == f"sks dog, {TEXTS[2]}", "the change")
    _open(captioning, "What the trigger should absorb")
    captioning.fill("#lorakit_absorb_stays", "sks dog, dog")
    captioning.until(lambda: "sks dog" not in captioning.text("#lorakit_absorb_tags"), "a proposal without the trigger")
    captioning.press("Remove all traits from the captions")
    captioning.until(lambda: (folder / "0.txt").read_text() == "sks dog, dog, grass", "the removal")


def test_a_model_writes_captions(captioning: Person, folder: Path) -> None:
    (folder / "1.txt").unlink()
    _open(captioning, "Let a model write captions")
    captioning.press("Write captions")
    captioning.reads("#lorakit_captioner_progress", "Finished")
    assert (folder / "1.txt").read_text() == "dog 1, grass" and (folder / "0.txt").read_text() == TEXTS[0]


def test_everything_is_reached_by_keys(page: Page, person: Person) -> None:
    from selenium.webdriver.common.keys import Keys

    def tab() -> str:
        person.driver.switch_to.active_element.send_keys(Keys.TAB)
        here = person.driver.switch_to.active_element
        assert person.driver.execute_script("return getComputedStyle(arguments[0]).outlineStyle", here) == "solid"
        return str(here.text)

    person.open(page.address)
    field = person.one("#lorakit_folder textarea, #lorakit_folder input")
    titles = ".label-wrap[role=button], button.label-wrap"
    person.until(lambda: person.driver.find_elements("css selector", titles), "titles that keys reach")
    field.click()
    assert "Click to Upload" in tab()
    assert tab().startswith("Captions")
    person.driver.switch_to.active_element.send_keys(Keys.ENTER)
    person.until(lambda: person.all("#lorakit_caption_save"), "the captions open")
    title = person.driver.switch_to.active_element
    assert title.get_attribute("aria-expanded") != "false"
    assert tab() == "Save captions"
    title.send_keys(Keys.SPACE)
    person.until(lambda: not person.all("#lorakit_caption_save"), "the captions closed")


def _open(person: Person, title: str) -> None:
    """Open one of the inner parts."""
    person.until(
        lambda: [h.click() for h in person.all("#lorakit_captions .label-wrap") if title in h.text], f"part {title!r}"
    )
