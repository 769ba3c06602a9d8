"""The page of our own in Chinese: whatever state it is in, no words of ours are left in English."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_lora.ui import page
from lib_lora.ui.compat import dictionaries
from lib_lora.ui.trainer import TrainStatus
from tests.browser.person import Person
from tests.browser.stage import Generator
from tests.train.drawn import put
from tests.ui import fake_trainer
from tests.ui.real_runs import make_run, trainer_with
from tests.ui.visible import MARK, is_words

pytestmark = pytest.mark.browser
CHINESE = re.compile(r"[\u4e00-\u9fff]")
NAME = f"rex{MARK}"
WORDS = dictionaries()["zh_CN"]
# Every text and spoken attribute in sight, but for code, values, and gradio's own foot of the page.
SEEN = """
const silent = "script, style, template, textarea, code, pre, option, footer, .notranslate, .lk-number";
const shown = (e) => e.checkVisibility ? e.checkVisibility({checkVisibilityCSS: true}) : e.offsetParent !== null;
const found = new Set();
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const e = node.parentElement;
    if (node.data.trim() && !e.closest(silent) && shown(e)) found.add(node.data.trim());
}
for (const e of document.querySelectorAll(".lorakit [title], .lorakit [placeholder], .lorakit [aria-label]")) {
    if (e.closest(silent.replace("textarea, ", "")) || !shown(e) || e.closest("[data-testid=block-info]")) continue;
    const said = ["title", "placeholder", "aria-label"].map((name) => e.getAttribute(name));
    for (const text of said) if (text) found.add(text);
}
return Array.from(found);
"""


class Drawer(Generator):
    """Has a network of a user's."""

    def networks(self) -> list[str]:
        return [NAME]


class Place:
    """The page over a trainer that knows one run; every kind of picture lies in `pictures`."""

    def __init__(self, root: Path) -> None:
        run = make_run(root, NAME, output__sample_prompts=(f"{MARK}photo", f"{MARK}beach"))
        self.run = replace(run, samples=tuple(replace(one, prompt=f"{MARK}photo") for one in run.samples))
        self.trainer = trainer_with(root, self.run)
        self.trainer.facts = replace(self.trainer.facts, name=NAME)
        self.pictures = root / f"set{MARK}"
        for n, (name, size) in enumerate((("a", (600, 600)), ("b", (600, 200)), ("c", (90, 90)), ("d", (640, 300)))):
            put(self.pictures, f"{name}{MARK}.png", n, size=size)
        put(self.pictures, f"e{MARK}.png", 0, size=(600, 600))
        (self.pictures / f"f{MARK}.png").write_bytes(b"broken")
        (self.pictures / f"a{MARK}.txt").write_text(f"{MARK}red, {MARK}dog")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/?__theme=light&language=zh_CN"
        self.page = page.build(Drawer(), self.trainer)
        page.launch(self.page, "127.0.0.1", port, block=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("chinese"))
    yield made
    made.page.close()


@pytest.fixture(scope="module")
def at(place: Place, person: Person) -> Person:
    """Somebody who reads Chinese, at the Train tab."""
    person.width(1280, 1400)
    person.driver.get(place.address)
    person.until(lambda: person.all("button"), "a page with buttons")
    person.press(WORDS["Train"])
    person.reads("#lorakit_progress", WORDS["Ready to train"])
    return person


def english(person: Person) -> list[str]:
    """What is still in English of all that can be seen."""
    translated = set(WORDS.values())
    seen = [str(text) for text in person.driver.execute_script(SEEN)]
    return [text for text in seen if is_words(text) and not CHINESE.search(text) and text not in translated]


def nothing_is_english(person: Person) -> None:
    """Once the page has settled."""
    person.until(lambda: not english(person) or None, f"Chinese instead of {english(person)}", 10)


def happens(place: Place, at: Person, now: TrainStatus) -> None:
    place.trainer.now = now
    at.driver.execute_script("window.lorakit.ask('running')")


def test_the_generate_tab(at: Person) -> None:
    at.press(WORDS["Generate"], "[role=tablist], .tab-nav")
    at.reads("#lorakit_generate", WORDS["Generate"])
    nothing_is_english(at)
    at.press(WORDS["Train"], "[role=tablist], .tab-nav")
    at.reads("#lorakit_page", WORDS["What to learn"])
    assert at.driver.execute_script("return document.documentElement.lang") == "zh-CN"


def test_the_page_before_anything(at: Person) -> None:
    for words in ("Captions", "Change all captions", "What the trigger should absorb", "Presets and wizards"):
        at.press(WORDS[words])
    for words in ("Advanced", "Job file and server"):
        at.press(WORDS[words])
    at.driver.execute_script(
        "document.querySelector('[data-lk=all]').click();"
        "document.querySelectorAll('.lkf-section').forEach((one) => { one.open = true; });"
    )
    at.reads("#lorakit_settings", WORDS["Weight decay"])
    nothing_is_english(at)


def test_settings_without_effect_say_why(at: Person) -> None:
    why = WORDS["only with"]
    at.until(lambda: any(why in one.text for one in at.all(".lkf-why")), "why a setting has no effect")
    nothing_is_english(at)


def test_pictures_and_captions(place: Place, at: Person) -> None:
    at.fill("#lorakit_folder", str(place.pictures))
    at.reads("#lorakit_pictures", WORDS["Too small"])
    at.reads("#lorakit_pictures", WORDS["Alike"])
    at.reads("#lorakit_caption_status", WORDS["With a caption:"])
    at.reads("#lorakit_estimate", WORDS["visits, about"])
    nothing_is_english(at)
    at.one("#lorakit_pictures_grid .lk-picture button").click()
    at.reads("#lorakit_pictures_told", WORDS["Put aside:"])
    nothing_is_english(at)


@pytest.mark.parametrize("state", ["running", "paused", "finished", "failed", "cancelled", "interrupted"])
def test_a_job_in_every_state(place: Place, at: Person, state: str) -> None:
    now = replace(
        fake_trainer.running(120, 400, NAME), id=place.run.id, state=state, samples=place.run.samples[:4],
        points=place.run.points[:120], log=("12:30:05 Finished after 400 steps.",), waiting=(place.run.id,),
    )  # fmt: skip
    happens(place, at, now)
    at.until(lambda: at.all(f"#lorakit_progress .lk-{state}"), state)
    at.reads("#lorakit_after", WORDS["Saved networks"] if state != "running" else WORDS["Result"])
    nothing_is_english(at)
    assert at.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_what_is_asked_and_told(place: Place, at: Person) -> None:
    happens(place, at, TrainStatus())
    at.reads("#lorakit_progress", WORDS["Ready to train"])
    at.press(NAME, "#lorakit_runs")
    at.reads("#lorakit_detail", "output.sample_prompts")
    at.driver.execute_script("document.querySelectorAll('#lorakit_detail details').forEach((d) => { d.open = true; })")
    nothing_is_english(at)
    at.press(WORDS["Forget"])
    at.reads("#lorakit_detail", WORDS["Press again to delete the run's folder:"])
    at.press(WORDS["Delete the others"])
    at.reads("#lorakit_after", WORDS["Press again to delete:"])
    nothing_is_english(at)


def test_picture_large_and_figures_under_the_mouse(place: Place, at: Person) -> None:
    happens(place, at, replace(fake_trainer.running(120, 400, NAME), id=place.run.id, samples=place.run.samples[:4]))
    at.one("#lorakit_samples .lk-open").click()
    at.reads(".lk-look", WORDS["Use as the card's picture"])
    nothing_is_english(at)
    at.press(WORDS["Close"], ".lk-look")
    plot = at.one("#lorakit_curves svg")
    at.see(plot)
    at.driver.execute_script("arguments[0].focus()", plot)
    plot.send_keys("\ue012")  # the left arrow
    at.reads(".lk-tip", WORDS["smoothed"])
    nothing_is_english(at)


def test_a_banner_and_a_notification(place: Place, at: Person) -> None:
    at.driver.execute_script(
        "window.told = []; window.Notification = class { constructor(title, options) {"
        "window.told.push([title, options.body]); } }; Notification.permission = 'granted';"
    )
    happens(place, at, replace(fake_trainer.running(120, 400, NAME), id=place.run.id))
    at.press(WORDS["Generate"], "[role=tablist], .tab-nav")
    at.reads(".lk-banner", WORDS["Pause training"])
    nothing_is_english(at)
    at.press(WORDS["Train"], "[role=tablist], .tab-nav")
    happens(place, at, replace(place.trainer.now, state="finished", step=400))
    told = at.until(lambda: at.driver.execute_script("return window.told"), "a notification")
    assert told == [[f"{WORDS['Training has finished']}: {NAME}", f"400 {WORDS['steps']}"]]


def test_words_of_a_user_stay(place: Place, at: Person) -> None:
    """A network that is called like a word of ours is not translated."""
    run: Any = replace(place.run, id="other", name="Training", state="finished")
    happens(place, at, replace(fake_trainer.running(3, 9, "Training"), waiting=("other",)))
    place.trainer.known = [place.run, run]
    at.reads("#lorakit_progress", "Training")
    at.driver.execute_script("window.lorakit.ask('running')")
    at.reads("#lorakit_queue", "Training")
    at.reads("#lorakit_runs", "Training")


def test_titles_as_in_the_webui(place: Place, at: Person) -> None:
    """There only texts are translated for us; titles of our own HTML by javascript/lorakit_words.js."""
    at.driver.get(place.address.replace("&language=zh_CN", "&language=en"))
    at.until(lambda: at.all("button"), "a page with buttons")
    at.press("Train", "[role=tablist], .tab-nav")
    at.reads("#lorakit_page", "What to learn")
    told = "Stop after this step; the model is free for drawing"
    where = "return document.querySelector('#lorakit_progress button').title"
    assert at.driver.execute_script(where) == told
    at.driver.execute_script("window.localization = arguments[0]; document.body.append('')", WORDS)
    at.until(lambda: at.driver.execute_script(where) == WORDS[told], "a title in Chinese")
