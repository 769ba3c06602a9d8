"""The trainer behind the page, over a place that only writes the events of training."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadConfig, BadDataset, LoraError, Paused
from lib_lora.train.config import JobConfig, fields
from lib_lora.train.control import Control
from lib_lora.train.jobs import Run, stamp
from lib_lora.ui.drawing import Drawing
from lib_lora.ui.local_trainer import LocalTrainer
from lib_lora.ui.standing import HALTED
from lib_lora.ui.trainer import BaseFacts, Trainer

WAIT = 30.0


class Place:
    """Takes a step each time it is let."""

    def __init__(self, root: Path) -> None:
        self.root, self.facts = root, BaseFacts("mine", "sd1", 512)
        self.let = threading.Semaphore(0)
        self.refuse = ""
        self.drawn: list[Drawing] = []
        self.told: list[str] = []

    def base(self) -> BaseFacts:
        return self.facts

    def loaded(self) -> str:
        return self.facts.name

    def defaults(self) -> dict[str, Any]:
        folders = {"output.folder": str(self.root / "runs"), "output.network_folder": str(self.root / "networks")}
        return {**folders, "output.name": "rex", "training.steps": 4, "data.resolution": 128}

    def home(self) -> Path:
        return self.root / "home"

    def check(self, job: JobConfig) -> None:
        if self.refuse:
            raise BadConfig(self.refuse)

    def allowed(self, path: str, what: str) -> Path:
        return Path(path)

    def train(self, job: JobConfig, run: Run, control: Control) -> None:
        with run.locked():
            step, steps = run.status().step, job.training.steps
            run.append(stamp("preparing", done=1, total=3))
            assert self.let.acquire(timeout=WAIT)
            run.append(stamp("started", step=step, steps=steps, pictures=3))
            while step < steps:
                assert self.let.acquire(timeout=WAIT)
                if control.paused():
                    run.state.write_bytes(b"")
                    run.append(stamp("paused", step=step, steps=steps, message=f"in {self.root}"))
                    raise Paused("paused")
                step += 1
                figures = {"epoch": 1, "lr": 1e-3, "eta_s": 9.0, "step_s": 0.5}
                run.append(stamp("step", step=step, steps=steps, loss=1 / step, **figures))
            file = self.root / "networks" / f"{job.output.name}.safetensors"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"network")
            run.append(stamp("finished", step=step, steps=steps, file=str(file), files=[str(file)]))

    def draw(self, drawing: Drawing) -> Sequence[Any]:
        self.drawn.append(drawing)
        return list(drawing.prompts)

    def changed(self) -> None:
        self.told.append("changed")

    def for_the_page(self, message: str) -> str:
        return message.replace(str(self.root), "(data)")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def open_trainer(place: Place) -> Iterator[Callable[[], LocalTrainer]]:
    made: list[LocalTrainer] = []

    def build() -> LocalTrainer:
        made.append(LocalTrainer(place))
        return made[-1]

    yield build
    for trainer in made:
        trainer.close()
        place.let.release(100)
        trainer.queue.wait(WAIT)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def settings(pictures: Path, **more: Any) -> dict[str, Any]:
    given = {"data.folder": str(pictures), "data.trigger": "sks", "data.class_word": "dog"}
    return {**given, **{name.replace("__", "."): value for name, value in more.items()}}


def until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def test_from_settings_to_a_tag(open_trainer: Any, place: Place, pictures: Path) -> None:
    trainer: Trainer = open_trainer()
    assert (trainer.status().state, trainer.status().doing, trainer.runs()) == ("idle", "", [])
    id = trainer.submit(settings(pictures, output__sample_every=0))
    until(lambda: trainer.status().doing == "making pictures ready: 1 of 3")
    place.let.release(3)
    until(lambda: trainer.status().step == 2)
    status = trainer.status()
    assert (status.state, status.id, status.name, status.total, status.epoch) == ("running", "rex", "rex", 4, 1)
    assert (status.loss, status.lr, status.eta_s, status.step_s, status.doing) == (0.5, 1e-3, 9.0, 0.5, "training")
    assert [point.loss for point in status.points] == [1.0, 0.5] and status.memory and status.result is None
    assert [trainer.save_now(), trainer.status().doing] == [
        "The network is kept after this step.", "keeping the network after this step",
    ]  # fmt: skip
    json.dumps(status.as_json())
    with pytest.raises(BadConfig, match="busy training"):
        trainer.draw(["a"], 1, 2, 3.0)
    place.let.release(2)
    until(lambda: trainer.status().state == "finished")
    done = trainer.status()
    assert done.result == place.root / "networks" / "rex.safetensors" and done.eta_s is None
    assert (done.tag, done.words, done.log[-1].partition(" ")[2]) == (
        "<lora:rex:1>",
        "sks dog",
        "Finished after 4 steps.",
    )
    until(lambda: place.told == ["changed"])
    assert trainer.run(id).files == (done.result,) and trainer.runs()[0].points == ()
    assert trainer.job(trainer.settings_of(id)) == trainer.job(settings(pictures, output__sample_every=0))


def test_two_pages_and_one_after_a_restart_see_the_same(
    open_trainer: Any, place: Place, pictures: Path, tmp_path: Path
) -> None:
    first = open_trainer()
    for name in "ab":
        first.submit(settings(pictures, output__name=name))
    place.let.release(3)
    until(lambda: first.status().step == 2)
    assert first.status().waiting == ("b",)
    assert first.pause() == "Pausing after this step." and first.status().doing == "pausing after this step"
    first.close()
    place.let.release()
    first.queue.wait(WAIT)
    second = open_trainer()
    status = second.status()
    assert (status.state, status.id, status.step, status.total, status.waiting) == ("paused", "a", 2, 4, ("b",))
    assert status.doing == "in (data)" and [point.step for point in status.points] == [1, 2]
    assert second.run("a").message == "in (data)" and "in (data)" in status.log[-1], "an exposed host hides folders"
    assert second.draw(["x <lora:y:1>"], 1, 2, 3.0, "bad", {"y": tmp_path}) == ["x <lora:y:1>"]
    assert place.drawn == [Drawing(("x <lora:y:1>",), 1, 2, 3.0, 512, "bad", {"y": tmp_path})]
    assert second.submit(settings(pictures, output__name="c")) == "c"
    assert second.resume() == "Going on with 'a'."
    assert second.resume("c") == "'c' goes on when its turn comes."
    place.let.release(100)
    until(lambda: [run.state for run in second.runs()] == ["finished"] * 3)


def test_after_a_restart_only_what_waited_is_told(open_trainer: Any, place: Place, pictures: Path) -> None:
    first = open_trainer()
    first.submit(settings(pictures))
    until(lambda: first.status().doing.startswith("making"))
    first.pause()
    first.submit(settings(pictures, output__name="b"))
    first.cancel("rex")
    first.pause()
    first.close()
    second = open_trainer()
    assert second.status().doing.endswith(HALTED) and second.status().waiting == ("b",)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"data__folder": "/nowhere"}, "no folder '/nowhere'"),
        ({"data__folder": ""}, "the folder of pictures is empty"),
        ({"output__folder": "/elsewhere"}, "output.folder = '/elsewhere' is not where this page keeps its runs"),
        ({"preset": "x"}, "preset 'x' is unknown"),
        ({"network__rank": 0}, "network.rank = 0 is not accepted"),
        ({"concept": [{"trigger": "a"}, {"trigger": "b", "folder": "/nowhere"}]}, "no folder '/nowhere'"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_queued(
    open_trainer: Any, pictures: Path, wrong: dict[str, Any], told: str
) -> None:
    trainer = open_trainer()
    with pytest.raises(LoraError, match=told):
        trainer.submit(settings(pictures, **wrong))
    assert trainer.runs() == [] and trainer.status().state == "idle"


def test_a_place_or_a_base_that_refuses(open_trainer: Any, place: Place, pictures: Path) -> None:
    trainer = open_trainer()
    place.refuse = "outside of what you may use"
    with pytest.raises(BadConfig, match="outside of what"):
        trainer.submit(settings(pictures))
    place.facts = BaseFacts("paint", "sd1", 512, "it is an inpainting model")
    for ask in (lambda: trainer.submit(settings(pictures)), trainer.resume):
        with pytest.raises(BadConfig, match="inpainting"):
            ask()
    assert trainer.runs() == []


def test_a_kind_without_pictures_needs_no_folder(open_trainer: Any) -> None:
    kind = {"preset": "style", "method.name": "slider", "method.slider_target": "dog", "method.slider_positive": "big"}
    known = {item.key for item in fields()}
    assert open_trainer().submit({key: value for key, value in kind.items() if key in {"preset", *known}}) == "rex"


def test_a_name_is_taken_also_by_what_waits(open_trainer: Any, place: Place, pictures: Path) -> None:
    trainer = open_trainer()
    trainer.submit(settings(pictures))
    trainer.submit(settings(pictures, output__name="b"))
    for name in ("rex", "b"):
        with pytest.raises(BadConfig, match=f"output.name = '{name}' is what run '{name}' is called"):
            trainer.submit(settings(pictures, output__name=name))
    assert trainer.cancel("b") == "Taken out of the queue."
    assert trainer.submit(settings(pictures, output__name="b")) == "b-2"
    (place.root / "networks").mkdir(exist_ok=True)
    (place.root / "networks" / "c.safetensors").write_bytes(b"theirs")
    with pytest.raises(BadConfig, match="c.safetensors' exists already"):
        trainer.submit(settings(pictures, output__name="c"))


def test_a_run_goes_on_with_its_own_base_only(open_trainer: Any, place: Place, pictures: Path) -> None:
    trainer = open_trainer()
    for name in "ab":
        trainer.submit(settings(pictures, output__name=name))
    place.let.release(3)
    until(lambda: trainer.status().step == 2)
    trainer.pause()
    place.let.release()
    trainer.queue.wait(WAIT)
    place.facts = BaseFacts("other", "sd1", 512)
    with pytest.raises(BadConfig, match="run 'a' is for the base 'mine', 'other' is loaded; load that one and resume"):
        trainer.resume()
    assert trainer.status().state == "paused"
    place.facts = BaseFacts("mine", "sd1", 512)
    trainer.resume()
    until(lambda: trainer.status().doing.startswith("making"))
    place.facts = BaseFacts("other", "sd1", 512)  # changed while the other one waits
    place.let.release(100)
    until(lambda: [run.state for run in trainer.runs()] == ["failed", "finished"])
    assert "'other' is loaded" in trainer.run("b").message


def test_forgetting(open_trainer: Any, place: Place, pictures: Path) -> None:
    trainer = open_trainer()
    trainer.submit(settings(pictures, output__name="a"))
    trainer.submit(settings(pictures, output__name="b"))
    until(lambda: trainer.status().doing.startswith("making"))
    for id in "ab":
        with pytest.raises(BadConfig, match="waits or is being trained; cancel it first"):
            trainer.forget(id)
    place.let.release(100)
    until(lambda: [run.state for run in trainer.runs()] == ["finished"] * 2 and not trainer.queue.state().busy)
    assert trainer.forget("b") == "Deleted the run 'b'."
    assert trainer.status().state == "idle" and [run.id for run in trainer.runs()] == ["a"]
    assert (place.root / "networks" / "b.safetensors").is_file(), "what it made stays"
    for id in ("b", "../runs/a", ""):
        with pytest.raises(BadConfig, match="there is no run"):
            trainer.forget(id)


def test_nothing_in_hand_is_told(open_trainer: Any) -> None:
    trainer = open_trainer()
    assert {trainer.pause(), trainer.cancel(), trainer.cancel("x"), trainer.save_now()} == {"Nothing is being trained."}
    with pytest.raises(BadConfig, match="nothing is paused"):
        trainer.resume()
    with pytest.raises(BadConfig, match="there is no run"):
        trainer.resume("x")


def test_a_folder_of_pictures_that_is_a_file(open_trainer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(BadDataset, match="is a file"):
        open_trainer().submit(settings(tmp_path / "a.png"))


def test_going_on_with_other_settings(open_trainer: Any, place: Place, pictures: Path) -> None:
    trainer = open_trainer()
    trainer.submit(settings(pictures))
    place.let.release(3)
    until(lambda: trainer.status().step == 2)
    trainer.pause()
    place.let.release()
    trainer.queue.wait(WAIT)
    for wrong, told in (
        ({"training.steps": 0}, "training.steps = 0 is not accepted"),
        ({"output.name": "other"}, "output.name = 'other' cannot be changed on the way"),
        ({"output.folder": "/x"}, "output.folder = '/x' cannot be changed"),
    ):
        with pytest.raises(BadConfig, match=told):
            trainer.resume("", wrong)
    assert trainer.status().state == "paused"
    trainer.resume("", {"training.steps": 6})
    trainer.close()
    place.let.release(100)
    trainer.queue.wait(WAIT)
    again = open_trainer()
    again.resume()
    until(lambda: again.status().state == "finished")
    assert (again.status().total, again.status().step) == (6, 6), "also after a restart"
    with pytest.raises(BadConfig, match="is finished; repeat it"):
        again.resume("rex")
    assert again.resume("rex", {"training.steps": 8}) == "Going on with 'rex'."
    until(lambda: again.status().state == "finished" and again.status().step == 8)


def test_after_the_page_is_loaded_anew_the_old_one_draws_no_more(open_trainer: Any, place: Place) -> None:
    """A comparison goes on in a thread of its own, which would take the model from the new page's."""
    trainer = open_trainer()
    assert trainer.draw(["a"], 1, 2, 7.0) == ["a"]
    trainer.close()
    with pytest.raises(BadConfig, match="loaded anew"):
        trainer.draw(["a"], 1, 2, 7.0)
    assert len(place.drawn) == 1


def test_a_run_that_begins_while_it_is_forgotten_is_kept(
    open_trainer: Any, place: Place, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forget in one tab, Resume in another."""
    trainer = open_trainer()
    id = trainer.submit(settings(pictures))
    place.let.release(2)
    until(lambda: trainer.status().step == 1)
    trainer.pause()
    place.let.release(1)
    until(lambda: trainer.status().state == "paused" and not trainer.queue.state().busy)
    real, others, went_on = Run.locked, list[threading.Thread](), list[str]()

    @contextmanager
    def locked(run: Run) -> Iterator[None]:
        with real(run):
            yield
        monkeypatch.undo()
        others.append(threading.Thread(target=resumed))
        others[0].start()
        others[0].join(0.5)

    def resumed() -> None:
        with suppress(BadConfig):  # it is gone
            went_on.append(trainer.resume(id))

    monkeypatch.setattr(Run, "locked", locked)
    with suppress(BadConfig):
        trainer.forget(id)
    place.let.release(100)
    others[0].join(WAIT)
    until(lambda: not trainer.queue.state().busy)
    assert [run.state for run in trainer.runs()] == ["finished"] * len(went_on), "what goes on is not deleted"


def test_a_missing_package_is_told_before_it_is_queued(
    open_trainer: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda asked: None)
    trainer: Trainer = open_trainer()
    with pytest.raises(BadConfig, match="needs bitsandbytes"):
        trainer.submit(settings(pictures, optimizer__name="adamw8bit"))
    assert trainer.runs() == []
