"""Whole changes of a weight (`diff`), and what they share with whole new weights (`set_weight`)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec, Op
from lib_lora.networks.bias import Bias
from lib_lora.networks.full import Full
from lib_lora.networks.set_weight import SetWeight
from tests.networks import matrix as m


def random(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", m.BASES)
def test_equals_lycoris_forward(name: str, bias: bool) -> None:
    full = pytest.importorskip("lycoris.modules.full")
    module, x = m.base(name, bias=bias), m.inputs(name)
    theirs = full.FullModule("x", module, 1.0).double().eval()
    m.fill(theirs.parameters())
    # While it is not applied, its parameters are the changes that its file holds.
    tensors = {"diff": theirs.weight.detach().clone()}
    if bias:
        tensors["diff_b"] = theirs.bias.detach().clone()
    layer = registry.build(tensors)
    assert isinstance(layer, Bias if bias else Full)
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("name", m.BASES)
def test_strength_is_linear_between_the_base_and_strength_1(name: str) -> None:
    weight = m.base(name).weight
    m.check_strengths(Full(random(*weight.shape)), weight)
    m.check_strengths(SetWeight(random(*weight.shape)), weight)


@pytest.mark.parametrize("kind", ["diff", "set_weight"])
def test_file_round_trip_outline_and_dtypes(kind: str) -> None:
    tensors = {kind: random(*m.base("conv3x3").weight.shape).float()}
    m.check_outline(tensors)
    m.check_dtypes(tensors, m.base("conv3x3").weight)


@pytest.mark.parametrize("kind", ["diff", "set_weight"])
def test_a_1x1_convolution_fits_a_linear_and_the_other_way_round(kind: str) -> None:
    for own, other in (((4, 3), (4, 3, 1, 1)), ((4, 3, 1, 1), (4, 3))):
        layer = registry.build({kind: random(*own)})
        assert layer is not None
        assert torch.equal(layer.delta(torch.zeros(other).double()), random(*own).reshape(other))


def test_a_diff_may_be_a_norms() -> None:
    norm = nn.LayerNorm(6).double()
    layer = Full(random(6))
    with torch.no_grad():
        x = random(2, 3, 6, seed=6)
        expected = nn.functional.layer_norm(x, (6,), norm.weight + random(6), norm.bias)
        m.check_forward("the weight itself", layer, norm, x, expected)


def test_an_alpha_beside_a_diff_changes_nothing() -> None:
    layer = registry.build({"diff": torch.ones(2, 2), "alpha": torch.tensor(8.0)})
    assert layer is not None and torch.equal(layer.delta(torch.zeros(2, 2)), torch.ones(2, 2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", m.BASES)
def test_a_new_layer_is_zero_and_learns(name: str, bias: bool) -> None:
    module = m.base(name)
    layer = Full.init(LayerSpec(tuple(module.weight.shape), 0, 0.0, {"bias": bias}))
    assert layer.to_tensors().keys() == ({"diff", "diff_b"} if bias else {"diff"})
    if bias:
        assert not layer.bias_delta(module.bias).any()
        with torch.no_grad():
            assert not layer.delta(module.weight).any()
        layer.double().branch(m.inputs(name), Op.of(module), module.weight).sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
    else:
        m.check_zero_start(layer, module, m.inputs(name))


@pytest.mark.parametrize("kind", ["diff", "set_weight"])
def test_what_does_not_fit_is_named(kind: str) -> None:
    layer = registry.build({kind: torch.ones(4, 3)})
    assert layer is not None
    with pytest.raises(ShapeMismatch, match=rf"{kind} \(4, 3\) does not fit a weight \(3, 4\).*another base model"):
        layer.delta(torch.ones(3, 4))


@given(data=st.data(), name=st.sampled_from(["diff", "set_weight"]))
@settings(max_examples=120, deadline=None)
def test_no_shapes_crash(data: st.DataObject, name: str) -> None:
    m.check_any_shapes(Full if name == "diff" else SetWeight, *data.draw(m.shapes((name,))))
