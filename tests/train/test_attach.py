"""Layers hang on the true modules, get gradients, and leave no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lib_lora.errors import BadConfig
from lib_lora.keys.checkpoint import default_targets
from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.keys.unet import conv_targets
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train import keyed
from lib_lora.train.attach import attach, frozen, new_layers, target_keys
from lib_lora.train.sections import NetworkSection

BOTH = NetworkSection(rank=2, alpha=2.0, train_text_encoder=True)


def run(model: DiffusersModel, prompt: str = "a toy") -> torch.Tensor:
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return model.predict(noisy, torch.tensor([500]), model.encode_text([prompt]))


def test_targets_are_the_known_ones(tiny_model: DiffusersModel) -> None:
    keys = target_keys(tiny_model, BOTH)
    assert len([k for k in keys if k.part == UNET]) == 192
    assert len([k for k in keys if k.part == TE1]) == 72
    assert {k.path for k in keys if k.part == UNET} == set(default_targets(UNET))
    assert {k.path for k in keys if k.part == TE1} == set(default_targets(TE1))
    locon = target_keys(tiny_model, NetworkSection(type="locon"))
    assert {k.path for k in locon} == set(default_targets(UNET)) | set(conv_targets())


def test_new_layers_change_nothing_bit_for_bit(tiny_model: DiffusersModel) -> None:
    with torch.no_grad():
        before = run(tiny_model)
        network = NetworkSection(type="locon", train_text_encoder=True)
        with attach(tiny_model, new_layers(tiny_model, network, keyed.generator(0))):
            assert torch.equal(run(tiny_model), before)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_layer(tiny_model: DiffusersModel, checkpointing: bool) -> None:
    layers = new_layers(tiny_model, BOTH, keyed.generator(0))
    for layer in layers.values():
        layer.up.data.normal_(std=0.05, generator=keyed.generator(1))
    flags = [(p, p.requires_grad) for root in tiny_model.roots().values() for p in root.parameters()]
    with frozen(tiny_model, checkpointing=checkpointing), attach(tiny_model, layers):
        run(tiny_model).square().mean().backward()
    dead = [str(key) for key, layer in layers.items() for p in layer.parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    assert len(layers) == 264
    for root in tiny_model.roots().values():
        for module in root.modules():
            assert not module._forward_hooks
            assert "forward" not in module.__dict__
    assert all(p.requires_grad == flag and p.grad is None for p, flag in flags)


def test_attached_equals_merged(make_tiny: Callable[[int], DiffusersModel]) -> None:
    model = make_tiny(3)
    layers = new_layers(model, NetworkSection(type="locon", rank=2, train_text_encoder=True), keyed.generator(0))
    for layer in layers.values():
        layer.up.data.normal_(std=0.05, generator=keyed.generator(1))
    with torch.no_grad():
        plain = run(model)
        with attach(model, layers):
            attached = run(model)
        for key, layer in layers.items():
            weight = model.modules_by_key()[key].weight
            weight += layer.delta(weight)
        merged = run(model)
    assert not torch.allclose(plain, merged, atol=1e-2)
    assert torch.allclose(attached, merged, rtol=1e-4, atol=1e-4)


def test_modes_and_flags_come_back_even_after_an_error(tiny_model: DiffusersModel) -> None:
    tiny_model.unet.train()
    tiny_model.unet.conv_in.weight.requires_grad_(True)
    try:
        with pytest.raises(RuntimeError, match="boom"), frozen(tiny_model, checkpointing=True):
            assert not tiny_model.unet.training
            assert not tiny_model.unet.conv_in.weight.requires_grad
            raise RuntimeError("boom")
        assert tiny_model.unet.mid_block.training
        assert tiny_model.unet.conv_in.weight.requires_grad
    finally:
        tiny_model.unet.eval().requires_grad_(False)


def test_a_layer_without_module_is_refused(tiny_model: DiffusersModel) -> None:
    layers = new_layers(tiny_model, BOTH, keyed.generator(0))
    strange = {LayerKey(UNET, "no.such"): next(iter(layers.values()))}
    with pytest.raises(BadConfig, match="unet:no.such"), attach(tiny_model, strange):
        pass


def half_gradients(model: DiffusersModel, checkpointing: bool, lost: int = 0) -> list[torch.Tensor]:
    """The gradient of each layer's `down` in the layers' order; the first `lost` layers are not attached."""
    layers = dict(sorted(new_layers(model, BOTH, keyed.generator(0)).items()))
    for layer in layers.values():
        layer.up.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    attached = dict(list(layers.items())[lost:])
    with frozen(model, checkpointing=checkpointing), attach(model, attached):
        output = run(model)
        assert output.dtype == torch.float32
        (output.square().mean() * 1024).backward()  # unscaled, float16 rounds the smallest gradients to zero
    for key, layer in attached.items():
        grad = layer.down.grad
        assert grad is not None and grad.dtype == torch.float32, key
        assert grad.isfinite().all(), key
        assert grad.any(), key
    return [torch.zeros_like(layer.down) if layer.down.grad is None else layer.down.grad for layer in layers.values()]


def agreement(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    a, b = (torch.cat([g.flatten() for g in grads]) for grads in (one, two))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_half_base_trains_float32_adapters(make_tiny: Callable[[int], DiffusersModel], checkpointing: bool) -> None:
    # bfloat16's 8 bits say nothing about direction on random weights (0.14 to 0.999 seen); float16 judges that below
    half_gradients(make_tiny(5).to(dtype=torch.bfloat16), checkpointing)


@pytest.mark.parametrize(("dtype", "branch"), [(torch.float32, False), (torch.bfloat16, True)])
def test_lokr_is_in_the_weight_where_no_sum_rounds_it_away(
    make_tiny: Callable[[int], DiffusersModel], dtype: torch.dtype, branch: bool
) -> None:
    model = make_tiny(5).to(dtype=dtype)
    layers = new_layers(model, NetworkSection(type="lokr", rank=2, targets="cross_attention"), keyed.generator(0))
    for layer in layers.values():
        for name in layer.second & {name for name, _ in layer.named_parameters()}:
            layer.get_parameter(name).data.normal_(std=1e-5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = run(model)
        with attach(model, layers):
            assert not torch.equal(run(model), plain), "rounded away"
            hooks = [bool(model.modules_by_key()[key]._forward_pre_hooks) for key in layers]
    assert hooks == [not branch] * len(layers)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 2),
    reason="this torch has no float16 convolution on the CPU",
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_on_a_float16_base_are_the_float32_ones(
    make_tiny: Callable[[int], DiffusersModel], checkpointing: bool
) -> None:
    full = half_gradients(make_tiny(5), checkpointing)
    assert agreement(full, half_gradients(make_tiny(5).to(dtype=torch.float16), checkpointing)) > 0.999
    assert agreement(full, half_gradients(make_tiny(5).to(dtype=torch.float16), checkpointing, lost=20)) < 0.99
