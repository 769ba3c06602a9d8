"""The form in a browser, as a newcomer and as somebody who knows what to look for; by keyboard where one can."""

from __future__ import annotations

import inspect
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora.ui import form
from lib_lora.ui.compat import api_argument, js_argument, page_script, page_style
from lib_lora.ui.form_memory import FormMemory
from lib_lora.ui.form_page import FormPage
from tests.browser.person import Person
from tests.ui.fake_trainer import INPAINTING, SD1, FakeTrainer

pytestmark = pytest.mark.browser
STATE = "return JSON.parse(document.querySelector('#lorakit_form_state textarea').value)"
HELD = "return document.querySelector('#lorakit_{} textarea, #lorakit_{} input').value"
ADDRESS = "127.0.0.1"
SLOW = 4.0  # seconds


class Page:
    """The form over a trainer that trains nothing, on a port of its own."""

    def __init__(self, root: Path) -> None:
        import gradio as gr

        self.pictures = root / "pictures"
        self.pictures.mkdir()
        for number in range(12):
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(self.pictures / f"{number}.png")
        self.trainer = FakeTrainer(root)
        looks = {"css": page_style()}
        early = "css" in inspect.signature(gr.Blocks.__init__).parameters
        with gr.Blocks(analytics_enabled=False, **(looks if early else {})) as self.blocks:
            with gr.Column(elem_classes=["lorakit"]):
                form.add(self.trainer, gr.Textbox(label="Folder of pictures", elem_id="lorakit_folder"))
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
    made = Page(tmp_path_factory.mktemp("form"))
    yield made
    made.blocks.close()


@pytest.fixture
def at(page: Page, person: Person) -> Person:
    """Somebody who opens the form for the first time."""
    fresh = FakeTrainer(page.trainer.root)
    page.trainer.__dict__.update({**vars(fresh), "hook": None})
    for path in fresh.home().glob("*"):
        if path.is_file():
            path.unlink()
    person.width(1280, 1400)
    arrive(person, page)
    return person


def arrive(person: Person, page: Page) -> None:
    person.open(page.address)
    person.until(lambda: held(person, "name"), "a proposed name")
    person.reads("#lorakit_base", "Trains against")


def state(person: Person) -> Any:
    return person.driver.execute_script(STATE)


def held(person: Person, name: str) -> str:
    return str(person.driver.execute_script(HELD.format(name, name)))


def advanced(person: Person, words: str) -> Any:
    """Look for a setting; the search field."""
    if not person.all("#lorakit_find"):
        person.press("Advanced")
    find = person.one("#lorakit_find")
    person.see(find)
    find.clear()
    find.send_keys(words)
    return find


def found(person: Person) -> list[str]:
    return [str(one.get_attribute("data-key")) for one in person.all(".lkf-field[data-key]")]


def choose(person: Person, group: str, words: str) -> None:
    [label] = [one for one in person.all(f"#lorakit_{group} label") if words in one.text]
    person.see(label)
    label.click()


def test_a_newcomer_gives_a_folder_and_presses_train(at: Person, page: Page) -> None:
    at.fill("#lorakit_folder", str(page.pictures))
    at.reads("#lorakit_estimate", "12 pictures")
    at.press("Train")
    at.reads("#lorakit_message", "Training")
    at.reads("#lorakit_message", held(at, "name"))
    [settings] = page.trainer.submitted
    assert settings["data.folder"] == str(page.pictures) and settings["data.trigger"] == held(at, "word") != ""
    at.press("Add to queue")
    at.reads("#lorakit_message", "waits in the queue")


def test_a_setting_is_found_by_the_name_kohya_gives_it_and_by_keyboard(at: Person) -> None:
    from selenium.webdriver.common.keys import Keys

    find = advanced(at, "network_dim")
    at.until(lambda: found(at) == ["network.rank"], "the rank alone")
    find.send_keys(Keys.ENTER)
    rank = at.driver.switch_to.active_element
    assert rank.get_attribute("data-lk-key") == "network.rank"
    rank.clear()
    rank.send_keys("32")
    at.until(lambda: state(at)["values"]["network.rank"] == "32", "the rank to be noted")
    at.reads("#lorakit_estimate", "38 MB")
    at.reads(".lkf-find", "1 changed")
    find = advanced(at, "no such thing")
    at.reads(".lkf-none", "No setting is called like that.")
    find.send_keys(Keys.ESCAPE)
    at.until(lambda: not at.all(".lkf-none"), "the search to end")
    at.press("Reset all")
    at.until(lambda: state(at)["values"]["network.rank"] == "16", "the rank as it was")
    at.reads(".lkf-find", "0 changed")


def test_settings_at_the_top_are_found_too(at: Person) -> None:
    advanced(at, "max_train_steps")
    at.press("Steps is above; go there")
    field = at.driver.switch_to.active_element
    assert at.driver.execute_script("return arguments[0].closest('#lorakit_steps') !== null", field)


def test_what_has_no_effect_is_hidden_until_it_has_one(at: Person) -> None:
    find = advanced(at, "lokr's factor")
    at.until(lambda: found(at) == ["network.factor"], "the factor")
    at.reads(".lkf-field[data-key='network.factor'] .lkf-why", "no effect with")
    at.reads(".lkf-field[data-key='network.factor'] .lkf-why", "lora")
    find.clear()
    find.send_keys("network.type")
    at.until(lambda: "network.type" in found(at), "the type")
    at.one("#lkf-network-type option[value='lokr']").click()
    find.clear()
    find.send_keys("lokr's factor")
    at.until(lambda: found(at) == ["network.factor"] and not at.all(".lkf-why"), "the factor without a reason")


def test_bad_input_is_told_and_gone_to(at: Person, page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    find = advanced(at, "optimizer.lr")
    field = at.one("#lkf-optimizer-lr")
    field.clear()
    field.send_keys("fast")
    at.reads("#lorakit_estimate", "optimizer.lr")
    find.send_keys(Keys.ESCAPE)
    at.press("Advanced")
    at.until(lambda: not at.all("#lkf-optimizer-lr"), "the settings to be closed")
    at.press("Train")
    at.reads("#lorakit_message", "optimizer.lr = 'fast' is not accepted")
    at.until(lambda: at.driver.switch_to.active_element.get_attribute("id") == "lkf-optimizer-lr", "the field in focus")
    assert page.trainer.submitted == []
    field = at.driver.switch_to.active_element
    field.clear()
    field.send_keys("2e-4")
    at.until(lambda: state(at)["values"]["optimizer.lr"] == "2e-4", "the rate to be noted")
    at.press("Train")
    at.reads("#lorakit_message", "Training")
    assert page.trainer.submitted[0]["optimizer.lr"] == 2e-4


def test_a_message_that_stands_takes_nobody_away_from_typing(at: Person, page: Page) -> None:
    advanced(at, "optimizer.lr")
    at.fill("#lkf-optimizer-lr", "fast", whole=True)
    at.press("Train")
    at.until(lambda: at.driver.switch_to.active_element.get_attribute("id") == "lkf-optimizer-lr", "the field in focus")
    field = at.one("#lorakit_class textarea, #lorakit_class input")
    at.see(field)
    field.click()
    for letter in "dog":
        at.driver.switch_to.active_element.send_keys(letter)
        time.sleep(0.4)  # longer than the page takes to notice a message
    assert held(at, "class") == "dog"
    at.press("Train")  # the same message again is gone to again
    at.until(lambda: at.driver.switch_to.active_element.get_attribute("id") == "lkf-optimizer-lr", "the field in focus")
    assert page.trainer.submitted == []


def test_what_was_typed_survives_a_reload(at: Person, page: Page) -> None:
    choose(at, "quality", "Thorough")
    at.until(lambda: held(at, "steps") == "1200", "twice the steps")
    at.fill("#lorakit_class", "<b>dog</b>")
    kept = page.trainer.home() / "form.json"
    at.until(lambda: kept.is_file() and "dog" in kept.read_text(), "the form to be remembered")
    arrive(at, page)
    at.until(lambda: held(at, "class") == "<b>dog</b>", "the class as it was typed")
    assert held(at, "steps") == "1200"
    at.until(lambda: state(at)["restored"], "everything to be back")


def test_a_slow_server_neither_renames_nor_takes_away_what_is_typed(
    at: Person, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    at.fill("#lorakit_name", "k10")
    at.number("#lorakit_steps", 8)
    kept = page.trainer.home() / "form.json"
    at.until(lambda: kept.is_file() and '"k10"' in kept.read_text() and ", 8, " in kept.read_text(), "it to be kept")
    load = FormMemory.load
    monkeypatch.setattr(FormMemory, "load", lambda memory: time.sleep(SLOW) or load(memory))
    at.open(page.address)
    at.fill("#lorakit_folder", str(page.pictures))  # before the server has said what was remembered
    at.fill("#lorakit_class", "dog")
    seen: set[str] = set()
    at.until(lambda: seen.add(held(at, "name")) or state(at)["restored"], "everything to be back")
    at.reads("#lorakit_estimate", "12 pictures")
    assert seen <= {"", "k10"}, "a name was proposed in place of the one that was remembered"
    assert (held(at, "name"), held(at, "steps")) == ("k10", "8")
    assert (held(at, "folder"), held(at, "class")) == (str(page.pictures), "dog")
    at.reads("#lorakit_estimate", "8 steps")


def test_choices_made_faster_than_they_are_answered(at: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    from selenium.webdriver.common.keys import Keys

    at.until(lambda: state(at)["restored"], "the form to be there")
    chosen = FormPage.chosen
    monkeypatch.setattr(FormPage, "chosen", lambda page, values: time.sleep(1) or chosen(page, values))
    choose(at, "kind", "A style")
    choose(at, "kind", "A single picture")
    at.one("#lorakit_word textarea, #lorakit_word input").send_keys(Keys.END, "q")
    typed = held(at, "word")
    assert typed.endswith("q")
    at.until(lambda: state(at)["asked"] == "single picture/good", "the form of the last choice")
    [kind] = [one for one in at.all("#lorakit_kind input") if one.is_selected()]
    assert kind.get_attribute("value") == "A single picture" and held(at, "word") == typed


def test_a_name_that_was_emptied_stays_empty_until_it_is_left(at: Person) -> None:
    from selenium.webdriver.common.keys import Keys

    field = at.one("#lorakit_name textarea, #lorakit_name input")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.BACKSPACE)
    time.sleep(2)  # longer than it takes until the form is looked at
    field.send_keys("by hand", Keys.TAB)
    at.reads("#lorakit_name_check", "<lora:by hand:1>")
    assert held(at, "name") == "by hand"
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.BACKSPACE, Keys.TAB)
    at.until(lambda: held(at, "name") == held(at, "word"), "a name that is proposed again")


def test_train_waits_for_what_is_remembered(at: Person, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    load = FormMemory.load
    monkeypatch.setattr(FormMemory, "load", lambda memory: time.sleep(SLOW) or load(memory))
    at.open(page.address)
    at.press("Train")
    at.reads("#lorakit_message", "still being filled in")
    assert page.trainer.submitted == []


def test_several_concepts(at: Person, page: Page) -> None:
    at.fill("#lorakit_folder", str(page.pictures))
    choose(at, "kind", "Several concepts")
    at.until(lambda: len(at.all(".lkf-concept")) == 2, "two concepts")
    at.all(".lkf-concept")[1].find_element("css selector", "[data-lk-concept=trigger]").send_keys("zoruz")
    at.press("Add a concept")
    at.until(lambda: len(at.all(".lkf-concept")) == 3, "three concepts")
    at.press("Train")
    at.reads("#lorakit_message", "concept 3 has neither folder nor trigger")
    at.see(at.all(".lkf-concept")[2])
    at.all(".lkf-concept")[2].find_element("css selector", "[data-lk=remove-concept]").click()
    at.until(lambda: len(at.all(".lkf-concept")) == 2, "two concepts")
    assert at.driver.switch_to.active_element.text == "Add a concept"  # not nowhere
    at.press("Train")
    at.reads("#lorakit_message", "Training")
    assert [concept["trigger"] for concept in page.trainer.submitted[0]["concept"]] == [held(at, "word"), "zoruz"]


def test_a_taken_name_is_told_and_replaced_by_a_press(at: Person, page: Page) -> None:
    folder = page.trainer.root / "networks"
    folder.mkdir(exist_ok=True)
    (folder / "rex.safetensors").touch()
    at.fill("#lorakit_name", "rex")
    at.reads("#lorakit_name_check", "such a file already")
    at.press("Use rex-2")
    at.until(lambda: held(at, "name") == "rex-2", "the free name")
    at.reads("#lorakit_name_check", "<lora:rex-2:1>")


def test_a_base_that_is_chosen_later_is_seen(at: Person, page: Page) -> None:
    page.trainer.facts = type(SD1)("xl", "sdxl", 1024)
    at.reads("#lorakit_base", "SDXL")
    at.until(lambda: state(at)["values"]["data.resolution"] == "1024", "its resolution")
    page.trainer.facts = INPAINTING
    at.reads("#lorakit_base", "Cannot train against")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_wider_than_the_window(at: Person, page: Page, dark: bool, width: int) -> None:
    at.width(width, 1400)
    at.open(page.address, dark=dark)
    at.until(lambda: held(at, "name"), "a proposed name")
    at.press("Advanced")
    at.driver.execute_script("document.querySelectorAll('.lkf-section').forEach(one => { one.open = true; })")
    assert at.driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    own = json.dumps(at.complaints())
    assert "lorakit" not in own, own
