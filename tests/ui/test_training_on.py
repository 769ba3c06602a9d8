"""A run that goes on beyond its end as itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadConfig
from lib_lora.ui.after import After
from lib_lora.ui.html_running import WORDS
from lib_lora.ui.live import Request
from lib_lora.ui.running import Running
from lib_lora.ui.runs import Runs
from lib_lora.ui.trainer import RunFacts, TrainStatus
from lib_lora.ui.training_on import ENDED, form, train_on
from tests.ui.fake_trainer import FakeTrainer
from tests.ui.real_runs import make_run, trainer_with


@pytest.fixture
def run(tmp_path: Path) -> RunFacts:
    return make_run(tmp_path)


@pytest.fixture
def trainer(tmp_path: Path, run: RunFacts) -> FakeTrainer:
    return trainer_with(tmp_path, run)


def wish(steps: Any, id: str = "rex") -> dict[str, Any]:
    return {"do": "train_on", "run": id, "fields": {"on_steps": steps}}


def test_both_parts_offer_it_and_say_what_it_does(trainer: FakeTrainer) -> None:
    for html in (
        After(trainer, Running(trainer)).answer(Request())["after"],
        Runs(trainer).answer(Request(view={"open": "rex"}))["detail"],
    ):
        assert 'name="on_steps"' in html and 'value="133"' in html and 'data-form="rex"' in html
        assert "Takes this same run up where it ended" in html and "Train on</button>" in html


def test_it_resumes_with_more_steps_and_keeps_the_file_of_now(trainer: FakeTrainer, run: RunFacts) -> None:
    own = (run.folder / "rex.safetensors").read_bytes()
    told = After(trainer, Running(trainer)).answer(Request(do=wish("50")))["after_told"]
    assert "Going on." in told and "lk-bad" not in told
    assert trainer.named("resume") == [("rex", {"training.steps": 450, "training.epochs": None})]
    assert (run.folder / "checkpoints" / "rex-000400.safetensors").read_bytes() == own


def test_one_that_was_paused_gets_them_after_those_it_was_to_have(trainer: FakeTrainer, run: RunFacts) -> None:
    trainer.known = [replace(run, state="paused", step=120)]
    assert "lk-bad" not in Runs(trainer).answer(Request(do=wish(" 10 ")))["runs_told"]
    assert trainer.named("resume") == [("rex", {"training.steps": 410, "training.epochs": None})]


@pytest.mark.parametrize("steps", ["", "0", "-5", "1.5", "many", "99999999999", 7, None])
def test_no_number_starts_nothing(trainer: FakeTrainer, run: RunFacts, steps: Any) -> None:
    with pytest.raises(BadConfig, match="takes a whole number"):
        train_on(trainer, wish(steps))
    assert trainer.named("resume") == [] and len(list((run.folder / "checkpoints").iterdir())) == 3


@pytest.mark.parametrize("state", [state for state in WORDS if state not in ENDED])
def test_one_that_is_not_over_is_left_alone(trainer: FakeTrainer, run: RunFacts, state: str) -> None:
    trainer.known = [replace(run, state=state)]
    assert form(trainer.known[0]) == ""
    with pytest.raises(BadConfig, match="no state to go on from"):
        train_on(trainer, wish("5"))


def test_one_without_a_state_or_in_the_queue_offers_nothing(trainer: FakeTrainer, run: RunFacts) -> None:
    assert form(replace(run, can_resume=False)) == ""
    trainer.now = TrainStatus("running", "other", "other", waiting=("rex",))
    assert "on_steps" not in Runs(trainer).answer(Request(view={"open": "rex"}))["detail"]


def test_a_file_of_others_is_not_put_aside_as_its_own(trainer: FakeTrainer, run: RunFacts) -> None:
    (run.folder / "rex.safetensors").unlink()
    run.files[0].write_bytes(b"another's")
    train_on(trainer, wish("5"))
    assert not (run.folder / "checkpoints" / "rex-000400.safetensors").exists()
