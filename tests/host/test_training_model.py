"""The webui's checkpoint as a training model: its settings are followed, and what cannot work is refused."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_lora.errors import TrainingFailed, WrongBaseModel
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.webui import WebuiHost
from tests.models import live


@pytest.fixture
def host(webui: Any) -> WebuiHost:
    webui.sd_hijack.model_hijack.apply_circular = lambda on: None
    return WebuiHost(webui, BuiltinLora(webui))


@pytest.fixture(scope="module")
def unet_of() -> Any:
    """ldm's UNets by version, each built once; what their weights are is of no account here."""
    pytest.importorskip("ldm")

    def build(version: str) -> Any:
        with torch.device("meta"):
            made = live.unet(version)
        return made.to_empty(device="cpu")

    return functools.cache(build)


@pytest.fixture
def load(webui: Any, unet_of: Any) -> Any:
    """Puts a model of a version into the fake webui."""

    def put(version: str, unet: Any = None, **more: Any) -> Any:
        hf, tower = live.hf_embedder(live.hf_tower(live.TINY)), live.open_clip_embedder(live.open_clip_tower(live.TINY))
        unet = unet or unet_of(version)
        made = live.sgm_model(unet, hf, tower) if version == "sdxl" else None
        made = made or live.ldm_model(unet, hf if version == "sd1" else tower)
        made.first_stage_model = torch.nn.Linear(2, 2)
        for name, value in more.items():
            setattr(made, name, value)
        webui.shared.sd_model = made
        return made

    return put


@pytest.mark.parametrize("version, plain, asked", [("sd1", 3, 3), ("sd2", 0, 0), ("sdxl", 0, 3)])
def test_clip_skip_is_what_the_webuis_pictures_have(
    webui: Any, host: WebuiHost, load: Any, version: str, plain: int, asked: int
) -> None:
    load(version)
    webui.shared.opts.CLIP_stop_at_last_layers = 3
    assert host.model().clip_skip == plain
    webui.shared.opts.sdxl_clip_l_skip = True
    assert host.model().clip_skip == asked


def test_zero_terminal_snr_is_for_v_only(webui: Any, host: WebuiHost, load: Any) -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bars = torch.cumprod(1 - betas, 0)
    load("sd2", parameterization="v", alphas_cumprod=bars * 0, alphas_cumprod_original=bars.float())
    webui.shared.opts.sd_noise_schedule = "Default"
    torch.testing.assert_close(host.model().alphas_cumprod(), bars.float())
    webui.shared.opts.sd_noise_schedule = "Zero Terminal SNR"
    reference = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    ours = host.model().alphas_cumprod()
    torch.testing.assert_close(ours[:-1].double(), reference[:-1], rtol=1e-4, atol=1e-9)
    assert 0 < ours[-1] < 1e-7
    load("sd1", alphas_cumprod=bars.float())
    torch.testing.assert_close(host.model().alphas_cumprod(), bars.float())


def test_a_streamed_model_is_refused_with_the_way_out(host: WebuiHost, load: Any) -> None:
    load("sd2", lowvram=True)
    with pytest.raises(WrongBaseModel, match=r"--medvram, --medvram-sdxl or --lowvram.*python -m lib_lora train"):
        host.exclusive(lambda: pytest.fail("must not run"))


def test_a_model_put_aside_is_refused_with_the_way_out(webui: Any, host: WebuiHost, load: Any) -> None:
    load("sd1")
    webui.devices = SimpleNamespace(device=torch.device("meta"))
    with pytest.raises(WrongBaseModel, match="on the cpu and not on the meta.*Load SD checkpoint to VRAM from RAM"):
        host.exclusive(lambda: pytest.fail("must not run"))


@pytest.mark.parametrize("place", ["unet", "te1", "te2", "vae"])
def test_every_part_of_sdxl_is_watched(host: WebuiHost, load: Any, place: str) -> None:
    model = load("sdxl")
    parts = {**host.model().roots(), "vae": model.first_stage_model}

    def harm() -> None:
        with torch.no_grad():
            list(parts[place].parameters())[-1].add_(1)

    assert host.exclusive(lambda: 7) == 7
    with pytest.raises(TrainingFailed, match="1 base weights differ after the run"):
        host.exclusive(harm)


def test_weights_made_under_inference_mode_are_made_trainable(host: WebuiHost, load: Any) -> None:
    with torch.inference_mode():
        model = load("sd1", unet=live.unet("sd1"))
    assert next(model.parameters()).is_inference()
    host.exclusive(lambda: next(model.parameters()).requires_grad_(True))
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_the_webui_casts_no_layer_while_training_runs(webui: Any, host: WebuiHost, load: Any) -> None:
    load("sd1")
    webui.devices.unet_needs_upcast = True
    assert host.exclusive(lambda: webui.devices.unet_needs_upcast) is False
    assert webui.devices.unet_needs_upcast is True
