"""Forge: tags and pictures are its own; the Train tab trains on the chosen checkpoint's file and gives all back."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib_lora.errors import BadConfig
from lib_lora.host import callbacks, forge, forge_base
from lib_lora.host.forge import ForgeKit
from lib_lora.host.forge_base import facts_of
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.train.engine import train
from lib_lora.ui.api import PREFIX

WAIT = 60.0
ENTRY = "model.diffusion_model.input_blocks.0.0.weight"
NAMES = ("before_ui", "app_started", "script_unloaded", "ui_tabs")


class Initial:
    """What Forge has in place of a model before it has read one."""


class Networks(ModuleType):
    """Forge's module `networks`: keeps what it has read, by the file's name."""

    def __init__(self) -> None:
        super().__init__("networks")
        self.lists = 0
        self.load_lora_state_dict = functools.lru_cache(maxsize=5)(lambda name: Path(name).read_bytes())

    def list_available_networks(self) -> None:
        self.lists += 1


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Networks:
    made = Networks()
    monkeypatch.setitem(sys.modules, "networks", made)
    return made


@pytest.fixture
def webui(webui: Any, tiny_checkpoint: Path) -> Any:
    """Forge's modules, with the tiny checkpoint chosen, read, and no network applied."""
    info = SimpleNamespace(filename=str(tiny_checkpoint), name_for_extra="tiny")
    webui.shared.sd_model = None
    webui.sd_models = SimpleNamespace(
        model_data=SimpleNamespace(
            sd_model=SimpleNamespace(current_lora_hash="[]"),
            forge_loading_parameters={"checkpoint_info": info},
            forge_hash="of the tiny one",
        ),
        checkpoint_aliases={"tiny": info},
        checkpoints_list={"tiny": info},
        FakeInitialModel=Initial,
        unload_model_weights=lambda: webui.log.append("unloaded"),
    )
    webui.processing.need_global_unload = False
    webui.devices.torch_gc = lambda: None
    webui.shared.OptionHTML = lambda text: SimpleNamespace(text=text)
    webui.shared.state.interrupted = False
    webui.script_callbacks = SimpleNamespace(
        **{f"on_{name}": lambda call, name=name: webui.registered.__setitem__(name, call) for name in NAMES}
    )
    webui.registered = {}
    return webui


@pytest.fixture
def kit(webui: Any, networks: Networks, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForgeKit]:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setattr("lib_lora.host.training.require_packages", lambda: None)
    made = ForgeKit(webui)
    yield made
    made.trainer.close(WAIT)
    made.unload()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of every base that was read."""
    read: list[Path] = []

    def load(path: Path, *more: Any) -> Any:
        read.append(path)
        return load_checkpoint(path, *more)

    monkeypatch.setattr(forge_base, "load_checkpoint", load)
    return read


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "pictures").mkdir()
    for number, colour in enumerate(["red", "blue"]):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "pictures" / f"{number}.png")
    return {
        "preset": "quick test", "data.folder": str(tmp_path / "pictures"), "data.trigger": "sks",
        "data.resolution": 64, "training.batch_size": 2, "training.steps": 2, "output.name": "rex",
        "output.sidecar": False, "optimizer.lr": 1e-2,
    }  # fmt: skip


def until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def write(path: Path, *names: str, width: int = 320, channels: int = 4) -> Path:
    """A file with a UNet's entry and tensors of these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {ENTRY: torch.zeros(width, channels, 3, 3), **{name: torch.zeros(1) for name in names}}
    save_file(tensors, str(path))
    return path


# ---- what is registered
def test_only_the_tab_and_http_are_registered(
    webui: Any, networks: Networks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No callback of a picture's making, no owner of the tag, no card page, no patch: pictures are as without us."""
    monkeypatch.setattr(callbacks, "detect", lambda: callbacks.FORGE)
    monkeypatch.setattr(callbacks, "Webui", lambda: webui)
    forward = torch.nn.Linear.forward
    made = callbacks.register()
    assert made is not None and set(webui.registered) == set(NAMES)
    webui.registered["before_ui"]()
    with caplog.at_level(logging.WARNING):
        webui.registered["app_started"](None, SimpleNamespace(routes=[]))
    assert "Forge applies <lora:...> by its own backend" in caplog.text
    note = webui.shared.opts.data_labels["lorakit_forge"]
    assert "Train LoRA" in note.text and note.section == ("lorakit", "LoRA kit")
    assert "lorakit_apply" not in webui.shared.opts.data_labels  # there is nothing to choose
    assert not webui.extra_networks.extra_network_registry and torch.nn.Linear.forward is forward
    script = made()
    assert script.show(False) is webui.scripts.AlwaysVisible
    assert {name for name in vars(made) if not name.startswith("_")} == {"title", "show", "before_process"}


def test_a_forge_of_before_is_told_and_left_alone(webui: Any, caplog: pytest.LogCaptureFixture) -> None:
    del webui.sd_models.model_data.forge_loading_parameters
    with caplog.at_level(logging.WARNING):
        assert forge.register(webui) is None
    assert "update Forge" in caplog.text and not webui.registered


def test_training_by_http_is_there_with_forges_api(kit: ForgeKit) -> None:
    pytest.importorskip("fastapi")
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()
    app.add_api_route("/sdapi/v1/sd-models", list, methods=["GET"])
    kit.started(None, app)
    assert TestClient(app).get(f"{PREFIX}/status").json()["state"] == "idle"


# ---- the base
def test_the_base_is_the_chosen_file(webui: Any, kit: ForgeKit) -> None:
    facts = kit.trainer.base()
    assert (facts.name, facts.version, facts.resolution, facts.refused) == ("tiny", "sd1", 128, "")
    webui.shared.opts.CLIP_stop_at_last_layers = 2
    model = kit.host.model()
    assert (model.name, model.source, model.clip_skip) == ("tiny", kit.host.base.file, 2)
    assert model.dtype == torch.float32


@pytest.mark.parametrize("with_page", [True, False])
def test_before_a_picture_the_setting_says_which(webui: Any, kit: ForgeKit, with_page: bool, tmp_path: Path) -> None:
    other = SimpleNamespace(filename=str(write(tmp_path / "other.safetensors")), name_for_extra="other")
    webui.sd_models.model_data.forge_loading_parameters = {}
    webui.sd_models.checkpoints_list["other"] = other
    assert kit.host.base.name == "tiny"  # the first there is
    webui.sd_models.checkpoint_aliases["other"] = other
    webui.shared.opts.sd_model_checkpoint = "other"
    assert kit.host.base.name == "other"


@pytest.mark.parametrize(
    ("names", "yaml", "kind", "side"),
    [
        ((), "", "sd1", 512),
        (("cond_stage_model.model.ln_final.weight",), "", "sd2", 768),
        (("cond_stage_model.model.ln_final.weight",), "model: {params: {parameterization: eps}}", "sd2", 512),
        (("cond_stage_model.model.ln_final.weight",), "model: {params: {parameterization: v}}", "sd2", 768),
        (("conditioner.embedders.0.x",), "", "sdxl", 1024),
    ],
)
def test_the_files_beginning_tells_version_and_size(
    tmp_path: Path, names: tuple[str, ...], yaml: str, kind: str, side: int
) -> None:
    file = write(tmp_path / "a.safetensors", *names)
    if yaml:
        file.with_suffix(".yaml").write_text(yaml)
    facts = facts_of(file)
    assert (facts.version, facts.resolution, facts.refused) == (kind, side, "")


def test_what_cannot_be_trained_on_is_told_before(webui: Any, kit: ForgeKit, tmp_path: Path) -> None:
    info = webui.sd_models.model_data.forge_loading_parameters["checkpoint_info"]
    inpainting, network = write(tmp_path / "in.safetensors", channels=9), tmp_path / "net.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, str(network))
    quantized = tmp_path / "flux.gguf"
    quantized.write_bytes(b"GGUF" + bytes(64))
    for file, told in (
        (inpainting, "for inpainting"), (network, "a network"), (quantized, "flux.gguf"),
        (tmp_path / "gone.safetensors", "cannot be read"),
    ):  # fmt: skip
        info.filename = str(file)
        assert told in kit.trainer.base().refused
        with pytest.raises(BadConfig, match=told):
            kit.trainer.submit({})
    webui.sd_models.model_data.forge_loading_parameters = {}
    webui.sd_models.checkpoints_list.clear()
    webui.sd_models.checkpoint_aliases.clear()
    assert "no checkpoint is chosen" in kit.trainer.base().refused
    with pytest.raises(BadConfig, match="no checkpoint is chosen"):
        kit.host.model()


def test_a_file_is_looked_at_once_until_it_changes(
    webui: Any, kit: ForgeKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(forge_base, "facts_of", lambda file: looked.append(file) or facts_of(file))
    file = write(tmp_path / "a.safetensors")
    webui.sd_models.model_data.forge_loading_parameters["checkpoint_info"].filename = str(file)
    assert [kit.trainer.base().version for _ in range(3)] == ["sd1"] * 3 and len(looked) == 1
    write(file, "conditioner.embedders.0.x")
    os.utime(file, ns=(1, 1))
    assert kit.trainer.base().version == "sdxl" and len(looked) == 2


# ---- training
def test_trains_on_the_file_with_forges_model_away(
    webui: Any, kit: ForgeKit, networks: Networks, loads: list[Path], settings: dict[str, Any], tmp_path: Path,
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And what comes out is byte for byte what training on that file gives anywhere else."""
    seen: list[Any] = []

    def engine(job: Any, model: Any, **more: Any) -> Any:
        data = webui.sd_models.model_data
        seen.append((type(data.sd_model), data.forge_hash, webui.log[-1], webui.call_queue.queue_lock.locked()))
        return train(job, model, **more)

    monkeypatch.setattr("lib_lora.train.engine.train", engine)
    other = kit.trainer.job({**settings, "output.folder": str(tmp_path / "other"), "output.network_folder": ""})
    expected = train(other, load_checkpoint(tiny_checkpoint)).file.read_bytes()
    before = torch.get_rng_state()
    kit.trainer.submit(settings)
    until(lambda: kit.trainer.status().state == "finished")
    kit.trainer.queue.wait(WAIT)
    assert seen == [(Initial, "", "unloaded", True)]
    assert webui.log == ["begin LoRA training", "unloaded", "end"]
    assert (tmp_path / "Lora" / "rex.safetensors").read_bytes() == expected
    assert kit.trainer.status().tag == "<lora:rex:1>" and networks.lists == 1
    assert webui.processing.need_global_unload and webui.sd_models.model_data.forge_hash == ""
    assert loads == [tiny_checkpoint] and kit.host.base._kept is None
    assert not webui.call_queue.queue_lock.locked() and torch.equal(torch.get_rng_state(), before)


def test_all_is_given_back_after_a_failure(webui: Any, kit: ForgeKit, loads: list[Path]) -> None:
    def job() -> None:
        kit.host.model()
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        kit.host.exclusive(job)
    assert len(loads) == 1 and kit.host.base._kept is None
    assert webui.log[-1] == "end" and not webui.call_queue.queue_lock.locked()


def test_another_checkpoint_chosen_while_the_run_waits_is_not_trained(
    webui: Any, kit: ForgeKit, settings: dict[str, Any]
) -> None:
    with webui.call_queue.queue_lock:
        kit.trainer.submit(settings)
        until(lambda: kit.trainer.status().doing == "waiting for the model")
        webui.sd_models.model_data.forge_loading_parameters["checkpoint_info"].name_for_extra = "b"
    kit.trainer.queue.wait(WAIT)
    assert kit.trainer.status().state == "failed" and "is for the base 'tiny', 'b'" in kit.trainer.status().doing


def test_jobs_of_no_use_here_are_refused(kit: ForgeKit, settings: dict[str, Any]) -> None:
    for wrong, told in (
        ({"method.name": "hypernetwork"}, "Forge applies no hypernetworks"),
        ({"network.type": "oft"}, "Forge reads no networks of this type; use 'lora'"),
        ({"network.type": "ia3", "method.name": "lcm"}, "Forge reads no networks of this type"),
        ({"base.checkpoint": "/elsewhere.safetensors"}, "is not the loaded checkpoint"),
    ):
        with pytest.raises(BadConfig, match=told):
            kit.trainer.submit({**settings, **wrong})
    assert kit.trainer.runs() == []


@pytest.mark.parametrize(
    "settings",
    [
        {"network.type": "dylora"},
        {"network.type": "glora", "network.dora": True},
        {"network.type": "oft", "method.name": "textual_inversion", "data.trigger": "sks"},
    ],
)
def test_jobs_whose_files_forge_reads_are_not(kit: ForgeKit, settings: dict[str, Any]) -> None:
    kit.trainer.place.check(kit.trainer.job({"data.folder": "x", **settings}))


# ---- pictures of the tab, and memory
def test_the_base_stays_between_the_tabs_pictures_until_forge_draws(
    webui: Any, kit: ForgeKit, loads: list[Path]
) -> None:
    first = kit.trainer.draw(["a cat"], 5, 2, 4.0)[0]
    again = kit.trainer.draw(["a cat"], 5, 2, 4.0)[0]
    assert first.tobytes() == again.tobytes() and len(loads) == 1
    assert webui.log.count("begin LoRA pictures") == 2
    forge._script_class(kit)().before_process(None)
    assert kit.host.base._kept is None
    kit.trainer.draw(["a cat"], 5, 2, 4.0)
    assert len(loads) == 2


def test_a_checkpoint_that_changed_is_read_again(
    webui: Any, kit: ForgeKit, loads: list[Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    kept = kit.host.model()
    assert kit.host.model() is kept
    other = tmp_path / "b.safetensors"
    other.write_bytes(tiny_checkpoint.read_bytes())
    other.with_suffix(".yaml").write_text(tiny_checkpoint.with_suffix(".yaml").read_text())
    webui.sd_models.model_data.forge_loading_parameters["checkpoint_info"].filename = str(other)
    assert kit.host.model() is not kept and loads == [tiny_checkpoint, other]


def test_nothing_is_unloaded_twice(webui: Any, kit: ForgeKit) -> None:
    """A model that Forge never read, or that is away, is not read anew for nothing; what else is on the GPU goes."""
    webui.sd_models.model_data.forge_hash = ""
    mine = webui.sd_models.model_data.sd_model
    kit.host.exclusive(lambda: None)
    assert webui.sd_models.model_data.sd_model is mine and not webui.processing.need_global_unload
    assert "unloaded" in webui.log


def test_changed_files_are_read_again_by_forge(webui: Any, kit: ForgeKit, networks: Networks, tmp_path: Path) -> None:
    file, data = tmp_path / "net", webui.sd_models.model_data
    file.write_bytes(b"old")
    networks.load_lora_state_dict(str(file))
    file.write_bytes(b"new")
    kit.new_files()
    assert networks.load_lora_state_dict(str(file)) == b"new" and networks.lists == 1
    assert data.forge_hash and not webui.processing.need_global_unload  # none is applied: the model stays as it is
    data.sd_model.current_lora_hash = "[['net', 1, 1, False]]"
    kit.new_files()
    assert not data.forge_hash and webui.processing.need_global_unload  # its merged weights may be of an older file


def test_without_forges_lora_extension_there_is_nobody_to_tell(
    webui: Any, kit: ForgeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "networks")
    kit.new_files()
    assert webui.sd_models.model_data.forge_hash


def test_block_weights_of_the_users_own_are_known(kit: ForgeKit, tmp_path: Path) -> None:
    (tmp_path / "lorakit").mkdir(exist_ok=True)
    (tmp_path / "lorakit" / "lbwpresets.txt").write_text("MINE:" + ",".join(["1"] * 17))
    assert "MINE" in kit.presets().weights
    (tmp_path / "lorakit" / "lbwpresets.txt").write_bytes(b"\xff\xfe\x00")
    assert "ALL" in kit.presets().weights


def test_a_run_waits_for_forges_picture(webui: Any, kit: ForgeKit, settings: dict[str, Any]) -> None:
    lock: threading.Lock = webui.call_queue.queue_lock
    with lock:
        kit.trainer.submit(settings)
        until(lambda: kit.trainer.status().doing == "waiting for the model")
        assert webui.sd_models.model_data.forge_hash, "the picture's model is left alone"
    until(lambda: kit.trainer.status().state == "finished")
