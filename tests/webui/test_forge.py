"""A real Forge, with our extension and without it: its own pictures bit for bit, the Train tab, training by HTTP.

See conftest.py for the variables; `LORAKIT_SHOTS` names a folder for screenshots, to be looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest

from lib_lora.miniature.subjects import SUBJECTS, photograph, write_photos
from tests.browser.person import Person, a_person

pytestmark = pytest.mark.webui
PROMPT = "a red circle on a blue background"
STEPS = 2  # of a picture: Forge takes seconds for each on a CPU
PATIENCE = 900.0


@dataclass(frozen=True)
class Shots:
    """Pictures and infotexts."""

    plain: Any
    tagged: Any
    parts: Any
    infotexts: tuple[str, ...]


def shoot(server: Any) -> Shots:
    prompts = (PROMPT, f"{PROMPT} <lora:loud:1>", f"{PROMPT} <lora:loud:0.7:-0.4>")
    made = [server.picture(prompt, steps=STEPS) for prompt in prompts]
    return Shots(*(picture for picture, _ in made), tuple(text for _, text in made))


@pytest.fixture(scope="module")
def without(start_forge: Any, setup_class: Any) -> Shots:
    with start_forge(setup_class(ours=None)) as server:
        return shoot(server)


@pytest.fixture(scope="module")
def forge(start_forge: Any, setup_class: Any, without: Shots) -> Iterator[Any]:
    with start_forge(setup_class()) as server:
        yield server


@pytest.fixture(scope="module")
def shots(forge: Any) -> Shots:
    return shoot(forge)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_photos(photograph(SUBJECTS["bo"], 4, 128, seed=1), folder, "sks")
    return folder


@pytest.fixture(scope="module")
def learned(forge: Any, pictures: Path) -> Any:
    """The status of a finished run of that name, of small pictures: such of 512 pixels take minutes on a CPU."""
    settings = {"preset": "quick test", "data.folder": str(pictures), "data.trigger": "sks", "data.resolution": 64}
    settings |= {"output.name": "learned", "training.steps": 2, "training.batch_size": 1, "optimizer.lr": 0.05}
    settings |= {"output.sample_every": 2, "output.sample_steps": 1, "network.train_text_encoder": True}
    return forge.trained(settings, PATIENCE)


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with a_person(tmp_path_factory.mktemp("browser")) as somebody:
        yield somebody


def shot(person: Person, name: str) -> None:
    """A screenshot in both themes, if asked for."""
    folder = os.environ.get("LORAKIT_SHOTS")
    if folder:
        for dark in (False, True):
            person.driver.execute_script("document.body.classList.toggle('dark', arguments[0])", dark)
            person.picture(Path(folder) / f"forge-{name}-{'dark' if dark else 'light'}.png")
        person.driver.execute_script("document.body.classList.remove('dark')")


def test_pictures_are_forges_own_bit_for_bit(without: Shots, shots: Shots) -> None:
    for name in ("plain", "tagged", "parts"):
        assert numpy.array_equal(getattr(without, name), getattr(shots, name)), name
    assert without.infotexts == shots.infotexts and 'Lora hashes: "loud: ' in shots.infotexts[1]
    assert numpy.abs(shots.plain - shots.tagged).mean() > 5
    assert numpy.abs(shots.plain - shots.parts).mean() > 1


def test_who_applies_networks_is_said(forge: Any) -> None:
    assert "Forge applies <lora:...> by its own backend" in forge.log.read_text(errors="replace")
    assert "lorakit_apply" not in forge.get("/sdapi/v1/options")


def test_training_gives_a_tag_that_works_and_gives_all_back(forge: Any, shots: Shots, learned: Any) -> None:
    assert learned["step"] == learned["total"] == 2 and len(learned["samples"]) == 1
    plain, _ = forge.picture(PROMPT, steps=STEPS)
    assert numpy.array_equal(plain, shots.plain), "training left something behind"
    tagged, infotext = forge.picture(f"{PROMPT} {learned['tag']}", steps=STEPS)
    assert numpy.abs(tagged - plain).mean() > 0.5 and 'Lora hashes: "learned: ' in infotext
    assert 'data-name="learned"' in forge.get("/probe/cards?tab=txt2img")["html"].replace("'", '"')


def test_a_network_trained_anew_under_its_name_is_read_anew(forge: Any, learned: Any) -> None:
    """Forge keeps what it has read by the file's name."""
    file = forge.networks / "learned.safetensors"
    before, _ = forge.picture(f"{PROMPT} <lora:learned:1>", steps=STEPS)
    file.unlink()
    settings = forge.get("/lorakit/v1/jobs/learned/settings")
    forge.trained({**settings, "optimizer.lr": 0.1}, PATIENCE)
    after, _ = forge.picture(f"{PROMPT} <lora:learned:1>", steps=STEPS)
    assert file.is_file() and numpy.abs(before - after).mean() > 0.5


def test_another_kind_of_job_is_refused_with_a_reason(forge: Any, pictures: Path) -> None:
    with pytest.raises(AssertionError, match="Forge applies no hypernetworks"):
        forge.post("/lorakit/v1/jobs", {"data.folder": str(pictures), "method.name": "hypernetwork"})


@pytest.mark.browser
def test_the_tab_trains_and_the_card_comes(forge: Any, person: Person, learned: Any, pictures: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    person.width(1280)
    person.open(f"http://127.0.0.1:{forge.port}")
    person.press("Train LoRA")
    person.reads("#lorakit_progress", "", PATIENCE)
    person.fill("#lorakit_folder", str(pictures))
    person.reads("#lorakit_pictures", "4")
    person.one("#lorakit_runs .lk-link").click()
    person.press("Repeat with changes")
    person.until(lambda: person.value("#lorakit_name").startswith("learned"), "the form filled")
    name = person.one("#lorakit_name textarea, #lorakit_name input")
    name.send_keys(Keys.CONTROL, "a")
    name.send_keys("by hand", Keys.TAB)  # in one go: an empty name is given one from the trigger
    person.reads("#lorakit_estimate", "visits")
    shot(person, "form")
    person.press("Train", within="#lorakit_form")
    person.reads("#lorakit_progress", "by hand", PATIENCE)
    shot(person, "running")
    person.reads("#lorakit_progress", "Finished by hand", PATIENCE)
    person.reads("#lorakit_after", "<lora:by hand:1>", PATIENCE)
    shot(person, "finished")
    person.press("Send the tag to txt2img")
    person.until(lambda: "<lora:by hand:1>" in person.value("#txt2img_prompt"), "the tag in the prompt")
    person.press("Lora", within="#txt2img_extra_tabs")
    person.until(lambda: person.all("#txt2img_lora_cards .card[data-name='by hand']"), "the card")
    shot(person, "card")
    assert [line for line in person.complaints() if "lorakit" in line.lower()] == []


def test_reloading_the_ui_keeps_the_runs(forge: Any, shots: Shots, learned: Any) -> None:
    forge.reload()
    assert {run["id"] for run in forge.get("/lorakit/v1/jobs")} >= {"learned"}
    plain, _ = forge.picture(PROMPT, steps=STEPS)
    assert numpy.array_equal(plain, shots.plain)


def test_the_log_tells_of_no_exception(forge: Any, shots: Shots) -> None:
    assert forge.faults() == []
    assert "Traceback" not in forge.log.read_text(errors="replace")
