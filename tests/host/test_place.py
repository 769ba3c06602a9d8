"""The webui as the place of training: its rules, its queue, its model, and its API's password."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_lora.errors import BadConfig, Paused, WrongBaseModel
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.callbacks import Lorakit, training_api
from lib_lora.host.place import WebuiPlace
from lib_lora.host.webui import WebuiHost
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train.engine import train
from lib_lora.train.jobs import Run
from lib_lora.ui.api import PREFIX
from lib_lora.ui.local_trainer import LocalTrainer

WAIT = 60.0


class Host(WebuiHost):
    """The webui's host around the tiny model, which no webui could load."""

    tiny: Any = None

    def model(self) -> Any:
        return self.tiny

    def exclusive(self, job: Callable[[], Any], name: str = "LoRA training", prove: bool = True) -> Any:
        state = self.webui.shared.state
        with self.webui.call_queue.queue_lock:
            state.begin(job=name)
            state.interrupted = False
            try:
                self.restore()
                with torch.inference_mode(False), torch.enable_grad():
                    return job()
            finally:
                state.end()


@pytest.fixture
def host(webui: Any, tiny_model: DiffusersModel) -> Host:
    webui.shared.state.interrupted = False
    made = Host(webui, BuiltinLora(webui))
    made.tiny = tiny_model
    return made


@pytest.fixture
def place(host: Host, tag: Any, monkeypatch: pytest.MonkeyPatch) -> WebuiPlace:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setattr("lib_lora.host.training.require_packages", lambda: None)
    new_files = lambda: host.webui.log.append("new files")  # noqa: E731
    return WebuiPlace(host, tag.runtime.library, new_files, tag.neighbours.presets)


@pytest.fixture
def trainer(place: WebuiPlace) -> Iterator[LocalTrainer]:
    made = LocalTrainer(place)
    yield made
    made.close(WAIT)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "pictures").mkdir()
    for number, colour in enumerate(["red", "blue"]):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "pictures" / f"{number}.png")
    return {
        "preset": "quick test", "data.folder": str(tmp_path / "pictures"), "data.trigger": "sks",
        "data.resolution": 64, "training.batch_size": 2, "training.steps": 8, "output.name": "rex",
        "output.sidecar": False, "optimizer.lr": 1e-2,
    }  # fmt: skip


class Gate:
    """Holds a run at its first step until it is let go."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.append = Run.append

    def __call__(self, run: Run, event: dict[str, Any]) -> None:
        self.append(run, event)
        if event["type"] == "step" and event["step"] == 1:
            self.reached.set()
            assert self.go.wait(WAIT)


def until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def test_a_picture_in_between_and_the_run_is_as_if_nothing_was(
    webui: Any, host: Host, trainer: LocalTrainer, settings: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    gate = Gate()
    monkeypatch.setattr("lib_lora.host.training.resolution_of", lambda model: 64)
    other = trainer.job({**settings, "output.folder": str(tmp_path / "other"), "output.network_folder": ""})
    whole = train(other, host.tiny).file.read_bytes()
    lock, state = webui.call_queue.queue_lock, webui.shared.state
    monkeypatch.setattr(Run, "append", lambda run, event: gate(run, event))
    with lock:  # a picture is being drawn
        trainer.submit(settings)
        until(lambda: trainer.status().state == "running")
        assert trainer.status().doing == "waiting for the model"
    assert gate.reached.wait(WAIT) and trainer.status().step == 1
    assert not lock.acquire(timeout=0.01)
    trainer.pause()
    gate.go.set()
    assert lock.acquire(timeout=WAIT), "the next picture comes at once"
    trainer.queue.wait(WAIT)
    with torch.no_grad():
        host.tiny.predict(torch.randn(1, 4, 16, 16), torch.tensor([5]), host.tiny.encode_text(["a cat"]))
    lock.release()
    assert (trainer.status().state, trainer.status().step) == ("paused", 1)
    assert str(state.textinfo) == "training rex: step 1 of 8"
    pictures = trainer.draw(["a cat", "a cat"], 5, 2, 4.0)
    assert pictures[0].tobytes() == pictures[1].tobytes() and webui.log.count("begin LoRA pictures") == 1
    trainer.resume()
    until(lambda: trainer.status().state == "finished")
    assert trainer.status().result == tmp_path / "Lora" / "rex.safetensors"
    assert trainer.status().result.read_bytes() == whole
    until(lambda: "new files" in webui.log)
    assert lock.acquire(timeout=WAIT)
    lock.release()


def test_another_checkpoint_chosen_while_the_run_waits_is_not_trained(
    webui: Any, trainer: LocalTrainer, settings: dict[str, Any]
) -> None:
    """The webui's queue: a picture, then the change of the checkpoint, then the run."""
    with webui.call_queue.queue_lock:
        trainer.submit(settings)
        until(lambda: trainer.status().doing == "waiting for the model")
        webui.shared.sd_model.sd_checkpoint_info.name_for_extra = "b"
    trainer.queue.wait(WAIT)
    assert trainer.status().state == "failed" and "is for the base 'a', 'b' is loaded" in trainer.status().doing


def test_the_webuis_own_interrupt_pauses_a_run_and_the_queue(
    webui: Any, trainer: LocalTrainer, settings: dict[str, Any], tmp_path: Path
) -> None:
    trainer.submit({**settings, "training.steps": 100000})
    until(lambda: trainer.status().step >= 1)
    webui.shared.state.interrupted = True
    until(lambda: trainer.status().state == "paused")
    assert trainer.queue.wait(WAIT).halted
    assert Run(tmp_path / "lorakit-runs" / "rex").state.is_file()
    trainer.resume()
    until(lambda: trainer.status().state == "running" and trainer.status().doing == "training")


def test_what_is_wrong_with_the_base_is_told(webui: Any, place: WebuiPlace) -> None:
    facts = place.base()
    assert (facts.name, facts.version, place.loaded()) == ("a", "sd1", "a")
    assert facts.refused == ""
    model = webui.shared.sd_model
    model.lowvram = True
    assert "--medvram" in place.base().refused
    model.lowvram = False
    inner = model.model.diffusion_model
    inner.input_blocks[0][0] = torch.nn.Conv2d(9, 8, 3)
    assert "inpainting" in place.base().refused
    del inner.input_blocks
    assert "cannot train on this checkpoint" in place.base().refused
    webui.sd_models.model_data.sd_model = None
    webui.shared.opts.sd_model_checkpoint = "chosen.safetensors [abc]"
    assert (place.base().name, place.base().refused, place.loaded()) == ("chosen.safetensors [abc]", "", "")


def test_training_refuses_what_the_model_cannot(
    host: Host, trainer: LocalTrainer, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told in the run, though the engine never began."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise WrongBaseModel("the checkpoint is on the cpu; load it")

    monkeypatch.setattr(host, "exclusive", refuse)
    id = trainer.submit(settings)
    until(lambda: trainer.status().state == "failed")
    assert trainer.run(id).message == "the checkpoint is on the cpu; load it"


def test_an_error_nobody_foresaw_is_told(
    host: Host, trainer: LocalTrainer, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "exclusive", lambda *_, **__: 1 / 0)
    trainer.submit(settings)
    until(lambda: trainer.status().state == "failed")
    assert "ZeroDivisionError" in trainer.status().doing and "console" in trainer.status().doing


@pytest.mark.parametrize("what", ["data.folder", "the captions' folder", "output.network_folder"])
def test_paths_of_an_exposed_webui_stay_inside(
    webui: Any, trainer: LocalTrainer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, what: str
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (tmp_path / "out").symlink_to(elsewhere)
    outside = [str(elsewhere), str(tmp_path / ".." / elsewhere.name), str(tmp_path / "out"), "/", f" '{elsewhere}' "]
    assert [trainer.allowed(path, what) for path in outside[:2]] == [elsewhere, elsewhere]
    webui.shared.cmd_opts.hide_ui_dir_config = True
    assert trainer.allowed(f' "{tmp_path}/pictures" ', what) == tmp_path / "pictures"
    for path in outside:
        with pytest.raises(BadConfig, match="open to others"):
            trainer.allowed(path, what)
    for path in ("", "  ", "a\0b", "\ud800"):
        with pytest.raises(BadConfig, match="is not a path"):
            trainer.allowed(path, what)
    shared = tmp_path_factory.mktemp("shared")
    webui.shared.cmd_opts.lora_dir = str(shared)
    if what == "output.network_folder":
        assert trainer.allowed(str(shared), what) == shared
    else:
        with pytest.raises(BadConfig, match="open to others"):
            trainer.allowed(str(shared), what)


def test_an_exposed_webui_submits_no_job_outside(
    webui: Any, trainer: LocalTrainer, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    webui.shared.cmd_opts.hide_ui_dir_config = True
    elsewhere = str(tmp_path_factory.mktemp("elsewhere"))
    for wrong in ({"data.folder": elsewhere}, {"data.folder": "/no/such"}, {"data.mask_folder": elsewhere}):
        with pytest.raises(BadConfig, match="open to others"):  # and not whether it exists
            trainer.submit({**settings, **wrong})
    assert trainer.runs() == []


@pytest.fixture
def kit(webui: Any, loud: Path) -> Iterator[Lorakit]:
    made = Lorakit(webui)
    yield made
    made.unload()


@pytest.mark.parametrize("password", [False, True])
def test_http_is_there_with_the_webuis_api_and_behind_its_password(kit: Lorakit, password: bool) -> None:
    pytest.importorskip("fastapi")
    from fastapi import Depends, FastAPI, HTTPException
    from fastapi.security import HTTPBasic, HTTPBasicCredentials
    from fastapi.testclient import TestClient

    def auth(credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> bool:  # noqa: B008 - as in the webui
        if (credentials.username, credentials.password) != ("me", "secret"):
            raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})
        return True

    auth.__annotations__ = {"credentials": HTTPBasicCredentials, "return": bool}
    bare = FastAPI()
    training_api(bare, kit)
    assert TestClient(bare).get(f"{PREFIX}/status").status_code == 404
    app = FastAPI()
    app.add_api_route("/sdapi/v1/sd-models", list, methods=["GET"], dependencies=[Depends(auth)] if password else [])
    training_api(app, kit)
    http = TestClient(app)
    if password:
        assert http.get(f"{PREFIX}/status").status_code == 401
        assert http.get(f"{PREFIX}/status", auth=("me", "wrong")).status_code == 401
        assert http.post(f"{PREFIX}/jobs", json={}, auth=("me", "wrong")).status_code == 401
    right: Any = {"auth": ("me", "secret")} if password else {}
    assert http.get(f"{PREFIX}/status", **right).json()["state"] == "idle"
    assert http.post(f"{PREFIX}/jobs", json={"data.folder": "/no/such"}, **right).status_code == 422


def test_unloading_pauses_and_the_next_one_finds_it(webui: Any, loud: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reload UI in the middle of a run."""
    kit, begun = Lorakit(webui), threading.Event()

    def place_train(self: WebuiPlace, job: Any, run: Run, control: Any) -> None:
        with run.locked():
            run.append({"type": "started", "time": 0.0, "step": 0, "steps": 9})
            begun.set()
            until(control.paused)
            run.append({"type": "paused", "time": 0.0, "step": 1, "steps": 9, "message": ""})
        raise Paused("paused")

    monkeypatch.setattr(WebuiPlace, "train", place_train)
    folder = Path(webui.paths.data_path) / "pictures"
    folder.mkdir()
    first = kit.trainer
    first.submit({"data.folder": str(folder), "output.name": "rex"})
    assert begun.wait(WAIT) and kit.trainer is first
    kit.unload()
    first.queue.wait(WAIT)
    again = Lorakit(webui)
    assert again.trainer.status().state == "paused"
    again.trainer.resume()
    until(lambda: again.trainer.status().state == "running")
    again.unload()
    again.trainer.queue.wait(WAIT)
