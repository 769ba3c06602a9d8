"""The background service: one job at a time, every end told, nothing left running."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadConfig, BadDataset, Cancelled, LoraError, TrainingFailed
from lib_lora.train.config import JobConfig
from lib_lora.ui.service import PLOTTED, BackgroundService, Event, check_folder


def service_of(run: Callable[..., Path], **defaults: Any) -> BackgroundService:
    return BackgroundService(run, lambda: "base", lambda: {"output.name": "rex", **defaults})


def started(folder: Path) -> dict[str, Any]:
    return {"preset": "quick test", "data.folder": str(folder), "data.trigger": "sks", "data.class_word": "dog"}


def test_finished_job_gives_file_tag_and_words(tmp_path: Path) -> None:
    jobs: list[JobConfig] = []
    told: list[str] = []

    def run(job: JobConfig, on_event: Callable[[Event], None], cancel: Callable[[], bool]) -> Path:
        jobs.append(job)
        for event in ({"type": "preparing", "done": 1, "total": 2}, {"type": "note", "message": "no mask"}):
            on_event(event)
            told.append(service.status().message)
        on_event({"type": "started", "steps": 3, "step": 0})
        for step in range(1, 4):
            on_event({"type": "step", "step": step, "steps": 3, "loss": 1.0 / step, "eta_s": 3.0 - step})
        on_event({"type": "sample", "picture": str(tmp_path / "a.png")})
        return tmp_path / "rex.safetensors"

    service = service_of(run, **{"data.resolution": 128})
    service.start(started(tmp_path))
    status = service.wait(10)
    assert (status.state, status.step, status.total, status.losses) == ("finished", 3, 3, (1.0, 0.5, 1.0 / 3))
    assert status.result == tmp_path / "rex.safetensors"
    assert (status.tag, status.words) == ("<lora:rex:1>", "sks dog")
    assert status.samples == (tmp_path / "a.png",)
    assert told == ["making pictures ready: 1 of 2", "no mask"]
    assert jobs[0].data.resolution == 128 and jobs[0].training.steps == 50


@pytest.mark.parametrize(
    ("method", "tag"),
    [("lcm", "<lora:rex:1>"), ("hypernetwork", "<hypernet:rex:1>"), ("textual_inversion", "rex"), ("dreambooth", "")],
)
def test_each_kind_of_training_has_its_own_tag(tmp_path: Path, method: str, tag: str) -> None:
    service = service_of(lambda job, on_event, cancel: tmp_path / "x", **{"method.name": method})
    service.start(started(tmp_path))
    assert service.wait(10).tag == tag


def test_second_job_is_refused_and_cancel_stops_the_first(tmp_path: Path) -> None:
    ready = threading.Event()

    def run(job: JobConfig, on_event: Callable[[Event], None], cancel: Callable[[], bool]) -> Path:
        ready.set()
        while not cancel():
            threading.Event().wait(0.01)
        raise Cancelled("stopped at step 0 of 50")

    service = service_of(run)
    assert service.cancel() == "Nothing is being trained."
    service.start(started(tmp_path))
    assert ready.wait(10)
    with pytest.raises(BadConfig, match="rex.*being trained"):
        service.start(started(tmp_path))
    assert service.status().state == "running"
    service.cancel()
    status = service.wait(10)
    assert status.state == "cancelled" and "step 0 of 50" in status.message
    assert service.status().result is None


@pytest.mark.parametrize(
    ("error", "told"), [(TrainingFailed("step 2: loss = nan"), "loss = nan"), (ZeroDivisionError(), "unexpectedly")]
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_failure_is_never_shown_as_finished(tmp_path: Path, error: Exception, told: str) -> None:
    def run(job: JobConfig, on_event: Callable[[Event], None], cancel: Callable[[], bool]) -> Path:
        raise error

    service = service_of(run)
    service.start(started(tmp_path))
    status = service.wait(10)
    assert status.state == "failed" and told in status.message and status.result is None


def test_curve_stays_short(tmp_path: Path) -> None:
    def run(job: JobConfig, on_event: Callable[[Event], None], cancel: Callable[[], bool]) -> Path:
        for step in range(5 * PLOTTED):
            on_event({"type": "step", "step": step, "steps": 5 * PLOTTED, "loss": float(step), "eta_s": 0.0})
        return tmp_path

    service = service_of(run)
    service.start(started(tmp_path))
    losses = service.wait(20).losses
    assert len(losses) <= PLOTTED and losses[0] == 0.0 and list(losses) == sorted(losses)


def test_bad_settings_are_refused_before_anything_runs(tmp_path: Path) -> None:
    def run(*_: Any) -> Path:
        raise AssertionError("must not run")

    service = service_of(run)
    with pytest.raises(BadDataset, match="no folder"):
        service.start(started(tmp_path / "nowhere"))
    with pytest.raises(BadConfig, match="preset 'x'"):
        service.start({**started(tmp_path), "preset": "x"})
    assert service.status().state == "idle"


def test_check_folder(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("")
    assert check_folder(f' "{tmp_path}" ') == tmp_path
    for text, told in (("  ", "empty"), (str(file), "is a file"), (str(tmp_path / "b"), "no folder")):
        with pytest.raises(BadDataset, match=told):
            check_folder(text)


@pytest.mark.parametrize("text", ["~nobody-of-this-name/pictures", "x" * 5000])
def test_folders_no_system_has_are_told(text: str) -> None:
    with pytest.raises(BadDataset, match="no folder"):
        check_folder(text)


def test_a_name_that_is_taken_is_refused_at_once(tmp_path: Path) -> None:
    def run(*_: Any) -> Path:
        raise AssertionError("must not run")

    (tmp_path / "rex.safetensors").write_bytes(b"theirs")
    service = service_of(run, **{"output.network_folder": str(tmp_path)})
    with pytest.raises(BadConfig, match=r"rex.safetensors' exists already.*another output.name"):
        service.start(started(tmp_path))
    assert service.status().state == "idle"


@pytest.mark.parametrize(
    "wrong",
    [
        {"preset": ["subject"]}, {"preset": {"a": 1}}, {"preset": 5}, {"data.folder": 5}, {"data.folder": None},
        {"output.name": "../rex"}, {"output.name": ["rex"]}, {"training.steps": "5"}, {"training.steps": True},
        {"optimizer.lr": 10**400}, {"network.type": {}}, {"sample_prompts": "x"}, {"": 1},
        {"output.folder": "a\0b"},
    ],
)  # fmt: skip
def test_values_of_any_type_are_answered_in_words(tmp_path: Path, wrong: dict[str, Any]) -> None:
    def run(*_: Any) -> Path:
        raise AssertionError("must not run")

    with pytest.raises(LoraError):
        service_of(run).start({**started(tmp_path), **wrong})
