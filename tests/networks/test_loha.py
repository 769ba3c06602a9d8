"""LoHa: exact against LyCORIS' forward and peft in float64, in every form of its files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec, Op
from lib_lora.networks.loha import LoHa
from tests.networks import matrix as m

NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
RANK = 4  # a square: LyCORIS' rs_lora writes alpha * sqrt(rank)
FORMS = [(name, False) for name in m.BASES] + [(name, True) for name in m.BASES if "3" in name]


def lycoris_module(module: nn.Module, **options: Any) -> Any:
    loha = pytest.importorskip("lycoris.modules.loha")
    theirs = loha.LohaModule("x", module, 1.0, **{"lora_dim": RANK, "alpha": m.ALPHA, **options}).double().eval()
    m.fill(theirs.parameters())
    theirs.scalar.data.fill_(0.875 if options.get("use_scalar") else 1.0)
    return theirs


def file_of(theirs: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in theirs.state_dict().items()}


def factors(name: str = "linear", *, tucker: bool = False, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    layer = LoHa.init(LayerSpec(tuple(m.base(name).weight.shape), RANK, m.ALPHA, {"tucker": tucker})).double()
    m.fill(layer.parameters())
    return {key: t.to(dtype) if key != "alpha" else t for key, t in layer.to_tensors().items()}


@pytest.mark.parametrize("name, tucker", FORMS)
def test_equals_lycoris_forward(name: str, tucker: bool) -> None:
    module, x = m.base(name), m.inputs(name)
    theirs = lycoris_module(module, use_tucker=tucker)
    tensors = file_of(theirs)
    assert ("hada_t1" in tensors) == tucker
    layer = registry.build(tensors)
    assert isinstance(layer, LoHa)
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("options", [{"rs_lora": True}, {"use_scalar": True}, {"alpha": 0}, {"bypass_mode": True}])
def test_options_of_lycoris_that_a_file_does_not_name(options: dict[str, Any]) -> None:
    module, x = m.base("linear"), m.inputs("linear")
    theirs = lycoris_module(module, **options)
    layer = registry.build(file_of(theirs))
    assert isinstance(layer, LoHa)
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("name, effective", [(n, False) for n in m.PLAIN] + [("conv3x3", True), ("conv3x1", True)])
def test_equals_peft(name: str, effective: bool) -> None:
    peft = pytest.importorskip("peft")
    module, x = m.base(name), m.inputs(name)
    config = peft.LoHaConfig(
        r=RANK,
        alpha=m.ALPHA,
        target_modules=["0"],
        use_effective_conv2d=effective,
        rank_dropout=0.0,
        module_dropout=0.0,
    )
    model = peft.get_peft_model(nn.Sequential(m.base(name)), config).double().eval()
    m.fill(p for p in model.parameters() if p.requires_grad)
    tensors = {
        key.removeprefix("base_model.model.0."): tensor.detach().clone()
        for key, tensor in peft.get_peft_model_state_dict(model).items()
    }
    assert ("hada_t1" in tensors) == effective
    layer = registry.build({**tensors, "alpha": torch.tensor(m.ALPHA)})  # alpha: of its config file
    assert isinstance(layer, LoHa)
    m.check_forward("peft 0.13", layer, module, x, model(x).detach())


def test_onetrainers_convolution_factors_have_four_axes() -> None:
    module, x = m.base("conv3x3 stride 2"), m.inputs("conv3x3 stride 2")
    up, down = (m.WIDTH_OUT, 3, 1, 1), (3, m.WIDTH_IN, 3, 3)
    tensors = {name: torch.zeros(shape).double() for name, shape in zip(NAMES, (up, down, up, down))}
    m.fill(tensors.values())
    layer = registry.build({**tensors, "alpha": torch.tensor(2.0)})
    assert isinstance(layer, LoHa)
    # Its forward: both products by `up.view(out, -1) @ down.view(rank, -1)`, then one convolution.
    halves = [tensors[a].view(m.WIDTH_OUT, -1) @ tensors[b].view(3, -1) for a, b in (NAMES[:2], NAMES[2:])]
    weight = (halves[0] * halves[1]).view(module.weight.shape) * (2.0 / 3)
    expected = module(x) + F.conv2d(x, weight, None, module.stride, module.padding)
    m.check_forward("OneTrainer's formula", layer, module, x, expected)


@pytest.mark.parametrize("name, tucker", FORMS)
def test_strength_is_linear_between_the_base_and_strength_1(name: str, tucker: bool) -> None:
    m.check_strengths(LoHa.from_tensors(factors(name, tucker=tucker)), m.base(name).weight)


@pytest.mark.parametrize("tucker", [False, True])
def test_file_round_trip_outline_and_dtypes(tucker: bool) -> None:
    tensors = factors("conv3x3", tucker=tucker, dtype=torch.float32)
    m.check_outline(tensors)
    m.check_dtypes(tensors, m.base("conv3x3").weight)


@pytest.mark.parametrize("target", ["linear", "conv1x1"])
@pytest.mark.parametrize("of", ["linear", "conv1x1"])
def test_linear_and_1x1_factors_fit_either_weight(of: str, target: str) -> None:
    layer = LoHa.from_tensors(factors(of))
    module, x = m.base(target), m.inputs(target)
    with torch.no_grad():
        branch = layer.branch(x, Op.of(module), module.weight)
        assert m.error(module(x) + branch, m.applied(layer, module, x)) < m.RELATIVE


@pytest.mark.parametrize("name, tucker", FORMS)
def test_a_new_layer_is_zero_and_learns(name: str, tucker: bool) -> None:
    module = m.base(name)
    layer = LoHa.init(LayerSpec(tuple(module.weight.shape), RANK, m.ALPHA, {"tucker": tucker}))
    assert (layer.hada_t1 is not None) == tucker
    m.check_zero_start(layer, module, m.inputs(name))


def test_a_new_layer_is_drawn_as_lycoris_draws_it_and_repeats() -> None:
    module = nn.Conv2d(64, 64, 3)
    spec = LayerSpec((64, 64, 3, 3), 32, 4.0, {"tucker": True})
    one, two = (LoHa.init(spec, torch.Generator().manual_seed(3)) for _ in range(2))
    loha = pytest.importorskip("lycoris.modules.loha")
    theirs = dict(loha.LohaModule("x", module, 1.0, 32, 4.0, use_tucker=True).named_parameters())
    assert {name: p.shape for name, p in one.named_parameters()} == {name: p.shape for name, p in theirs.items()}
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, two.get_parameter(name))
        assert abs(float(parameter.std() - theirs[name].std())) <= 0.1 * float(theirs[name].std())
    assert one.scale == 4 / 32


def test_missing_alpha_means_scale_one() -> None:
    tensors = {name: torch.ones(shape) for name, shape in zip(NAMES, ((4, 2), (2, 5), (4, 2), (2, 5)))}
    assert torch.equal(LoHa.from_tensors(tensors).delta(torch.zeros(4, 5)), torch.full((4, 5), 4.0))


def test_a_layer_with_more_tensors_is_not_taken_for_a_plain_one() -> None:
    assert LoHa.matches(frozenset((*NAMES, "alpha")))
    assert not LoHa.matches(frozenset((*NAMES, "dora_scale")))
    assert not LoHa.matches(frozenset(NAMES[:3]))


def test_what_does_not_fit_is_named() -> None:
    tensors = factors()
    with pytest.raises(
        ShapeMismatch, match=rf"hada_w1_a \(40, {RANK}\).* does not fit a weight \(40, 25\).*another base"
    ):
        LoHa.from_tensors(tensors).delta(torch.zeros(40, 25))
    with pytest.raises(ShapeMismatch, match=r"hada_w2_b \(2, 24\).*damaged"):
        LoHa.from_tensors({**tensors, "hada_w2_b": torch.zeros(2, 24)})
    with pytest.raises(ShapeMismatch, match="alpha has 3 numbers"):
        LoHa.from_tensors({**tensors, "alpha": torch.zeros(3)})


def test_factors_that_do_not_fit_are_refused_before_they_are_multiplied() -> None:
    huge = {name: torch.ones(1 << 40, 0) if name.endswith("a") else torch.ones(0, 1 << 40) for name in NAMES}
    with pytest.raises(ShapeMismatch):
        LoHa.from_tensors(huge).delta(torch.ones(4, 4))


@given(case=m.shapes(NAMES, ("hada_t1", "hada_t2", "alpha")))
@settings(max_examples=120, deadline=None)
def test_no_shapes_crash(case: m.Shapes) -> None:
    m.check_any_shapes(LoHa, *case)
