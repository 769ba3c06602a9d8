"""Jobs one after another: order, pausing, failing, and a program that is killed. What trains is a stand-in here."""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadConfig, BadFile, Cancelled, Paused, TrainingFailed
from lib_lora.train.config import JobConfig
from lib_lora.train.control import Control
from lib_lora.train.history import History
from lib_lora.train.jobs import Run, stamp
from lib_lora.train.queue import JobQueue, QueueState

Make = Callable[..., JobConfig]
WAIT = 30.0


class Trainer:
    """Trains by taking steps when it is let; writes the events that the engine would."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = threading.Event()  # set: a job finishes at once
        self.fail: dict[str, BaseException] = {}
        self.steps = threading.Semaphore(0)

    def __call__(self, run: Run, control: Control) -> None:
        with run.locked():
            step = run.status().step
            run.append(stamp("started", folder=str(run.folder), step=step, steps=9))
            self.begun.append(run.folder.name)
            while not self.go.is_set() and run.folder.name not in self.fail:
                time.sleep(0.002)
                kind = "cancelled" if control.cancelled() else "paused" if control.paused() else ""
                if control.saving():
                    control.saved()
                    run.append(stamp("saved", step=step, path="x"))
                if kind:
                    run.state.write_bytes(b"state")
                    run.append(stamp(kind, step=step, steps=9, message=kind))
                    raise {"paused": Paused, "cancelled": Cancelled}[kind](kind)
            if run.folder.name in self.fail:
                raise self.fail[run.folder.name]
            run.append(stamp("finished", step=9, steps=9, file="f"))


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    made = Trainer()
    yield made
    made.go.set()


@pytest.fixture
def open_queue(tmp_path: Path, trainer: Trainer) -> Iterator[Callable[..., JobQueue]]:
    made: list[JobQueue] = []

    def build(train: Any = trainer) -> JobQueue:
        made.append(JobQueue(tmp_path / "home", History(tmp_path / "runs"), train))
        return made[-1]

    yield build
    for queue in made:
        queue.close(WAIT)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def state(queue: JobQueue, id: str) -> str:
    return queue._history.state_of(id)


def test_jobs_follow_one_another_in_order(make: Make, open_queue: Any, trainer: Trainer) -> None:
    queue = open_queue()
    assert queue.state() == QueueState()
    assert [queue.submit(make(output__name=name)) for name in "abcd"] == list("abcd")
    until(lambda: trainer.begun == ["a"])
    assert queue.state() == QueueState("a", ("b", "c", "d"), busy=True)
    assert [state(queue, id) for id in "ab"] == ["running", "queued"]
    queue.move("d", -2)
    queue.move("b", 9)
    assert queue.state().waiting == ("d", "c", "b")
    with pytest.raises(BadConfig, match="'a' does not wait"):
        queue.move("a", 1)
    assert queue.remove("c") and not queue.remove("c") and not queue.remove("a")
    assert state(queue, "c") == "cancelled"
    trainer.go.set()
    until(lambda: not queue.state().busy)
    assert trainer.begun == ["a", "d", "b"] and queue.state() == QueueState("b")
    assert [state(queue, id) for id in "adb"] == ["finished"] * 3


def test_paused_waits_with_the_queue_and_goes_on_first(make: Make, open_queue: Any, trainer: Trainer) -> None:
    queue = open_queue()
    assert not queue.pause() and not queue.save_now() and queue.cancel() == ""
    for name in "ab":
        queue.submit(make(output__name=name))
    until(lambda: trainer.begun == ["a"])
    assert queue.save_now()
    until(lambda: queue.state().asked == "")
    assert queue.pause()
    queue.wait(WAIT)
    assert queue.state() == QueueState("a", ("b",), halted=True) and state(queue, "a") == "paused"
    assert queue.submit(make(output__name="c")) == "c"
    time.sleep(0.05)
    assert trainer.begun == ["a"], "the queue waits too"
    trainer.go.set()
    assert queue.resume() == "a"
    until(lambda: not queue.state().busy)
    assert trainer.begun == ["a", "a", "b", "c"]
    with pytest.raises(BadConfig, match="nothing is paused"):
        queue.resume()
    with pytest.raises(BadConfig, match="run 'a' is finished; repeat it"):
        queue.resume("a")
    with pytest.raises(BadConfig, match="there is no run"):
        queue.resume("../a")


def test_cancelled_is_kept_and_can_be_taken_up_again(make: Make, open_queue: Any, trainer: Trainer) -> None:
    queue = open_queue()
    for name in "ab":
        queue.submit(make(output__name=name))
    until(lambda: trainer.begun == ["a"])
    assert queue.cancel("b") == "removed" and queue.cancel("nobody") == ""
    assert queue.cancel("a") == "stopping"
    queue.wait(WAIT)
    assert (state(queue, "a"), state(queue, "b")) == ("cancelled", "cancelled")
    assert queue.resume("b") == "b"
    until(lambda: trainer.begun == ["a", "b"])
    assert queue.resume("a") == "a" and queue.state().waiting == ("a",), "behind what is being trained"
    with pytest.raises(BadConfig, match="'b' is being trained"):
        queue.resume("b")
    queue.pause()
    queue.wait(WAIT)
    assert queue.cancel() == "removed" and state(queue, "b") == "cancelled"
    until(lambda: trainer.begun == ["a", "b", "a"])  # what was paused is done with: the queue goes on


@pytest.mark.parametrize(
    ("error", "told"), [(TrainingFailed("out of memory at step 3"), "out of memory"), (ZeroDivisionError(), "console")]
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_job_that_fails_is_told_and_the_others_go_on(
    make: Make, open_queue: Any, trainer: Trainer, error: BaseException, told: str
) -> None:
    queue = open_queue()
    trainer.fail["a"] = error
    trainer.go.set()
    for name in "abc":
        queue.submit(make(output__name=name))
    until(lambda: trainer.begun == ["a", "b", "c"] and not queue.state().busy)
    assert [state(queue, id) for id in "abc"] == ["failed", "finished", "finished"]
    assert told in queue._history.facts("a").message
    trainer.fail.clear()
    queue.resume("a")
    until(lambda: state(queue, "a") == "finished")


def test_a_program_that_starts_again_finds_everything(
    make: Make, open_queue: Any, trainer: Trainer, tmp_path: Path
) -> None:
    queue = open_queue()
    for name in "abc":
        queue.submit(make(output__name=name))
    until(lambda: trainer.begun == ["a"])
    queue.close()
    queue.wait(WAIT)
    with pytest.raises(BadConfig, match="does not wait"):
        queue.move("a", 1)
    second = open_queue()
    assert second.state() == QueueState("a", ("b", "c"), halted=True)
    time.sleep(0.05)
    assert trainer.begun == ["a"], "nothing begins by itself"
    assert second.resume() == "a"
    trainer.go.set()
    until(lambda: trainer.begun == ["a", "a", "b", "c"])


def test_killed_between_taking_and_beginning_a_job(make: Make, open_queue: Any, tmp_path: Path) -> None:
    history = History(tmp_path / "runs")
    for name in "ab":
        run = Run.create(make(output__name=name))
        run.append(stamp("queued"))
    (tmp_path / "home").mkdir()
    kept = {"hand": "a", "waiting": ["b", "gone", "../b", 5, "b"]}
    (tmp_path / "home" / "queue.json").write_text(json.dumps(kept))
    queue = open_queue()
    assert queue.state().waiting == ("a", "b") and queue.state().halted
    assert history.state_of("a") == "queued"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"hand": 1}', '{"hand": "a", "waiting": 3}', "\x00"])
def test_a_damaged_queue_costs_the_order_and_no_run(make: Make, open_queue: Any, tmp_path: Path, text: str) -> None:
    Run.create(make(output__name="a")).append(stamp("queued"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "queue.json").write_text(text)
    queue = open_queue()
    assert queue.state() == QueueState()
    assert queue.resume("a") == "a"


def test_an_interrupted_run_stands_in_nobodys_way(
    make: Make, open_queue: Any, trainer: Trainer, tmp_path: Path
) -> None:
    run = Run.create(make(output__name="a"))
    run.append(stamp("started", step=0, steps=9))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "queue.json").write_text('{"hand": "a", "waiting": []}')
    queue = open_queue()
    assert queue.state() == QueueState("a") and state(queue, "a") == "interrupted"
    trainer.go.set()
    queue.submit(make(output__name="b"))
    until(lambda: trainer.begun == ["b"] and not queue.state().busy)
    queue.resume("a")
    until(lambda: trainer.begun == ["b", "a"])


def test_two_programs_have_a_queue_each_and_never_train_the_same_run(
    make: Make, open_queue: Any, trainer: Trainer, tmp_path: Path
) -> None:
    first, second = open_queue(), open_queue()
    first.submit(make(output__name="a"))
    until(lambda: trainer.begun == ["a"])
    with pytest.raises(BadConfig, match="'a' is being trained by another program"):
        second.resume("a")
    second.submit(make(output__name="b"))
    second.submit(make(output__name="c"))
    assert (first.state().waiting, second.state().waiting) == ((), ("c",))
    until(lambda: trainer.begun == ["a", "b"])
    first.close(WAIT)
    second.close(WAIT)
    third = open_queue()  # takes over what both left
    assert third.state().hand == "a" and third.state().waiting == ("c",)
    assert {state(third, id) for id in "ab"} == {"paused"}
    assert len(list((tmp_path / "home").glob("queue*.json"))) == 1


def test_a_run_taken_by_another_program_in_the_last_moment(make: Make, open_queue: Any, trainer: Trainer) -> None:
    """Between looking and beginning: what it writes into its events must not be disturbed."""
    held = threading.Event()

    def train(run: Run, control: Control) -> None:
        with Run(run.folder).locked():
            run.append(stamp("started", step=0, steps=9))
            held.set()
            trainer(run, control)

    queue = open_queue(train)
    queue.submit(make(output__name="a"))
    assert held.wait(WAIT)
    queue.wait(WAIT)  # the lock within the lock is refused, and released again
    assert not queue.state().busy and state(queue, "a") == "failed"


def test_a_run_deleted_by_hand_is_passed_over(make: Make, open_queue: Any, trainer: Trainer, tmp_path: Path) -> None:
    import shutil

    queue = open_queue()
    for name in "abc":
        queue.submit(make(output__name=name))
    until(lambda: trainer.begun == ["a"])
    shutil.rmtree(tmp_path / "runs" / "b")
    trainer.go.set()
    until(lambda: trainer.begun == ["a", "c"])


def test_a_folder_that_cannot_be_written_costs_only_the_memory_of_the_order(
    make: Make, trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    queue = JobQueue(tmp_path / "file" / "home", History(tmp_path / "runs"), trainer)
    assert "what waits is lost when this program ends" in caplog.text
    trainer.go.set()
    queue.submit(make(output__name="a"))
    until(lambda: state(queue, "a") == "finished")


def test_a_full_disk_is_told_and_queues_nothing(
    make: Make, open_queue: Any, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = open_queue()
    waiting = [queue.submit(make(output__name=name)) for name in "ab"]

    def full(run: Run, event: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Run, "append", full)
        with pytest.raises(BadFile, match="No space left"):
            queue.submit(make(output__name="c"))
        with pytest.raises(BadFile, match="No space left"):
            queue.cancel("b")
    assert waiting == ["a", "b"] and queue.state().waiting == ("b",)
    assert not (tmp_path / "runs" / "c").exists(), "its name is free"
    queue.cancel("b")
    assert queue.state().waiting == () and state(queue, "b") == "cancelled"


def test_a_waiting_run_that_was_deleted_by_hand_can_be_taken_out(make: Make, open_queue: Any, tmp_path: Path) -> None:
    queue = open_queue()
    for name in "ab":
        queue.submit(make(output__name=name))
    shutil.rmtree(tmp_path / "runs" / "b")
    assert queue.cancel("b") == "removed" and queue.state().waiting == ()
