"""A running job is paused, asked to keep the network, and stopped: what comes out is what an undisturbed run makes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lib_lora.errors import Cancelled, Paused
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train import engine
from lib_lora.train.config import JobConfig
from lib_lora.train.control import Control
from lib_lora.train.engine import train
from lib_lora.train.jobs import Run

Make = Callable[..., JobConfig]


class At:
    """Hands each event on, and does something to a control when its time has come."""

    def __init__(self, control: Control, **deeds: int) -> None:
        self.control, self.deeds, self.events = control, deeds, list[dict[str, Any]]()

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        for deed, step in self.deeds.items():
            if event["type"] == "step" and event["step"] == step:
                getattr(self.control, deed)()

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events if event["type"] != "preparing"]


def test_wishes_and_their_order() -> None:
    control = Control()
    assert not (control() or control.cancelled() or control.paused() or control.saving())
    control.pause()
    assert control() and control.paused() and not control.cancelled()
    control.cancel()
    assert control() and control.cancelled() and not control.paused()
    control.save()
    assert control.saving()
    control.saved()
    assert not control.saving()


def test_whoever_says_stop_says_it_for_good() -> None:
    answers = [False, True, False]
    control = Control.of(lambda: answers.pop(0))
    assert [control(), control(), control(), control.cancelled()] == [False, True, True, True]
    assert Control.of(control) is control
    other, button = Control(), [False]
    other.pause_when(lambda: button[0])
    assert not other() and not other.paused()
    button[0] = True
    assert other() and other.paused() and not other.cancelled()
    button[0] = False
    assert other.paused()


@pytest.mark.parametrize(
    "more",
    [{}, {"optimizer__name": "prodigy"}, {"optimizer__ema": 0.9}, {"method__name": "pivotal_tuning"}],
    ids=["plain", "prodigy", "ema", "pivotal"],
)
def test_kept_on_the_way_and_paused_in_the_middle_is_bit_equal(
    make: Make, tiny_model: DiffusersModel, more: dict[str, Any]
) -> None:
    job = make(training__steps=4, network__train_text_encoder=True, data__flip=True, **more)
    whole = train(job, tiny_model)
    control = Control()
    seen = At(control, save=1, pause=3)
    with pytest.raises(Paused, match=r"paused at step 3 of 4; resume to go on \(the state after step 3 is saved in"):
        train(job, tiny_model, on_event=seen, cancel=control)
    kept = [Path(event["path"]) for event in seen.events if event["type"] == "saved"]
    count = len(kept)
    assert seen.kinds() == ["started", "step", *["saved"] * count, "step", "step", "paused"]
    assert count and all(path.is_file() and path.stem.endswith("-000001") for path in kept)
    run = Run(kept[0].parent.parent)
    status = run.status()
    assert (status.state, status.step, status.steps) == ("paused", 3, 4)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == sorted(
        ["state.safetensors", *(path.name for path in kept)]
    )
    resumed = train(job, tiny_model, resume=run.folder, cancel=Control())
    assert resumed.file.read_bytes() == whole.file.read_bytes()
    assert run.status().state == "finished"
    assert run.events()[-1]["files"][0] == str(resumed.file)


def test_what_was_kept_is_what_a_shorter_run_makes(make: Make, tiny_model: DiffusersModel) -> None:
    """All but what the file says of its run."""
    from safetensors.torch import load_file

    control = Control()
    seen = At(control, save=2)
    train(make(training__steps=3), tiny_model, on_event=seen, cancel=control)
    (kept,) = (event["path"] for event in seen.events if event["type"] == "saved" and event.get("asked"))
    other, short = load_file(kept), load_file(str(train(make(training__steps=2), tiny_model).file))
    assert other.keys() == short.keys() and all(other[name].equal(short[name]) for name in short)


def test_paused_before_the_first_step_and_while_pictures_are_read(make: Make, tiny_model: DiffusersModel) -> None:
    job = make(training__steps=2)
    whole = train(job, tiny_model)
    control = Control()
    control.pause()
    with pytest.raises(Paused, match="while reading pictures"):
        train(job, tiny_model, cancel=control)
    run = Run(whole.folder.with_name("toy-2"))
    assert run.status().state == "paused" and not run.state.exists()
    later = Control()
    with pytest.raises(Paused, match="paused at step 0 of 2"):
        train(job, tiny_model, resume=run.folder, cancel=later,
              on_event=lambda event: later.pause() if event["type"] == "started" else None)  # fmt: skip
    assert run.state.is_file()
    assert train(job, tiny_model, resume=run.folder).file.read_bytes() == whole.file.read_bytes()


def test_to_keep_and_to_pause_in_one_step_are_both_done(make: Make, tiny_model: DiffusersModel) -> None:
    control = Control()
    seen = At(control, save=1, pause=1)
    with pytest.raises(Paused):
        train(make(), tiny_model, on_event=seen, cancel=control)
    assert seen.kinds() == ["started", "step", "saved", "paused"]


class Others:
    """The other processes, of which one was asked for something."""

    def __init__(self, wish: str) -> None:
        self.other = Control()
        getattr(self.other, wish)()
        self.order = [self.other() or self.other.saving(), *(f() for f in (
            self.other.saving, self.other.cancelled, self.other.paused))]  # fmt: skip
        self.asked = 0

    def any(self, answer: bool) -> bool:
        self.asked += 1
        return answer or self.order[self.asked - 1]


@pytest.mark.parametrize(("wish", "ends"), [("pause", Paused), ("cancel", Cancelled), ("save", None)])
def test_what_one_process_is_asked_for_all_do(wish: str, ends: type[Exception] | None) -> None:
    kept: list[int] = []
    session: Any = SimpleNamespace(processes=Others(wish), plan=SimpleNamespace(steps=9))
    record: Any = SimpleNamespace(control=Control(), step=4, outputs=SimpleNamespace(keep_asked=kept.append))
    with pytest.raises(ends) if ends else nullcontext():
        engine._heed(session, record)
    assert kept == ([4] if wish == "save" else [])


def test_to_cancel_wins_over_to_pause(make: Make, tiny_model: DiffusersModel) -> None:
    control = Control()
    seen = At(control, pause=1, cancel=1)
    with pytest.raises(Cancelled, match="stopped at step 1") as told:
        train(make(), tiny_model, on_event=seen, cancel=control)
    assert not isinstance(told.value, Paused)
    assert seen.kinds()[-1] == "cancelled"


def test_what_the_user_kept_is_not_removed_by_keep_last(make: Make, tiny_model: DiffusersModel) -> None:
    control = Control()
    job = make(training__steps=8, output__save_every=2, output__keep_last=1)

    def at(event: dict[str, Any]) -> None:
        if event["type"] == "step" and event["step"] in (1, 2):
            control.save()
        if event["type"] == "step" and event["step"] == 3:
            control.cancel()

    with pytest.raises(Cancelled):
        train(job, tiny_model, on_event=at, cancel=control)
    run = Run(Path(job.output.folder) / "toy")
    train(job, tiny_model, resume=run.folder)  # what was asked for is known to the next process as well
    steps = sorted(path.stem for path in run.checkpoints.glob("toy-*.safetensors"))
    assert steps == ["toy-000001", "toy-000002", "toy-000003", "toy-000006"]


def test_wishes_in_the_last_step_come_to_nothing(make: Make, tiny_model: DiffusersModel) -> None:
    control = Control()
    seen = At(control, save=3, pause=3)
    assert train(make(), tiny_model, on_event=seen, cancel=control).steps == 3
    assert seen.kinds()[-1] == "finished"
