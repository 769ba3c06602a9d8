"""Taking the tag from the built-in Lora extension, and giving it back."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lib_lora.host.builtin import BuiltinLora, Idle, Patches

FORWARD = torch.nn.Linear.forward
LOAD = torch.nn.Conv2d._load_from_state_dict


def _ours() -> Any:
    return SimpleNamespace(name="lora", is_lorakit=True)


def _conv(webui: Any) -> Any:
    return webui.shared.sd_model.model.diffusion_model.input_blocks[0][0]


def _run_its_script_again(webui: Any, builtin: Any) -> None:
    """What a UI reload does: unload, registries cleared, and the script runs anew with the same modules."""
    builtin.originals.undo()
    webui.extra_networks.extra_network_registry.clear()
    import lora_patches

    builtin.originals = lora_patches.LoraPatches()
    webui.extra_networks.register_extra_network(builtin.extra_network_lora)


def test_take_replaces_tag_and_alias_and_takes_the_patches_off(webui: Any, builtin: Any) -> None:
    assert torch.nn.Linear.forward is not FORWARD
    ours = _ours()
    assert BuiltinLora(webui).take(ours)
    assert webui.extra_networks.extra_network_registry["lora"] is ours
    assert webui.extra_networks.extra_network_aliases["lyco"] is ours
    assert torch.nn.Linear.forward is FORWARD and torch.nn.Conv2d._load_from_state_dict is LOAD
    builtin.originals.undo()  # what the built-in does when scripts are unloaded
    assert torch.nn.Linear.forward is FORWARD


def test_its_functions_still_work_for_whoever_holds_them(webui: Any, builtin: Any) -> None:
    held = torch.nn.Linear.forward
    BuiltinLora(webui).take(_ours())
    layer = torch.nn.Linear(2, 3)
    assert torch.equal(held(layer, torch.ones(1, 2)), layer(torch.ones(1, 2)))


def test_take_brings_merged_weights_back_in_every_model_and_frees_the_copies(webui: Any, builtin: Any) -> None:
    other = copy.deepcopy(webui.shared.sd_model)
    webui.sd_models.model_data.loaded_sd_models.append(other)
    other.network_layer_mapping = dict(other.model.named_modules())
    convs = [_conv(webui), other.model.diffusion_model.input_blocks[0][0]]
    originals = [conv.weight.detach().clone() for conv in convs]
    builtin.load(0.5)
    for conv, original in zip(convs, originals):
        conv(torch.zeros(1, 4, 8, 8))
        assert not torch.equal(conv.weight, original)
    convs[0].network_bias_backup = torch.zeros(8)  # 1.6 makes one whenever a layer runs, and never lets it go
    BuiltinLora(webui).take(_ours())
    for conv, original in zip(convs, originals):
        assert torch.equal(conv.weight, original)
        assert conv.network_weights_backup is None and conv.network_bias_backup is None
    assert builtin.loaded_networks == []


def test_while_we_apply_its_function_does_nothing_whoever_calls_it(webui: Any, builtin: Any) -> None:
    held = torch.nn.Conv2d.forward  # as somebody keeps it who patched on top
    lora = BuiltinLora(webui)
    lora.take(_ours())
    original = _conv(webui).weight.detach().clone()
    net = builtin.network.Network("loud", None)
    net.amount = 3.0
    lora.publish([net])
    held(_conv(webui), torch.zeros(1, 4, 8, 8))
    builtin.network_apply_weights(_conv(webui))
    assert builtin.loaded_networks == [net] and torch.equal(_conv(webui).weight, original)
    assert getattr(_conv(webui), "network_weights_backup", None) is None
    lora.take(_ours())
    assert builtin.loaded_networks == [net], "a list that we wrote was cleared"


def test_take_is_idempotent_and_survives_reloads(webui: Any, builtin: Any) -> None:
    lora = BuiltinLora(webui)
    for _ in range(3):
        first, second = _ours(), _ours()
        assert lora.take(first) and lora.take(first)
        lora.leave()
        _run_its_script_again(webui, builtin)
        assert torch.nn.Linear.forward is not FORWARD
        assert BuiltinLora(webui).take(second)
        assert webui.extra_networks.extra_network_registry["lora"] is second
        assert torch.nn.Linear.forward is FORWARD and isinstance(builtin.originals, Patches)


def test_a_reload_without_us_leaves_the_built_in_as_it_was(webui: Any, builtin: Any) -> None:
    apply = builtin.network_apply_weights
    lora = BuiltinLora(webui)
    lora.take(_ours())
    lora.publish([builtin.network.Network("loud", None)])
    lora.leave()
    _run_its_script_again(webui, builtin)
    assert builtin.network_apply_weights == apply and builtin.loaded_networks == []
    assert not isinstance(builtin.originals, Patches)
    original = _conv(webui).weight.detach().clone()
    builtin.load(0.5)
    _conv(webui)(torch.zeros(1, 4, 8, 8))
    assert torch.equal(_conv(webui).weight, original + 0.5)
    builtin.originals.undo()
    assert torch.nn.Linear.forward is FORWARD


def test_patches_of_another_extension_on_top_stay(webui: Any, builtin: Any) -> None:
    below = torch.nn.Linear.forward

    def on_top(module: Any, x: Any) -> Any:
        return below(module, x)

    torch.nn.Linear.forward = on_top
    lora = BuiltinLora(webui)
    lora.take(_ours())
    assert torch.nn.Linear.forward is on_top
    assert torch.nn.Conv2d._load_from_state_dict is LOAD
    assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).shape == (1, 2)
    lora.give_back()
    assert torch.nn.Linear.forward is on_top and torch.nn.Conv2d._load_from_state_dict is not LOAD
    torch.nn.Linear.forward = below  # it ends, and puts back what it found
    lora.take(_ours())
    assert torch.nn.Linear.forward is FORWARD


def test_whoever_puts_the_bare_method_back_does_not_cost_the_built_in_its_patch(webui: Any, builtin: Any) -> None:
    """Regional Prompter replaces the method when a picture starts and puts back what it found."""
    lora = BuiltinLora(webui)
    lora.take(_ours())
    found = torch.nn.Linear.forward
    torch.nn.Linear.forward = lambda module, x: builtin.originals.Linear_forward(module, x)
    lora.lend()
    assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).shape == (1, 2)  # and no endless recursion
    torch.nn.Linear.forward = found
    lora.take(_ours())
    lora.give_back()
    assert torch.nn.Linear.forward is builtin.network_Linear_forward
    torch.nn.Linear.forward = found  # the built-in's record still says that it is patched
    lora.give_back()
    assert torch.nn.Linear.forward is builtin.network_Linear_forward


def test_a_third_extensions_tag_is_left_alone(webui: Any, builtin: Any) -> None:
    third = SimpleNamespace(name="lora")
    webui.extra_networks.register_extra_network(third)
    assert BuiltinLora(webui).take(_ours()) is False
    assert webui.extra_networks.extra_network_registry["lora"] is third


def test_a_tag_that_only_adds_syntax_to_the_built_ins_is_replaced(webui: Any, builtin: Any) -> None:
    class Wrapper(SimpleNamespace):
        pass

    webui.extra_networks.register_extra_network(Wrapper(name="lora"))
    ours = _ours()
    assert BuiltinLora(webui).take(ours, (Wrapper,))
    assert webui.extra_networks.extra_network_registry["lora"] is ours


def test_give_back_makes_the_built_in_what_it_was(webui: Any, builtin: Any) -> None:
    patched, apply = torch.nn.Linear.forward, builtin.network_apply_weights
    lora = BuiltinLora(webui)
    lora.take(_ours())
    lora.publish([builtin.network.Network("loud", None)])
    assert isinstance(builtin.network_apply_weights, Idle)
    assert lora.give_back() and lora.give_back()
    assert webui.extra_networks.extra_network_registry["lora"] is builtin.extra_network_lora
    assert webui.extra_networks.extra_network_aliases["lyco"] is builtin.extra_network_lora
    assert torch.nn.Linear.forward is patched and builtin.network_apply_weights == apply
    assert builtin.loaded_networks == []
    builtin.originals.undo()
    assert torch.nn.Linear.forward is FORWARD


def test_disabled_while_its_modules_are_still_imported_it_counts_as_absent(webui: Any, builtin: Any) -> None:
    lora = BuiltinLora(webui)
    lora.take(_ours())
    webui.extensions.active = lambda: [SimpleNamespace(name="Lora", is_builtin=False)]
    assert not lora.enabled and lora.networks is None and lora.tag is None and not lora.give_back()
    lora.leave()
    assert not isinstance(builtin.network_apply_weights, Idle)


def test_stand_ins_carry_the_built_ins_own_record_of_the_file(webui: Any, builtin: Any) -> None:
    lora = BuiltinLora(webui)
    record = SimpleNamespace(name="cat", filename="/somewhere/cat.safetensors")
    builtin.available_networks["cat"] = record
    assert lora.stand_in("kitty", Path("/somewhere/cat.safetensors")).network_on_disk is record
    builtin.available_networks = {"other": record}
    assert lora.stand_in("kitty", Path("/somewhere/cat.safetensors")).network_on_disk is record
    made = lora.stand_in("kitty", Path("/elsewhere/cat.safetensors"))
    assert made.network_on_disk.filename == "/elsewhere/cat.safetensors"
    assert made.mentioned_name == made.name == "kitty" and made.modules == {}


def test_without_the_built_in_only_the_registry_changes(webui: Any) -> None:
    lora = BuiltinLora(webui)
    assert lora.take(_ours()) and lora.give_back() is False
    lora.rescan()
    lora.release()
    lora.lend()
    lora.leave()
    lora.publish([1])
