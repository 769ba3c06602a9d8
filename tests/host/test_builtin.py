"""Taking the tag from the built-in Lora extension, and giving it back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from lib_lora.host.builtin import BuiltinLora, NothingToUndo

FORWARD = torch.nn.Linear.forward


def _ours() -> Any:
    return SimpleNamespace(name="lora", is_lorakit=True)


def test_take_replaces_tag_and_alias_and_takes_the_patches_off(webui: Any, builtin: Any) -> None:
    assert torch.nn.Linear.forward is not FORWARD
    ours = _ours()
    assert BuiltinLora(webui).take(ours)
    assert webui.extra_networks.extra_network_registry["lora"] is ours
    assert webui.extra_networks.extra_network_aliases["lyco"] is ours
    assert torch.nn.Linear.forward is FORWARD
    builtin.originals.undo()  # what the built-in does when scripts are unloaded
    assert torch.nn.Linear.forward is FORWARD


def test_its_functions_still_work_for_whoever_holds_them(webui: Any, builtin: Any) -> None:
    held = torch.nn.Linear.forward
    BuiltinLora(webui).take(_ours())
    layer = torch.nn.Linear(2, 3)
    assert torch.equal(held(layer, torch.ones(1, 2)), layer(torch.ones(1, 2)))


def test_take_brings_merged_weights_back_and_frees_the_copies(webui: Any, builtin: Any) -> None:
    conv = webui.shared.sd_model.model.diffusion_model.input_blocks[0][0]
    original = conv.weight.detach().clone()
    builtin.load_networks([0.5])
    conv(torch.zeros(1, 4, 8, 8))
    assert not torch.equal(conv.weight, original)
    BuiltinLora(webui).take(_ours())
    assert torch.equal(conv.weight, original)
    assert conv.network_weights_backup is None and builtin.loaded_networks == []


def test_take_is_idempotent_and_survives_a_reload(webui: Any, builtin: Any) -> None:
    first, second = _ours(), _ours()
    lora = BuiltinLora(webui)
    assert lora.take(first) and lora.take(first)
    stand_in = builtin.originals
    webui.extra_networks.extra_network_registry.clear()
    import lora_patches

    builtin.originals = lora_patches.LoraPatches()  # the built-in's script runs again
    webui.extra_networks.register_extra_network(builtin.extra_network_lora)
    assert BuiltinLora(webui).take(second)
    assert webui.extra_networks.extra_network_registry["lora"] is second
    assert torch.nn.Linear.forward is FORWARD and builtin.originals is not stand_in


def test_patches_of_another_extension_on_top_stay(webui: Any, builtin: Any) -> None:
    below = torch.nn.Linear.forward

    def on_top(module: Any, x: Any) -> Any:
        return below(module, x)

    torch.nn.Linear.forward = on_top
    BuiltinLora(webui).take(_ours())
    assert torch.nn.Linear.forward is on_top
    assert not isinstance(builtin.originals, NothingToUndo)
    assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).shape == (1, 2)


def test_a_third_extensions_tag_is_left_alone(webui: Any, builtin: Any) -> None:
    third = SimpleNamespace(name="lora")
    webui.extra_networks.register_extra_network(third)
    assert BuiltinLora(webui).take(_ours()) is False
    assert webui.extra_networks.extra_network_registry["lora"] is third


def test_give_back_makes_the_built_in_what_it_was(webui: Any, builtin: Any) -> None:
    patched = torch.nn.Linear.forward
    lora = BuiltinLora(webui)
    lora.take(_ours())
    assert lora.give_back() and lora.give_back()
    assert webui.extra_networks.extra_network_registry["lora"] is builtin.extra_network_lora
    assert webui.extra_networks.extra_network_aliases["lyco"] is builtin.extra_network_lora
    assert torch.nn.Linear.forward is patched
    builtin.originals.undo()
    assert torch.nn.Linear.forward is FORWARD


def test_without_the_built_in_only_the_registry_changes(webui: Any) -> None:
    lora = BuiltinLora(webui)
    assert lora.take(_ours()) and lora.give_back() is False
    assert lora.short_hash("x") is None
    lora.rescan()
