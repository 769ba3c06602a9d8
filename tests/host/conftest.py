"""A fake webui: the modules and the built-in Lora extension as far as host/ touches them, with torch really patched."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_lora.files.library import NetworkLibrary
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.catalog import Catalog
from lib_lora.host.tag import LoraTag
from lib_lora.host.webui import WebuiHost
from lib_lora.runtime import Runtime
from tests.host import fakes


@pytest.fixture
def webui(tmp_path: Path) -> Any:
    """The webui's modules with a model loaded, without the built-in extension."""
    sd_model = fakes.fake_sd_model()
    log: list[str] = []
    state = SimpleNamespace(textinfo=None, begin=lambda job: log.append(f"begin {job}"), end=lambda: log.append("end"))
    opts = fakes.FakeOptions(data_labels={}, CLIP_stop_at_last_layers=1, samples_format="png")
    hijack = SimpleNamespace(
        apply_circular=lambda on: log.append(f"circular {on}"), comments=[], embedding_db=fakes.FakeEmbeddings()
    )
    return SimpleNamespace(
        log=log,
        shared=SimpleNamespace(
            sd_model=sd_model,
            opts=opts,
            state=state,
            cmd_opts=SimpleNamespace(lora_dir=str(tmp_path / "Lora")),
            loaded_hypernetworks=["left over"],
            OptionInfo=fakes.FakeOption,
        ),
        extra_networks=fakes.fake_registry(),
        extensions=SimpleNamespace(active=list, extensions=[]),
        patches=fakes.FakePatches(),
        cache=fakes.fake_cache(),
        devices=SimpleNamespace(device=torch.device("cpu")),
        scripts=SimpleNamespace(
            Script=object,
            AlwaysVisible=object(),
            scripts_data=[],
            scripts_txt2img=SimpleNamespace(alwayson_scripts=[]),
            scripts_img2img=SimpleNamespace(alwayson_scripts=[]),
        ),
        sd_models=SimpleNamespace(
            model_data=SimpleNamespace(sd_model=sd_model, loaded_sd_models=[sd_model]),
            apply_token_merging=lambda model, ratio: log.append(f"tome {ratio}"),
        ),
        sd_unet=SimpleNamespace(apply_unet=lambda option: log.append(f"unet {option}")),
        sd_hijack=SimpleNamespace(model_hijack=hijack),
        textual_inversion=SimpleNamespace(
            textual_inversion=SimpleNamespace(
                Embedding=lambda vec, name: SimpleNamespace(vec=vec, name=name, shorthash=None)
            )
        ),
        call_queue=SimpleNamespace(queue_lock=threading.Lock()),
        processing=SimpleNamespace(
            StableDiffusionProcessing=SimpleNamespace(cached_c=[None, None], cached_uc=[None, None]),
            StableDiffusionProcessingTxt2Img=SimpleNamespace(cached_hr_c=[None, None], cached_hr_uc=[None, None]),
        ),
        paths=SimpleNamespace(models_path=str(tmp_path / "models"), data_path=str(tmp_path)),
    )


@pytest.fixture
def builtin(webui: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[fakes.FakeBuiltin]:
    """The built-in extension, enabled, loaded and registered."""
    networks = fakes.FakeBuiltin()
    patches: Any = fakes.fake_patches(networks, webui.patches)
    before = {(name, m): getattr(getattr(torch.nn, name), m) for name in fakes.CLASSES for m in fakes.METHODS}
    monkeypatch.setitem(sys.modules, "networks", networks)
    monkeypatch.setitem(sys.modules, fakes.KEY, patches)
    webui.extensions.active = lambda: [SimpleNamespace(name="Lora", is_builtin=True)]
    networks.originals = patches.LoraPatches()
    webui.extra_networks.register_extra_network(networks.extra_network_lora)
    webui.extra_networks.register_extra_network_alias(networks.extra_network_lora, "lyco")
    yield networks
    for (name, method), original in before.items():
        setattr(getattr(torch.nn, name), method, original)


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    """A network file in the folder that the fake webui's command line names."""
    fakes.write_loud(tmp_path / "Lora" / "loud.safetensors")
    return tmp_path / "Lora" / "loud.safetensors"


@pytest.fixture
def tag(webui: Any, loud: Path) -> LoraTag:
    """The tag's owner over one network, `loud`."""
    host = WebuiHost(webui, BuiltinLora(webui))
    library = NetworkLibrary([loud.parent])
    made = LoraTag(host, Runtime(library), Catalog(webui, host.builtin, library))
    host.restore = made.restore
    return made


@pytest.fixture
def picture() -> fakes.Picture:
    return fakes.Picture()
