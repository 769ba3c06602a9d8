"""What host/ touches of a webui, as fakes: the built-in Lora extension really patches torch, options remember."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

CLASSES = ("Linear", "Conv2d", "GroupNorm", "LayerNorm", "MultiheadAttention")
METHODS = {"forward": "forward", "_load_from_state_dict": "load_state_dict"}
KEY = "lora_patches"


class FakeNetwork:
    """The built-in's class for a loaded network."""

    def __init__(self, name: str, network_on_disk: Any) -> None:
        self.name, self.network_on_disk = name, network_on_disk
        self.te_multiplier = self.unet_multiplier = 1.0
        self.dyn_dim = self.mtime = self.mentioned_name = None
        self.modules: dict[str, Any] = {}
        self.bundle_embeddings: dict[str, Any] = {}
        self.amount = 0.0  # of what this fake adds to weights


class FakeBuiltin(ModuleType):
    """The built-in's module `networks`: patches torch's classes for real, adds its networks' amounts to weights."""

    def __init__(self) -> None:
        super().__init__("networks")
        self.available_networks: dict[str, Any] = {}
        self.available_network_aliases: dict[str, Any] = {}
        self.loaded_networks: list[Any] = []
        self.network = SimpleNamespace(
            Network=FakeNetwork, NetworkOnDisk=lambda name, file: SimpleNamespace(name=name, filename=file)
        )
        self.extra_network_lora = SimpleNamespace(name="lora", calls=[], ended=[])
        self.extra_network_lora.activate = lambda p, params: self.extra_network_lora.calls.append(params)
        self.extra_network_lora.deactivate = self.extra_network_lora.ended.append
        self.scans = 0
        for name in CLASSES:
            for method, suffix in METHODS.items():
                setattr(self, f"network_{name}_{suffix}", self._patched(name, suffix, method))
        self.network_apply_weights = self._apply  # an attribute as in the module: others may replace it

    def _patched(self, name: str, suffix: str, method: str) -> Any:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if method == "forward":
                self.network_apply_weights(module)
            return getattr(self.originals, f"{name}_{suffix}")(module, *args, **kwargs)

        return call

    def load(self, amount: float) -> None:
        net = FakeNetwork("theirs", None)
        net.amount = amount
        self.loaded_networks[:] = [net]

    def load_networks(self, names: list[Any]) -> None:
        self.loaded_networks[:] = names

    def _apply(self, module: Any) -> None:
        if not hasattr(module, "network_layer_name"):
            return
        backup = getattr(module, "network_weights_backup", None)
        if backup is None and self.loaded_networks:
            module.network_weights_backup = backup = module.weight.detach().clone()
        if backup is not None:
            with torch.no_grad():
                module.weight.copy_(backup + sum(net.amount for net in self.loaded_networks))

    def network_reset_cached_weight(self, module: Any) -> None:
        module.network_weights_backup = None

    def list_available_networks(self) -> None:
        self.scans += 1


class FakePatches(SimpleNamespace):
    """The webui's module `patches`: refuses to replace a method twice for the same caller."""

    def __init__(self) -> None:
        super().__init__(originals=defaultdict(dict))

    def patch(self, key: str, owner: Any, field: str, replacement: Any) -> Any:
        if (owner, field) in self.originals[key]:
            raise RuntimeError(f"patch for {field} is already applied")
        original = self.originals[key][(owner, field)] = getattr(owner, field)
        setattr(owner, field, replacement)
        return original

    def undo(self, key: str, owner: Any, field: str) -> None:
        if (owner, field) not in self.originals[key]:
            raise RuntimeError(f"there is no patch for {field} to undo")
        setattr(owner, field, self.originals[key].pop((owner, field)))


def fake_patches(networks: FakeBuiltin, patches: FakePatches) -> ModuleType:
    """The built-in's module `lora_patches`."""

    class LoraPatches:
        def __init__(self) -> None:
            for name, method, suffix in _each():
                replacement = getattr(networks, f"network_{name}_{suffix}")
                original = patches.patch(KEY, getattr(torch.nn, name), method, replacement)
                setattr(self, f"{name}_{suffix}", original)

        def undo(self) -> None:
            for name, method, suffix in _each():
                setattr(self, f"{name}_{suffix}", patches.undo(KEY, getattr(torch.nn, name), method))

    module: Any = ModuleType(KEY)
    module.LoraPatches = LoraPatches
    return module


def _each() -> Iterator[tuple[str, str, str]]:
    for name in CLASSES:
        for method, suffix in METHODS.items():
            yield name, method, suffix


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
    model.cond_stage_model.tokenize = lambda texts: [[len(text)] for text in texts]
    model.first_stage_model = nn.Linear(2, 2)
    model.sd_checkpoint_info = SimpleNamespace(filename="a.safetensors", name_for_extra="a")
    model.lowvram = False
    model.is_sd1, model.is_sd2, model.is_sdxl = True, False, False
    for name, module in model.model.named_modules():
        module.network_layer_name = name
    model.network_layer_mapping = dict(model.model.named_modules())
    return model


class FakeOptions(SimpleNamespace):
    """The webui's `opts`: values as attributes, and what was added."""

    def add_option(self, key: str, info: Any) -> None:
        self.data_labels[key] = info


class FakeOption(SimpleNamespace):
    """The webui's OptionInfo."""

    def __init__(self, default: Any = None, label: str = "", *args: Any, **kwargs: Any) -> None:
        super().__init__(default=default, label=label, args=args, **kwargs)

    def info(self, text: str) -> FakeOption:
        self.text = text
        return self


class FakeEmbeddings:
    """The webui's database of token embeddings."""

    def __init__(self) -> None:
        self.ids_lookup: dict[int, list[Any]] = {}
        self.word_embeddings: dict[str, Any] = {}
        self.expected_shape = -1

    def register_embedding(self, embedding: Any, model: Any) -> None:
        ids = model.cond_stage_model.tokenize([embedding.name])[0]
        known = [pair for pair in self.ids_lookup.get(ids[0], []) if pair[1].name != embedding.name]
        self.ids_lookup[ids[0]] = [*known, (ids, embedding)]
        self.word_embeddings[embedding.name] = embedding


def fake_cache() -> SimpleNamespace:
    """The webui's cache of what was read from files: by title and mtime."""
    kept: dict[Any, Any] = {}
    sections: dict[str, dict[str, Any]] = {}

    def section(name: str) -> dict[str, Any]:
        return sections.setdefault(name, {})

    def cached(subsection: str, title: str, filename: str, func: Callable[[], Any]) -> Any:
        key = (subsection, title, os.path.getmtime(filename))
        if key not in kept:
            kept[key] = func()
        return kept[key]

    return SimpleNamespace(cached_data_for_file=cached, cache=section, dump_cache=lambda: None)


def write_loud(path: Path, **more: torch.Tensor) -> None:
    """A network for the fake model's one convolution: at strength 1 it adds 2 to every weight."""
    conv_in = {"lora_down.weight": torch.ones(2, 4, 3, 3), "lora_up.weight": torch.ones(8, 2, 1, 1)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**{f"lora_unet_conv_in.{name}": tensor for name, tensor in conv_in.items()}, **more}, str(path))


class Picture(SimpleNamespace):
    """What the webui calls `p`."""

    def __init__(self) -> None:
        super().__init__(comments=[], extra_generation_params={}, all_prompts=["a"], steps=8, sampler_name="Euler")
        self.seeds = [7]
        self.cached_c, self.cached_uc = ["key", "states"], ["key", "states"]

    def comment(self, text: str) -> None:
        self.comments.append(text)


def words(*items: Any) -> SimpleNamespace:
    """A tag as the webui hands it on."""
    return SimpleNamespace(items=list(items))


def weight(webui: Any) -> Any:
    """The one weight that `loud` changes."""
    return webui.shared.sd_model.model.diffusion_model.input_blocks[0][0].weight


def at(step: int, p: Any, steps: int = 8, **more: Any) -> SimpleNamespace:
    """A denoiser callback of a first-order sampler that draws `p`."""
    denoiser = SimpleNamespace(step=step, steps=steps, total_steps=steps, p=p, update_inner_model=lambda: None)
    return SimpleNamespace(denoiser=denoiser, total_sampling_steps=steps, sampling_step=0, **more)
