"""What is told is taken back once it is old, an end that the next job hides is told, boxes are checked at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_lora.ui import html
from lib_lora.ui.trainer import RunFacts
from tests.browser.person import Person
from tests.browser.stage import Stage
from tests.ui import fake_trainer
from tests.ui.real_runs import make_run, trainer_with

pytestmark = pytest.mark.browser
NOTES = """
window.told = [];
window.Notification = class { constructor(title, options) { window.told.push([title, options.body]); } };
Notification.permission = "granted";
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notices")


@pytest.fixture(scope="module")
def run(root: Path) -> RunFacts:
    return make_run(root, steps=1000)


@pytest.fixture(scope="module")
def stage(root: Path, person: Person) -> Iterator[Stage]:
    made = Stage(root)
    person.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NOTES})
    yield made
    made.close()


@pytest.fixture
def at(stage: Stage, person: Person, run: RunFacts, root: Path) -> Person:
    """Somebody at a fresh Train tab while max-1 is trained."""
    stage.trainer.__dict__.update(vars(trainer_with(root, run)))
    stage.trainer.now = replace(fake_trainer.running(120, 400), id="max-1", name="max")
    person.width(1280, 1400)
    person.open(stage.address)
    person.until(lambda: train_tab(person) or True, "the tab")
    script(person, "sessionStorage.clear(); window.told = []")
    person.reads("#lorakit_progress", "120 of 400")
    return person


def train_tab(person: Person) -> None:
    """Choose the tab (gradio 6 keeps a second, hidden row of them)."""
    found = person.driver.find_elements("css selector", ".tab-nav button, [role=tab]")
    next(one for one in found if one.text.strip() == "Train" and one.get_attribute("tabindex") != "-1").click()


def script(person: Person, code: str, *arguments: Any) -> Any:
    return person.driver.execute_script(code, *arguments)


def ask(person: Person) -> None:
    script(person, "window.lorakit.ask('running')")


def test_a_wish_is_no_news_once_it_came_true(stage: Stage, at: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = stage.trainer
    monkeypatch.setattr(trainer, "pause", lambda: "Pausing after this step.")
    for _ in range(2):  # what is told a second time is seen a second time
        trainer.now = replace(trainer.now, state="running")
        ask(at)
        at.reads("#lorakit_progress", "Training")
        at.press("Pause")
        at.reads("#lorakit_told", "Pausing after this step.")
        trainer.now = replace(trainer.now, state="paused")
        ask(at)
        at.reads("#lorakit_progress", "Paused")
        assert at.driver.find_element("id", "lorakit_told").text == ""


def test_what_was_told_goes_after_a_while_and_faults_stay(stage: Stage, at: Person) -> None:
    at.press("Save now")
    at.reads("#lorakit_told", "Saving after this step.")
    at.until(lambda: at.driver.find_element("id", "lorakit_told").text == "", "nothing told any more")
    script(at, "window.lorakit.act('running', {do: 'nonsense'})")
    at.reads("#lorakit_told", "something unknown")
    stage.trainer.now = replace(stage.trainer.now, state="paused")
    ask(at)
    at.reads("#lorakit_progress", "Paused")
    assert "something unknown" in at.text("#lorakit_told")


@pytest.mark.parametrize("until", ["begins", "ends"])
def test_what_the_train_button_said_goes_with_the_job(stage: Stage, at: Person, until: str) -> None:
    place = "document.querySelector('#lorakit_running').insertAdjacentHTML('beforebegin', arguments[0])"
    for id, state in (("tom-1", "paused"), ("kim-1", "finished")):
        told = f'<div id="lorakit_message">{html.of_job(id, "Training.", until)}</div>'
        script(at, f"document.querySelector('#lorakit_message')?.remove(); {place}", told)
        ask(at)
        time.sleep(2.5)  # more than one look at it
        assert at.text("#lorakit_message") == "Training.", "gone while another job is in hand"
        stage.trainer.now = replace(fake_trainer.running(3, 400), id=id, name=id)
        ask(at)
        at.reads("#lorakit_progress", id)
        if until == "ends":
            time.sleep(2.5)
            assert at.text("#lorakit_message") == "Training.", "gone before the end"
            stage.trainer.now = replace(stage.trainer.now, state=state)
            ask(at)
        at.until(lambda: at.driver.find_element("id", "lorakit_message").text == "", "nothing told any more")


def test_an_end_that_the_next_job_hides_is_told(stage: Stage, at: Person, run: RunFacts) -> None:
    trainer = stage.trainer
    over = replace(run, id="max-1", name="max", state="finished", step=400, message="")
    trainer.known = [over, run]
    trainer.now = replace(trainer.now, id="tom-1", name="tom", step=1)
    ask(at)
    at.until(lambda: script(at, "return window.told.length"), "a notification")
    assert script(at, "return window.told") == [["Training has finished: max", "400 steps"]]
    trainer.known = [replace(over, id="tom-1", name="tom", state="cancelled"), run]
    trainer.now = replace(trainer.now, id="kim-1", name="kim")  # tom was cancelled: no news
    ask(at)
    at.reads("#lorakit_progress", "Training kim")
    at.until(lambda: not script(at, "return window.lorakit.panel('running').view.watched"), "the answer on tom")
    trainer.known = [replace(over, id="kim-1", name="kim"), run]
    trainer.now = replace(trainer.now, id="pat-1", name="pat", state="failed", doing="it broke")  # at once
    ask(at)
    at.until(lambda: len(script(at, "return window.told")) == 3, "two more notifications")
    assert sorted(script(at, "return window.told.slice(1)")) == [
        ["Training failed: pat", "it broke"], ["Training has finished: kim", "400 steps"],
    ]  # fmt: skip


def test_all_boxes_or_none_by_keyboard(stage: Stage, at: Person) -> None:
    from selenium.webdriver.common.keys import Keys

    def checked() -> int:
        return int(script(at, "return document.querySelectorAll('[name=labels]:checked').length"))

    at.reads("#lorakit_after", "Result rex")
    assert checked() == 6
    for words, count in (("Check all", 10), ("Check none", 0), ("Check all", 10)):
        button = next(one for one in at.all("#lorakit_after button") if one.text == words)
        button.send_keys(Keys.ENTER)
        assert checked() == count


def test_what_was_typed_for_one_run_is_not_another_ones(stage: Stage, at: Person, run: RunFacts, root: Path) -> None:
    words = make_run(root, "kim", method__name="textual_inversion", output__sample_prompts=("photo of sks",))
    stage.trainer.known = [run, words]
    script(at, "window.lorakit.look('after', {run: 'kim'}, true)")
    at.reads("#lorakit_after", "Result kim")
    script(
        at, "document.querySelector('[name=prompts]').value = 'typed'; document.querySelector('[name=seed]').value = 99"
    )
    script(at, "window.lorakit.ask('after')")
    script(at, "window.lorakit.look('after', {run: 'rex'}, true)")
    at.reads("#lorakit_after", "Result rex")
    fields = (
        "return ['more_name', 'prompts', 'seed', 'strengths'].map((n) => document.querySelector(`[name=${n}]`).value)"
    )
    found = script(at, fields)
    assert found[0] == "rex-more" and found[1].startswith("a photo of sks dog") and found[2:] == ["1", "0.6, 0.8, 1"]


def test_a_run_is_trained_on_from_both_parts(stage: Stage, at: Person, run: RunFacts) -> None:
    for part in ("#lorakit_after", "#lorakit_detail"):
        stage.trainer.now = replace(stage.trainer.now, state="finished", id="max-1")
        script(at, "window.lorakit.look('runs', {open: 'rex'}, true)")
        at.reads(part, "Train further")
        at.fill(f"{part} [name=on_steps]", "50", whole=True)
        at.press("Train on", within=part)
        at.until(lambda: stage.trainer.named("resume"), "the run goes on")
        assert stage.trainer.named("resume") == [("rex", {"training.steps": 1050, "training.epochs": None})]
        stage.trainer.calls.clear()
