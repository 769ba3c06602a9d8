"""IA3: exact against LyCORIS' forward and peft in float64, on Linear and convolutions, on either axis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec, Op
from lib_lora.networks.ia3 import Ia3, PeftIa3
from lib_lora.patch.merge import Share, merged
from tests.networks import matrix as m

# LyCORIS cannot scale the inputs of a convolution with groups.
FORMS = [(name, on_input) for name in m.BASES for on_input in (False, True) if not (on_input and "groups" in name)]


def factors(name: str, on_input: bool, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    spec = LayerSpec(tuple(m.base(name).weight.shape), 0, 0.0, {"train_on_input": on_input})
    layer = Ia3.init(spec).double()
    m.fill(layer.parameters())
    return {key: t.to(dtype) if key == "weight" else t for key, t in layer.to_tensors().items()}


@pytest.mark.parametrize("name, on_input", FORMS)
def test_equals_lycoris_forward(name: str, on_input: bool) -> None:
    ia3 = pytest.importorskip("lycoris.modules.ia3")
    module, x = m.base(name), m.inputs(name)
    theirs = ia3.IA3Module("x", module, 1.0, train_on_input=on_input).double().eval()
    m.fill(theirs.parameters())
    tensors = {key: tensor.detach().clone() for key, tensor in theirs.state_dict().items()}
    assert tensors.keys() == {"weight", "on_input"} and not tensors["on_input"].is_floating_point()
    layer = registry.build(tensors)
    assert isinstance(layer, Ia3) and layer.columns == on_input
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("feedforward", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", m.PLAIN)
def test_equals_peft(name: str, bias: bool, feedforward: bool) -> None:
    peft = pytest.importorskip("peft")
    module, x = m.base(name, bias=bias), m.inputs(name)
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=["0"] if feedforward else [])
    model = peft.get_peft_model(nn.Sequential(m.base(name, bias=bias)), config).double().eval()
    m.fill(p for p in model.parameters() if p.requires_grad)
    ((key, tensor),) = peft.get_peft_model_state_dict(model).items()
    assert key == "base_model.model.0.ia3_l"
    layer = registry.build({"ia3_l": tensor.detach().clone()})
    assert isinstance(layer, PeftIa3)
    with torch.no_grad():
        expected = model(x)
        m.agrees(layer.kind, "peft 0.13", m.applied(layer, module, x), expected)
        if not bias or feedforward:  # a branch does not see the bias that the rows scale
            branch = layer.branch(x, Op.of(module), module.weight)
            m.agrees(layer.kind, "peft 0.13", module(x) + branch, expected)


def test_pefts_convolution_axis_is_the_rows_where_both_fit() -> None:
    layer = PeftIa3(torch.full((1, 4, 1, 1), 3.0))
    weight = torch.ones(4, 4, 1, 1)
    assert torch.equal(layer.delta(weight), weight * 2)
    assert torch.equal(layer.bias_delta(torch.ones(4)), torch.full((4,), 2.0))
    columns = layer.delta(torch.ones(6, 4, 1, 1))
    assert torch.equal(columns, torch.full((6, 4, 1, 1), 2.0))
    assert not layer.bias_delta(torch.ones(6)).any()


@pytest.mark.parametrize("name, on_input", FORMS)
def test_strength_is_linear_between_the_base_and_strength_1(name: str, on_input: bool) -> None:
    m.check_strengths(Ia3.from_tensors(factors(name, on_input)), m.base(name).weight)


def test_the_bias_of_peft_follows_the_strength() -> None:
    layer, bias = PeftIa3(torch.tensor([[3.0], [0.5]], dtype=torch.float64)), torch.tensor([1.0, 4.0]).double()
    for strength in m.STRENGTHS:
        wanted = bias + strength * torch.tensor([2.0, -2.0]).double()
        assert torch.equal(merged(bias, [Share(layer, strength, bias=True)]), wanted)
    m.check_strengths(layer, torch.randn(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("name, on_input", [("linear", False), ("conv3x3", True)])
def test_file_round_trip_outline_and_dtypes(name: str, on_input: bool) -> None:
    tensors = factors(name, on_input, torch.float32)
    m.check_outline(tensors)
    m.check_dtypes(tensors, m.base(name).weight)
    m.check_round_trip({"ia3_l": torch.randn(1, 6, 1, 1).half()})


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.float32, *m.DTYPES[4:]])
@pytest.mark.parametrize("on_input", [0, 1])
def test_on_input_may_have_been_cast_with_the_rest_of_the_file(dtype: torch.dtype, on_input: int) -> None:
    tensors = {"weight": torch.ones(3), "on_input": torch.tensor(on_input).to(dtype)}
    weight = torch.zeros(2, 3) if on_input else torch.zeros(3, 2)
    layer = m.check_round_trip(tensors)
    assert layer.delta(weight).shape == weight.shape


@pytest.mark.parametrize("target", ["linear", "conv1x1"])
@pytest.mark.parametrize("of", ["linear", "conv1x1"])
def test_linear_and_1x1_factors_fit_either_weight(of: str, target: str) -> None:
    for on_input in (False, True):
        layer = Ia3.from_tensors(factors(of, on_input))
        assert layer.delta(m.base(target).weight).shape == m.base(target).weight.shape


@pytest.mark.parametrize("name, on_input", FORMS)
def test_a_new_layer_is_zero_and_learns(name: str, on_input: bool) -> None:
    module = m.base(name)
    spec = LayerSpec(tuple(module.weight.shape), 0, 0.0, {"train_on_input": on_input})
    m.check_zero_start(Ia3.init(spec), module, m.inputs(name))


@pytest.mark.parametrize("name, on_input", [("linear", False), ("linear", True), ("conv3x3", False)])
def test_a_new_layer_of_peft_is_zero_and_learns(name: str, on_input: bool) -> None:
    module = m.base(name)
    spec = LayerSpec(tuple(module.weight.shape), 0, 0.0, {"train_on_input": on_input})
    m.check_zero_start(PeftIa3.init(spec), module, m.inputs(name))
    assert not PeftIa3.init(spec).bias_delta(torch.ones(m.WIDTH_OUT)).any()


def test_whole_weights_are_not_taken_for_ia3() -> None:
    assert registry.detect(["weight"]) is None
    assert registry.detect(["weight", "on_input"]) is Ia3
    assert registry.detect(["ia3_l"]) is PeftIa3


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"weight \(24,\).* does not fit a weight \(24, 25\)"):
        Ia3.from_tensors(factors("linear", True)).delta(torch.zeros(24, 25))
    with pytest.raises(ShapeMismatch, match=r"weight \(3, 4\).*expected a vector"):
        Ia3(torch.zeros(3, 4), torch.tensor(1))
    with pytest.raises(ShapeMismatch, match=r"ia3_l \(3, 4\)"):
        PeftIa3(torch.zeros(3, 4))
    with pytest.raises(ShapeMismatch, match=r"ia3_l \(1, 3\).*\(3, 4\)"):
        PeftIa3(torch.zeros(1, 3)).delta(torch.zeros(3, 4))


@given(case=m.shapes(("weight", "on_input")))
@settings(max_examples=120, deadline=None)
def test_no_shapes_crash(case: m.Shapes) -> None:
    m.check_any_shapes(Ia3, *case)


@given(case=m.shapes(("ia3_l",)))
@settings(max_examples=120, deadline=None)
def test_no_shapes_of_peft_crash(case: m.Shapes) -> None:
    m.check_any_shapes(PeftIa3, *case)
