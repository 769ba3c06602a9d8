"""Whole new weights and biases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_lora.errors import BadConfig, ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec, Op
from lib_lora.networks.lora import Lora
from lib_lora.networks.set_weight import SetBias, SetWeight
from lib_lora.patch.merge import Share, merged
from tests.networks import matrix as m


def random(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", m.BASES)
def test_a_set_weight_replaces_the_weight(name: str) -> None:
    module, x = m.base(name), m.inputs(name)
    new = random(*module.weight.shape)
    layer = registry.build({"set_weight": new})
    assert isinstance(layer, SetWeight)
    m.check_forward("the weight itself", layer, module, x, Op.of(module).apply(x, new, module.bias))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["linear", "conv3x3"])
def test_weight_and_bias_together_are_another_layer(name: str, bias: bool) -> None:
    module, x = m.base(name, bias=bias), m.inputs(name)
    weight, new = random(*module.weight.shape), random(m.WIDTH_OUT, seed=6)
    layer = m.check_round_trip({"set_weight": weight, "set_bias": new})
    assert isinstance(layer, SetBias) and layer.changes_weight and layer.changes_bias
    with torch.no_grad():
        got = m.applied(layer, module, x)
    m.agrees("set_bias", "the bias itself", got, Op.of(module).apply(x, weight, new))


def test_a_set_bias_may_come_alone_or_beside_factors() -> None:
    alone = registry.build({"set_bias": random(3)})
    assert isinstance(alone, SetBias) and not alone.changes_weight
    core = Lora(random(3, 2), random(2, 4))
    beside = m.check_round_trip({**core.to_tensors(), "set_bias": random(3)})
    assert torch.equal(beside.delta(torch.zeros(3, 4).double()), core.delta(torch.zeros(3, 4).double()))
    assert beside.factors() is not None and beside.truncated(1).changes_bias
    for layer in (alone, beside, beside.truncated(1)):
        bias = random(3, seed=7)
        for strength in m.STRENGTHS:
            got = merged(bias, [Share(layer, strength, bias=True)])
            m.agrees("set_bias", "b + m (S - b)", got, bias + strength * (random(3) - bias))


def test_a_set_bias_is_no_branch() -> None:
    with pytest.raises(NotImplementedError, match="merge it instead"):
        SetBias(None, torch.ones(3)).branch(torch.ones(1, 4), Op(), torch.ones(3, 4))


def test_a_half_set_weight_is_half_way() -> None:
    half = merged(torch.zeros(2, 2), [Share(SetWeight(torch.full((2, 2), 8.0)), 0.5)])
    assert torch.equal(half, torch.full((2, 2), 4.0))


def test_neither_is_trained_from_nothing() -> None:
    m.check_gradients(SetWeight(torch.zeros(m.WIDTH_OUT, m.WIDTH_IN)), m.base("linear"), m.inputs("linear"))
    with pytest.raises(BadConfig, match="'set'.*choose 'full'"):
        SetWeight.init(LayerSpec((4, 4), 0, 0.0))
    with pytest.raises(BadConfig, match="'set_bias'"):
        SetBias.init(LayerSpec((4, 4), 0, 0.0))


def test_a_bias_that_does_not_fit_is_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"set_bias \(3,\) does not fit a bias \(4,\)"):
        SetBias(None, torch.ones(3)).bias_delta(torch.ones(4))
