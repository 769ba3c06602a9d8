"""The Train tab of a real webui, driven in Chromium as a person would: captions, training, reload, resume, the card.

`LORAKIT_SHOTS` names a folder for screenshots of every state, to be looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora.miniature.subjects import SUBJECTS, photograph, write_photos
from tests.browser.person import Person, a_person

pytestmark = [pytest.mark.webui, pytest.mark.browser]
STEPS = 24
KEY_STEPS = 8
FOCUSED = "return (document.activeElement.closest('[id]') || {}).id"
PROMPT = "a big sks toy on a red background"


@pytest.fixture(scope="module")
def server(start: Any, setup_class: Any) -> Iterator[Any]:
    with start(setup_class()) as running:
        yield running


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with a_person(tmp_path_factory.mktemp("browser")) as somebody:
        yield somebody


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    write_photos(photograph(SUBJECTS["bo"], 6, 128, seed=1), folder, "sks")
    return folder


def shot(person: Person, name: str) -> None:
    """A screenshot, if asked for, in both themes and at two widths."""
    folder = os.environ.get("LORAKIT_SHOTS")
    if not folder:
        return
    for dark in (False, True):
        person.driver.execute_script("document.body.classList.toggle('dark', arguments[0])", dark)
        for width in (1280, 800):
            person.width(width)
            person.picture(Path(folder) / f"webui_{name}_{'dark' if dark else 'light'}_{width}.png")
    person.driver.execute_script("document.body.classList.remove('dark')")
    person.width(1280)


def status(server: Any) -> Any:
    return server.get("/lorakit/v1/status")


def test_from_pictures_to_a_picture(server: Any, person: Person, pictures: Path) -> None:
    person.width(1280)
    person.open(f"http://127.0.0.1:{server.port}")
    person.press("Train LoRA")
    shot(person, "empty")
    person.fill("#lorakit_folder", str(pictures))
    person.reads("#lorakit_pictures", "6")
    person.fill("#lorakit_word", "sks")
    person.fill("#lorakit_class", "toy")
    person.fill("#lorakit_name", "my toy")
    person.number("#lorakit_steps", STEPS)
    person.reads("#lorakit_estimate", "visits")

    person.press("Captions")
    person.until(lambda: len(person.all("#lorakit_caption_grid textarea")) == 6, "six captions")
    first = person.one("#lorakit_caption_grid textarea")
    first.clear()
    first.send_keys("a sks toy, seen in the webui")
    person.press("Save captions")
    person.until(lambda: "seen in the webui" in "".join(p.read_text() for p in pictures.glob("*.txt")), "it written")
    shot(person, "captions")
    person.press("Captions")

    person.press("Train", within="#lorakit_form")
    person.reads("#lorakit_progress", f"of {STEPS}", 240)
    person.until(lambda: status(server)["step"] >= 2, "two steps")
    shot(person, "running")
    person.press("txt2img")
    person.reads("body", "is training")
    shot(person, "banner")
    person.press("Train LoRA")
    person.press("Pause", within="#lorakit_running")
    person.reads("#lorakit_progress", "Paused", 120)
    done = status(server)["step"]
    assert 2 <= done < STEPS
    between, _ = server.picture("a red circle")
    shot(person, "paused")

    person.reload()
    person.press("Train LoRA")
    person.reads("#lorakit_progress", "Paused")
    person.until(lambda: person.value("#lorakit_folder") == str(pictures), "what was typed before the reload")
    person.press("Resume", within="#lorakit_running")
    person.until(lambda: status(server)["step"] > done, "a step more", 120)
    person.press("Cancel", within="#lorakit_running")
    person.press("Press again to cancel", within="#lorakit_running")
    person.reads("#lorakit_progress", "Stopped", 120)
    assert done < status(server)["step"] < STEPS
    person.press("Resume", within="#lorakit_running")
    person.reads("#lorakit_progress", "Finished", 300)
    assert status(server)["step"] == STEPS and (server.networks / "my toy.safetensors").is_file()
    after, _ = server.picture("a red circle")
    assert (between == after).all(), "training left something in the model"
    person.reads("#lorakit_after", "<lora:my toy:1>")
    shot(person, "finished")

    person.press("Send the tag to txt2img")
    prompt = "#txt2img_prompt"
    assert "<lora:my toy:1>" in person.value(prompt)
    person.fill(prompt, f"{PROMPT} <lora:my toy:1>")
    for name, number in (("width", 128), ("height", 128), ("steps", 8)):
        person.number(f"#txt2img_{name}", number)
    person.press("Generate", within="#txt2img_generate_box, #txt2img_actions_column")
    person.reads("#txt2img_results", "my toy", 240)
    shot(person, "drawn")


def test_the_card_writes_the_tag(server: Any, person: Person) -> None:
    person.press("txt2img")
    person.fill("#txt2img_prompt", "a toy")
    person.press("Lora", within="#txt2img_extra_tabs")
    person.until(lambda: person.all("#txt2img_lora_cards .card[data-name='my toy']"), "the card")
    shot(person, "card")  # it came without anybody pressing Refresh
    person.one("#txt2img_lora_cards .card[data-name='my toy']").click()
    person.until(lambda: "<lora:my toy:1>" in person.value("#txt2img_prompt"), "the tag")
    assert "sks toy" in person.value("#txt2img_prompt")


def test_by_keys_alone(server: Any, person: Person, pictures: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    person.open(f"http://127.0.0.1:{server.port}")
    person.tab_to("#tabs button", "Train LoRA")
    person.keys(Keys.ENTER)
    person.until(lambda: person.value("#lorakit_name"), "the form filled in")
    person.tab_to("#lorakit_folder")
    person.anew(str(pictures))
    person.until(lambda: len(person.all("#lorakit_pictures_grid img")) == 6, "six pictures")
    person.tab_to("#lorakit_captions", "Captions")
    person.keys(Keys.SPACE)
    person.until(lambda: len(person.all("#lorakit_caption_grid textarea")) == 6, "six captions")
    person.tab_to("#lorakit_caption_grid")
    person.anew("a sks toy by keys alone")
    person.driver.switch_to.active_element.send_keys(Keys.CONTROL, "s")
    person.until(lambda: "by keys alone" in "".join(p.read_text() for p in pictures.glob("*.txt")), "it written")
    kept = "return document.activeElement.dataset.lkCaption"  # the grid came anew meanwhile
    person.until(lambda: person.driver.execute_script(kept), "the focus where it was")
    person.tab_to("#lorakit_name")
    person.anew("by keys")
    person.tab_to("#lorakit_steps input[type=number]")
    person.anew(str(KEY_STEPS))
    person.tab_to("#lorakit_start")
    person.keys(Keys.ENTER)
    person.until(lambda: status(server)["name"] == "by keys" and status(server)["step"] >= 1, "a step", 240)
    person.tab_to("#lorakit_progress", "Pause")
    person.keys(Keys.SPACE)
    person.reads("#lorakit_progress", "Paused", 120)
    person.until(lambda: person.driver.switch_to.active_element.text == "Resume", "the focus on what can be pressed")
    shot(person, "keys")
    person.keys(Keys.ENTER)
    person.reads("#lorakit_progress", "Finished", 300)
    person.reads("#lorakit_after", "<lora:by keys:1>")
    person.tab_to("#lorakit_after", "Send the tag")
    person.keys(Keys.ENTER)
    person.until(lambda: person.driver.execute_script(FOCUSED) == "txt2img_prompt", "the prompt in focus")
    person.until(lambda: "<lora:by keys:1>" in person.value("#txt2img_prompt"), "the tag")


def test_two_windows_presets_and_job_files(server: Any, person: Person) -> None:
    first, name = person.driver.current_window_handle, status(server)["name"]
    person.press("Train LoRA", "#tabs")
    person.driver.switch_to.new_window("window")
    try:
        person.width(1280)
        person.open(f"http://127.0.0.1:{server.port}")
        person.press("Train LoRA", "#tabs")
        person.reads("#lorakit_progress", f"Finished {name}")
        rank, form = "#lkf-network-rank", "#lorakit_form"
        person.press("Advanced", form)
        person.fill("#lorakit_find", "network.rank", whole=True)
        person.fill(rank, "6", whole=True)
        person.press("Presets and wizards", form)
        person.fill("#lorakit_preset_name", "six")
        person.press("Save preset", form)
        person.reads("#lorakit_preset_message", "is saved")
        person.press("Defaults", form)
        person.reads("#lorakit_preset_message", "as at the beginning")
        person.until(lambda: person.one(rank).get_attribute("value") == "16", "the usual rank")
        person.press("Use preset", form)  # it is still the chosen one
        person.until(lambda: person.one(rank).get_attribute("value") == "6", "the preset's rank")
        person.press("Job file and server", form)
        person.press("Show this form", form)
        person.until(lambda: "rank = 6" in person.value("#lorakit_toml"), "the job")
        person.fill("#lorakit_toml", "[data]\nfolder = 'x'\ntrigger = 'sks'\n[network]\nrank = 5\n")
        person.press("Read into the form", form)
        person.until(lambda: person.one(rank).get_attribute("value") == "5", "the job's rank")
        person.press("Delete preset", form)
        person.press("Yes", form)
        person.reads("#lorakit_preset_message", "is deleted")
        person.one("#lorakit_runs .lk-link").click()
        person.press("Repeat with changes", "#lorakit_detail")
        person.until(lambda: person.value("#lorakit_name") == name, "the run's settings")
        person.press("Forget", "#lorakit_detail")
        person.until(lambda: [b.click() for b in person.all("#lorakit_detail .lk-asked")], "the question")
        person.until(lambda: name not in person.text("#lorakit_runs"), "the run gone")
    finally:
        person.driver.close()
        person.driver.switch_to.window(first)
    person.until(lambda: name not in person.text("#lorakit_runs"), "it gone here as well")


def test_nothing_complains(server: Any, person: Person) -> None:
    assert server.faults() == []
    ours = [line for line in person.complaints() if "lorakit" in line.lower()]
    assert ours == []


def test_where_others_can_look(start: Any, setup_class: Any, person: Person, pictures: Path) -> None:
    with start(setup_class(arguments=["--hide-ui-dir-config"])) as server:
        person.open(f"http://127.0.0.1:{server.port}")
        person.press("Train LoRA")
        person.fill("#lorakit_folder", str(pictures))
        person.reads("#lorakit_pictures", "this webui is open to others")
        person.press("Train", within="#lorakit_form")
        person.reads("#lorakit_message", "this webui is open to others")
        assert str(server.data) not in person.text("body")
        shot(person, "open")
        dropped = person.driver.find_element("css selector", "#lorakit_drop input[type=file]")
        dropped.send_keys("\n".join(map(str, sorted(pictures.glob("*.png")))))
        person.until(lambda: len(person.all("#lorakit_pictures_grid img")) == 6, "six pictures")
        person.driver.get("about:blank")  # a page that asks would break the start of the next webui at this port
    assert server.faults() == []
