"""Changes of the bias: alone, beside every other type, and as the bias of a LoRA's second factor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_lora.errors import BadConfig, ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import Layer, LayerSpec, Op
from lib_lora.networks.bias import Bias, UpBias
from lib_lora.networks.lora import Lora
from lib_lora.patch.merge import Share, merged
from tests.networks import matrix as m

KINDS = ("lora", "loha", "lokr", "glora", "ia3", "full")


def change(width: int = m.WIDTH_OUT) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def inner(kind: str, name: str) -> Layer:
    spec = LayerSpec(tuple(m.base(name).weight.shape), m.RANK, m.ALPHA)
    layer = registry.by_kind(kind).init(spec).double()
    m.fill(layer.parameters())
    return layer


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", m.BASES)
def test_alone_it_moves_the_bias_also_of_a_layer_without_one(name: str, bias: bool) -> None:
    module, x = m.base(name, bias=bias), m.inputs(name)
    layer = registry.build({"diff_b": change()})
    assert isinstance(layer, Bias) and not layer.changes_weight
    moved = change() + (module.bias if bias else 0)
    m.check_forward("torch's bias", layer, module, x, Op.of(module).apply(x, module.weight, moved))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["linear", "conv3x3 stride 2"])
def test_beside_every_other_type(name: str, kind: str) -> None:
    module, x, core = m.base(name), m.inputs(name), inner(kind, name)
    tensors = {**core.to_tensors(), "diff_b": change()}
    layer = m.check_round_trip(tensors)
    assert isinstance(layer, Bias) and isinstance(layer.core, type(core))
    assert (layer.rank, layer.alpha, layer.scale) == (core.rank, core.alpha, core.scale)
    with torch.no_grad():
        expected = Op.of(module).apply(x, module.weight + core.delta(module.weight), module.bias + change())
        m.check_forward("its parts", layer, module, x, expected)
    m.check_strengths(layer, module.weight)
    m.check_outline({name: t.float() for name, t in tensors.items()})


def test_a_lora_beside_a_bias_still_merges_as_factors() -> None:
    layer = registry.build({**inner("lora", "linear").to_tensors(), "diff_b": change()})
    assert layer is not None and layer.factors() is not None
    shorter = layer.truncated(1)
    assert isinstance(shorter, Bias) and shorter.changes_bias
    assert torch.equal(shorter.bias_delta(torch.zeros(m.WIDTH_OUT).double()), change())
    assert torch.linalg.matrix_rank(shorter.delta(m.base("linear").weight)) == 1


def test_the_strength_holds_for_the_bias() -> None:
    layer, bias = Bias(None, change()), m.base("linear").bias
    for strength in m.STRENGTHS:
        got = merged(bias, [Share(layer, strength, bias=True)])
        m.agrees("bias", "b + m diff_b", got, bias + strength * change())


@pytest.mark.parametrize("name", ["linear", "conv3x3"])
def test_the_bias_of_lora_b_is_scaled_with_it(name: str) -> None:
    module, x, core = m.base(name), m.inputs(name), inner("lora", name)
    assert isinstance(core, Lora)
    layer = m.check_round_trip({**core.to_tensors(), "lora_up.bias": change()})
    assert isinstance(layer, UpBias)
    # peft >= 0.14 with lora_bias=True: base + (B (A x) + bias) * scale.
    if name == "linear":
        hidden = F.linear(F.linear(x, core.down), core.up, change())
    else:
        hidden = F.conv2d(F.conv2d(x, core.down, padding=1), core.up, change())
    m.check_forward("peft's formula", layer, module, x, (module(x) + hidden * (m.ALPHA / m.RANK)).detach())
    shorter = layer.truncated(1)
    assert torch.equal(shorter.bias_delta(torch.zeros(m.WIDTH_OUT)), layer.bias_delta(torch.zeros(m.WIDTH_OUT)))


def test_the_bias_of_lora_b_means_nothing_alone() -> None:
    assert registry.build({"lora_up.bias": change()}) is None
    assert registry.build({"lora_up.bias": change(), "alpha": torch.tensor(1.0)}) is None
    with pytest.raises(ShapeMismatch, match="without the factors"):
        UpBias.from_tensors({"lora_up.bias": change()})
    with pytest.raises(BadConfig, match="'lora_bias'"):
        UpBias.init(LayerSpec((4, 4), 1, 1.0))


def test_strange_tensors_beside_a_bias_are_not_passed_over() -> None:
    assert registry.build({"diff_b": change(), "strange": change()}) is None


@pytest.mark.parametrize("dtype", m.DTYPES)
def test_dtypes_and_round_trip(dtype: torch.dtype) -> None:
    layer = m.check_round_trip({"diff_b": change().to(dtype)})
    got = layer.bias_delta(torch.zeros(m.WIDTH_OUT, dtype=torch.float16))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(got, change().to(dtype).to(got.dtype))


@pytest.mark.parametrize("name", ["linear", "conv3x3"])
def test_a_new_layer_is_zero_and_learns(name: str) -> None:
    module = m.base(name)
    layer = Bias.init(LayerSpec(tuple(module.weight.shape), 0, 0.0))
    assert not layer.bias_delta(module.bias).any()
    layer.double().branch(m.inputs(name), Op.of(module), module.weight).sum().backward()
    assert layer.diff_b.grad is not None and layer.diff_b.grad.any()


@pytest.mark.parametrize(
    "layer", [Bias(None, torch.ones(3)), UpBias(Lora(torch.ones(3, 1), torch.ones(1, 2)), torch.ones(3))]
)
def test_what_does_not_fit_is_named(layer: Any) -> None:
    with pytest.raises(ShapeMismatch, match=r"(diff_b|lora_up.bias) \(3,\) does not fit a bias \(4,\).*another base"):
        layer.bias_delta(torch.ones(4))
