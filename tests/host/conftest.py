"""A fake webui: the modules and the built-in Lora extension as far as host/ touches them, with torch really patched."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

CLASSES = ("Linear", "Conv2d", "GroupNorm", "LayerNorm", "MultiheadAttention")
METHODS = {"forward": "forward", "_load_from_state_dict": "load_state_dict"}


class FakeBuiltin(ModuleType):
    """The built-in's module `networks`: patches torch's classes for real, adds `loaded_networks` numbers to weights."""

    def __init__(self) -> None:
        super().__init__("networks")
        self.available_networks: dict[str, Any] = {}
        self.available_network_aliases: dict[str, Any] = {}
        self.loaded_networks: list[Any] = []
        self.extra_network_lora = SimpleNamespace(name="lora", calls=[])
        self.extra_network_lora.activate = lambda p, params: self.extra_network_lora.calls.append(params)
        self.scans = 0
        for name in CLASSES:
            for method, suffix in METHODS.items():
                setattr(self, f"network_{name}_{suffix}", self._patched(name, suffix, method))

    def _patched(self, name: str, suffix: str, method: str) -> Any:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if method == "forward":
                self.network_apply_weights(module)
            return getattr(self.originals, f"{name}_{suffix}")(module, *args, **kwargs)

        return call

    def load_networks(self, names: list[Any]) -> None:
        self.loaded_networks[:] = names

    def network_apply_weights(self, module: Any) -> None:
        if not hasattr(module, "network_layer_name"):
            return
        backup = getattr(module, "network_weights_backup", None)
        if backup is None and self.loaded_networks:
            module.network_weights_backup = backup = module.weight.detach().clone()
        if backup is not None:
            with torch.no_grad():
                module.weight.copy_(backup + sum(self.loaded_networks))

    def network_reset_cached_weight(self, module: Any) -> None:
        module.network_weights_backup = None

    def list_available_networks(self) -> None:
        self.scans += 1


def fake_patches(networks: FakeBuiltin) -> ModuleType:
    """The built-in's module `lora_patches`."""

    class LoraPatches:
        def __init__(self) -> None:
            for name in CLASSES:
                for method, suffix in METHODS.items():
                    cls = getattr(torch.nn, name)
                    setattr(self, f"{name}_{suffix}", getattr(cls, method))
                    setattr(cls, method, getattr(networks, f"network_{name}_{suffix}"))

        def undo(self) -> None:
            for name in CLASSES:
                for method, suffix in METHODS.items():
                    setattr(getattr(torch.nn, name), method, getattr(self, f"{name}_{suffix}"))

    module: Any = ModuleType("lora_patches")
    module.LoraPatches = LoraPatches
    return module


def fake_registry() -> SimpleNamespace:
    """The webui's extra_networks."""
    registry: dict[str, Any] = {}
    aliases: dict[str, Any] = {}
    return SimpleNamespace(
        extra_network_registry=registry,
        extra_network_aliases=aliases,
        register_extra_network=lambda network: registry.__setitem__(network.name, network),
        register_extra_network_alias=lambda network, alias: aliases.__setitem__(alias, network),
    )


def fake_sd_model() -> Any:
    """The least that looks like SD1 in ldm."""
    model: Any = nn.Module()
    model.model = nn.Module()
    unet = nn.Module()
    unet.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(4, 8, 3, padding=1)])])
    unet.middle_block, unet.output_blocks = nn.ModuleList(), nn.ModuleList()
    model.model.diffusion_model = unet
    model.cond_stage_model = nn.Module()
    model.cond_stage_model.transformer = nn.Module()
    model.cond_stage_model.transformer.text_model = nn.Linear(4, 4)
    model.first_stage_model = nn.Linear(2, 2)
    model.sd_checkpoint_info = SimpleNamespace(filename="a.safetensors", name_for_extra="a")
    model.lowvram = False
    for name, module in model.model.named_modules():
        module.network_layer_name = name
    model.network_layer_mapping = dict(model.model.named_modules())
    return model


@pytest.fixture
def webui(tmp_path: Path) -> Any:
    """The webui's modules with a model loaded, without the built-in extension."""
    sd_model = fake_sd_model()
    log: list[str] = []
    state = SimpleNamespace(textinfo=None, begin=lambda job: log.append(f"begin {job}"), end=lambda: log.append("end"))
    opts = SimpleNamespace(CLIP_stop_at_last_layers=1, sd_lora="None", lora_add_hashes_to_infotext=True)
    return SimpleNamespace(
        log=log,
        shared=SimpleNamespace(
            sd_model=sd_model,
            opts=opts,
            state=state,
            cmd_opts=SimpleNamespace(lora_dir=str(tmp_path / "Lora")),
            loaded_hypernetworks=["left over"],
        ),
        extra_networks=fake_registry(),
        sd_models=SimpleNamespace(
            model_data=SimpleNamespace(sd_model=sd_model),
            apply_token_merging=lambda model, ratio: log.append(f"tome {ratio}"),
        ),
        sd_unet=SimpleNamespace(apply_unet=lambda option: log.append(f"unet {option}")),
        sd_hijack=SimpleNamespace(
            model_hijack=SimpleNamespace(apply_circular=lambda on: log.append(f"circular {on}"), comments=[])
        ),
        call_queue=SimpleNamespace(queue_lock=threading.Lock()),
        paths=SimpleNamespace(models_path=str(tmp_path / "models"), data_path=str(tmp_path)),
    )


@pytest.fixture
def builtin(webui: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBuiltin]:
    """The built-in extension, loaded and registered."""
    networks = FakeBuiltin()
    patches: Any = fake_patches(networks)
    before = {(name, m): getattr(getattr(torch.nn, name), m) for name in CLASSES for m in METHODS}
    monkeypatch.setitem(sys.modules, "networks", networks)
    monkeypatch.setitem(sys.modules, "lora_patches", patches)
    networks.originals = patches.LoraPatches()
    webui.extra_networks.register_extra_network(networks.extra_network_lora)
    webui.extra_networks.register_extra_network_alias(networks.extra_network_lora, "lyco")
    yield networks
    for (name, method), original in before.items():
        setattr(getattr(torch.nn, name), method, original)
