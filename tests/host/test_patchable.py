"""The host's two views of the loaded checkpoint: one to apply to, one to train on."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import WrongBaseModel
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.webui import WebuiHost
from tests.models import live


@pytest.fixture
def host(webui: Any) -> WebuiHost:
    return WebuiHost(webui, BuiltinLora(webui))


def test_the_view_is_kept_until_weights_are_loaded(webui: Any, host: WebuiHost) -> None:
    first = host.patchable()
    assert first.version == "sd1" and host.patchable() is first
    assert host.model().base_identity() == first.base_identity()
    host.model_loaded(webui.shared.sd_model)
    second = host.patchable()
    assert second is not first and second.base_identity() != first.base_identity()


def _sd2() -> Any:
    pytest.importorskip("ldm")
    return live.ldm_model(live.unet("sd2"), live.open_clip_embedder(live.open_clip_tower(live.TINY)))


def test_no_two_loads_have_one_number(webui: Any, host: WebuiHost) -> None:
    """A model that takes a freed one's place in memory must not pass for it."""
    first, numbers = webui.shared.sd_model, []
    for model in (first, _sd2(), first):
        webui.shared.sd_model = model
        host.model_loaded(model)
        numbers.append(host.patchable().generation)
    assert len(set(numbers)) == 3


def test_the_model_before_is_let_go(webui: Any, host: WebuiHost) -> None:
    webui.shared.sd_model = _sd2()
    host.model_loaded(webui.shared.sd_model)
    host.patchable()
    before = weakref.ref(webui.shared.sd_model)
    webui.shared.sd_model = _sd2()
    host.model_loaded(webui.shared.sd_model)
    gc.collect()
    assert before() is None


def test_an_inpainting_model_can_be_applied_to_but_not_trained_on(webui: Any, host: WebuiHost) -> None:
    pytest.importorskip("ldm")
    unet = live.unet("sd2", channels=9)
    webui.shared.sd_model = live.ldm_model(unet, live.open_clip_embedder(live.open_clip_tower(live.TINY)))
    assert host.patchable().version == "sd2"
    with pytest.raises(WrongBaseModel, match="an inpainting model.*train on the base checkpoint it was made from"):
        host.model()


def test_an_unknown_model_is_refused_with_the_reason(webui: Any, host: WebuiHost) -> None:
    webui.shared.sd_model = None
    with pytest.raises(WrongBaseModel, match="its UNet is a NoneType"):
        host.patchable()


def test_a_folder_of_networks_that_cannot_be_made_is_told_and_named(
    webui: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A drive that is away at the start comes back later."""
    (tmp_path / "away").touch()
    webui.shared.cmd_opts.lora_dir = str(tmp_path / "away" / "Lora")
    assert WebuiHost(webui, BuiltinLora(webui)).network_folders() == [tmp_path / "away" / "Lora"]
    assert str(tmp_path / "away" / "Lora") in caplog.text
