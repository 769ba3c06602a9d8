"""What is asked before it is done is asked of the thing that is then done, also when the page changes meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.browser.person import Person
from tests.browser.stage import Stage
from tests.ui import fake_trainer

pytestmark = pytest.mark.browser


@pytest.fixture
def stage(tmp_path: Path, person: Person) -> Iterator[Stage]:
    made = Stage(tmp_path)
    person.open(made.address)
    person.press("Train")
    yield made
    made.close()


def training(stage: Stage, person: Person, name: str) -> None:
    stage.trainer.now = replace(fake_trainer.running(120, 400), id=f"{name}-1", name=name)
    person.driver.execute_script("window.lorakit.ask('running')")
    person.reads("#lorakit_progress", name)


def test_a_question_does_not_stand_for_the_next_run(stage: Stage, person: Person) -> None:
    training(stage, person, "max")
    person.press("Cancel")
    training(stage, person, "tom")
    person.press("Press again to cancel")
    time.sleep(0.5)
    assert stage.trainer.named("cancel") == []
    person.press("Press again to cancel")
    person.until(lambda: stage.trainer.named("cancel") == [("tom-1",)], "tom's end")


def test_the_title_stays_short_whatever_the_run_is_called(stage: Stage, person: Person) -> None:
    training(stage, person, "rex \u2013 at night")
    person.until(lambda: person.driver.title == "30 % \u00b7 rex \u2013 at night \u2013 LoRA kit", "the title")
    stage.trainer.now = replace(stage.trainer.now, step=200)
    person.driver.execute_script("window.lorakit.ask('running')")
    person.until(lambda: "50 %" in person.driver.title, "the share")
    assert person.driver.title == "50 % \u00b7 rex \u2013 at night \u2013 LoRA kit"
    stage.trainer.now = replace(stage.trainer.now, state="finished")
    person.driver.execute_script("window.lorakit.ask('running')")
    person.until(lambda: person.driver.title == "LoRA kit", "the page's own title")
