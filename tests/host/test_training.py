"""The Train tab's service in the webui: what it refuses before anything is touched."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_lora.errors import BadConfig
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.training import (
    defaults,
    list_anew,
    require_allowed,
    require_loaded,
    resolution_of,
    train_on,
)
from lib_lora.host.webui import WebuiHost
from lib_lora.train.config import make_job
from lib_lora.train.control import Control


@pytest.fixture
def host(webui: Any) -> WebuiHost:
    return WebuiHost(webui, BuiltinLora(webui))


@pytest.mark.parametrize("option", ["disable_extension_access", "hide_ui_dir_config"])
def test_an_exposed_webui_trains_only_on_folders_of_its_own(
    webui: Any, host: WebuiHost, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, option: str
) -> None:
    ours = {**defaults(host), "data.folder": str(tmp_path / "pictures")}
    inside, elsewhere = make_job(ours), str(tmp_path_factory.mktemp("written"))
    outside = make_job({"data.folder": str(tmp_path_factory.mktemp("elsewhere"))})
    dotted = make_job({"data.folder": str(tmp_path / ".." / "elsewhere")})
    require_allowed(host, outside)
    setattr(webui.shared.cmd_opts, option, True)
    require_allowed(host, inside)
    written = [make_job({**ours, key: elsewhere}) for key in ("output.folder", "output.network_folder")]
    for job in (outside, dotted, *written):
        with pytest.raises(BadConfig, match="--listen") as told:
            require_allowed(host, job)
        assert str(tmp_path) not in str(told.value).replace(str(job.data.folder), ""), "others see no folders of ours"


def test_jobs_of_this_host_write_where_the_tag_looks(host: WebuiHost, tmp_path: Path) -> None:
    values = defaults(host)
    assert Path(values["output.network_folder"]) == tmp_path / "Lora"
    assert Path(values["output.folder"]).is_relative_to(tmp_path)


@pytest.mark.parametrize("key", ["prior.folder", "data.mask_folder", "data.cache_folder", "method.pairs_after"])
def test_no_setting_of_an_exposed_webui_names_a_place_outside(
    webui: Any, host: WebuiHost, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    webui.shared.cmd_opts.hide_ui_dir_config = True
    require_allowed(host, make_job({**defaults(host), key: str(tmp_path / "mine")}))
    elsewhere = str(tmp_path_factory.mktemp("elsewhere"))
    concepts = [{"folder": elsewhere}], [{"folder": str(tmp_path), "class_folder": elsewhere}]
    for job in (
        make_job({**defaults(host), key: elsewhere}),
        *(make_job({**defaults(host), "concept": concept}) for concept in concepts),
    ):
        with pytest.raises(BadConfig, match="elsewhere.*--listen"):
            require_allowed(host, job)


def test_an_exposed_webui_imports_no_optimizer_by_name(webui: Any, host: WebuiHost) -> None:
    job = make_job({**defaults(host), "optimizer.name": "custom", "optimizer.path": "torch.optim.NAdam"})
    require_allowed(host, job)
    webui.shared.cmd_opts.disable_extension_access = True
    with pytest.raises(BadConfig, match="custom.*use another optimizer"):
        require_allowed(host, job)


def test_files_go_where_the_webui_looks_for_their_kind(webui: Any, host: WebuiHost, tmp_path: Path) -> None:
    values = defaults(host)
    assert values["output.embedding_folder"] == str(tmp_path / "embeddings")
    assert values["output.checkpoint_folder"] == str(tmp_path / "models" / "Stable-diffusion")
    options = webui.shared.cmd_opts
    options.embeddings_dir, options.hypernetwork_dir, options.ckpt_dir = "/e", "/h", "/c"
    values = defaults(host)
    keys = ("embedding_folder", "hypernetwork_folder", "checkpoint_folder")
    assert [values[f"output.{key}"] for key in keys] == ["/e", "/h", "/c"]


def _looks_like(version: str, kind: str = "eps", width: int = 320) -> Any:
    text, tower = SimpleNamespace(transformer=SimpleNamespace(text_model=1)), SimpleNamespace(model=SimpleNamespace())
    tower.model.transformer = SimpleNamespace(resblocks=[])
    tower.model.positional_embedding = torch.zeros(77, 4)
    made = SimpleNamespace(model=SimpleNamespace(diffusion_model=SimpleNamespace(model_channels=width)))
    made.parameterization = kind
    if version == "sdxl":
        made.conditioner = SimpleNamespace(embedders=[text, tower, SimpleNamespace()])
    else:
        made.cond_stage_model = tower if version == "sd2" else text
    return made


@pytest.mark.parametrize(
    "model, side",
    [
        (None, 512),
        (_looks_like("sd1"), 512),
        (_looks_like("sd2"), 512),
        (_looks_like("sd2", "v"), 768),
        (_looks_like("sdxl"), 1024),
        (_looks_like("sdxl", width=32), 128),
    ],
)
def test_the_resolution_is_the_checkpoints(webui: Any, host: WebuiHost, model: Any, side: int) -> None:
    webui.sd_models.model_data.sd_model = model
    assert resolution_of(model) == side == defaults(host)["data.resolution"]


def test_a_job_for_another_checkpoint_is_refused(host: WebuiHost, tmp_path: Path) -> None:
    loaded = tmp_path / "a.safetensors"
    for wanted in ("", str(loaded), str(tmp_path / "x" / ".." / "a.safetensors")):
        require_loaded(make_job({"base.checkpoint": wanted}), loaded)
    for there in (loaded, None):
        with pytest.raises(BadConfig, match="is not the loaded checkpoint.*choose it at the top"):
            require_loaded(make_job({"base.checkpoint": str(tmp_path / "b.safetensors")}), there)


def test_progress_is_shown_and_interrupt_pauses(
    webui: Any, host: WebuiHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events = [{"type": "preparing", "done": 1, "total": 3}, {"type": "step", "step": 2, "steps": 5}, {"type": "note"}]
    shown: list[Any] = []

    def train(job: Any, model: Any, *, on_event: Any, cancel: Any, resume: Any) -> Any:
        for event in events:
            on_event(event)
            shown.append(webui.shared.state.textinfo)
        before, webui.shared.state.interrupted = cancel(), True
        assert (before, cancel(), cancel.paused()) == (False, True, True)
        return SimpleNamespace(file=tmp_path / "n.safetensors")

    monkeypatch.setattr("lib_lora.train.engine.train", train)
    webui.shared.state.interrupted = False
    seen: list[Any] = []
    assert train_on(host, make_job({"output.name": "n"}), seen.append, Control()) == tmp_path / "n.safetensors"
    assert seen == events
    assert shown == ["training n: 1 of 3 pictures are ready", *["training n: step 2 of 5"] * 2]
    assert (webui.shared.state.sampling_step, webui.shared.state.sampling_steps) == (2, 5)


def test_a_finished_checkpoint_or_hypernetwork_is_listed(webui: Any, host: WebuiHost) -> None:
    webui.shared.opts.sd_model_checkpoint, webui.shared.opts.data = "mine", {"sd_model_checkpoint": "mine"}
    webui.shared.reload_hypernetworks = lambda: webui.log.append("hypernetworks")

    def list_models() -> None:
        webui.log.append("checkpoints")
        webui.shared.opts.data["sd_model_checkpoint"] = "that of --ckpt"

    webui.sd_models.list_models = list_models
    for method, told in (("network", []), ("hypernetwork", ["hypernetworks"]), ("dreambooth", ["checkpoints"])):
        webui.log.clear()
        list_anew(host, make_job({"method.name": method}))
        assert webui.log == told
    assert webui.shared.opts.data["sd_model_checkpoint"] == "mine", "the choice is kept"
