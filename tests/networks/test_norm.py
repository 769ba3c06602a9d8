"""Changes of norms: exact against LyCORIS' forward, with either key alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec, Op
from lib_lora.networks.norm import Norm
from lib_lora.patch.merge import Share, merged
from tests.networks import matrix as m

CHANNELS = 24
NORMS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "layer": (lambda: nn.LayerNorm(CHANNELS, eps=1e-3), (2, 7, CHANNELS)),
    "group": (lambda: nn.GroupNorm(4, CHANNELS, eps=1e-3), (2, CHANNELS, 5, 6)),
}


def case(name: str) -> tuple[Any, Tensor]:
    make, shape = NORMS[name]
    module = make().double().requires_grad_(False)
    m.fill(module.parameters(), seed=4, std=1.0)
    return module, torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def change(seed: int = 8) -> Tensor:
    return torch.randn(CHANNELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", NORMS)
def test_equals_lycoris_forward(name: str) -> None:
    norms = pytest.importorskip("lycoris.modules.norms")
    module, x = case(name)
    theirs = norms.NormModule("x", module, 1.0).double().eval()
    m.fill(theirs.parameters())
    tensors = {key: tensor.detach().clone() for key, tensor in theirs.state_dict().items()}
    assert tensors.keys() == {"w_norm", "b_norm"}
    layer = registry.build(tensors)
    assert isinstance(layer, Norm)
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("key", ["w_norm", "b_norm"])
@pytest.mark.parametrize("name", NORMS)
def test_either_key_may_come_alone(name: str, key: str) -> None:
    module, x = case(name)
    layer = registry.build({key: change()})
    assert isinstance(layer, Norm)
    assert (layer.changes_weight, layer.changes_bias) == (key == "w_norm", key == "b_norm")
    weight, bias = (
        (module.weight + change(), module.bias) if key == "w_norm" else (module.weight, module.bias + change())
    )
    m.check_forward("torch's norm", layer, module, x, Op.of(module).apply(x, weight, bias))
    m.check_round_trip({key: change().half()})


def test_strength_is_linear_between_the_base_and_strength_1() -> None:
    layer, (module, _) = Norm(change(), change(9)), case("layer")
    m.check_strengths(layer, module.weight)
    for strength in m.STRENGTHS:
        got = merged(module.bias, [Share(layer, strength, bias=True)])
        assert m.error(got, module.bias + strength * change(9)) < m.RELATIVE


def test_file_round_trip_outline_and_dtypes() -> None:
    tensors = {"w_norm": change().float(), "b_norm": change(9).float()}
    m.check_outline(tensors)
    m.check_dtypes(tensors, case("layer")[0].weight)


@pytest.mark.parametrize("name", NORMS)
def test_a_new_layer_is_zero_and_learns(name: str) -> None:
    module, x = case(name)
    layer = Norm.init(LayerSpec((CHANNELS,), 0, 0.0))
    assert all(p.dtype == torch.float32 for p in layer.parameters())
    assert not layer.delta(module.weight).any() and not layer.bias_delta(module.bias).any()
    (layer.double().branch(x, Op.of(module), module.weight) * x).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_what_does_not_fit_is_named() -> None:
    layer = Norm(torch.ones(3), torch.ones(3))
    with pytest.raises(ShapeMismatch, match=r"w_norm \(3,\) does not fit a weight \(4,\)"):
        layer.delta(torch.ones(4))
    with pytest.raises(ShapeMismatch, match=r"b_norm \(3,\) does not fit a bias \(4,\)"):
        layer.bias_delta(torch.ones(4))


@given(data=st.data(), names=st.sampled_from([("w_norm",), ("b_norm",), ("w_norm", "b_norm")]))
@settings(max_examples=120, deadline=None)
def test_no_shapes_crash(data: st.DataObject, names: tuple[str, ...]) -> None:
    m.check_any_shapes(Norm, *data.draw(m.shapes(names)))
