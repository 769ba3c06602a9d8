"""GLoRA: exact against LyCORIS' forward in float64, in its newer and its older layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec
from lib_lora.networks.glora import GLoRA
from tests.networks import matrix as m

NAMES = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
OLD = ("linear", "conv1x1")  # the older writer knew nothing else


def lycoris_module(module: nn.Module, **options: Any) -> Any:
    glora = pytest.importorskip("lycoris.modules.glora")
    theirs = glora.GLoRAModule("x", module, 1.0, **{"lora_dim": m.RANK, "alpha": m.ALPHA, **options}).double().eval()
    m.fill(theirs.parameters())
    theirs.scalar.data.fill_(0.875 if options.get("use_scalar") else 1.0)
    return theirs


def factors(name: str = "linear", dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    layer = GLoRA.init(LayerSpec(tuple(m.base(name).weight.shape), m.RANK, m.ALPHA)).double()
    m.fill(layer.parameters())
    return {key: t.to(dtype) if key != "alpha" else t for key, t in layer.to_tensors().items()}


def old_factors(width_out: int, width_in: int, rank: int, *, conv: bool = False) -> dict[str, Tensor]:
    ones = (1, 1) if conv else ()
    shapes = ((rank, width_in), (width_in, rank), (rank, width_in), (width_out, rank))
    tensors = {name: torch.zeros(*shape, *ones).double() for name, shape in zip(NAMES, shapes)}
    m.fill(tensors.values())
    return tensors


def old_forward(module: Any, x: Tensor, tensors: dict[str, Tensor], scale: float) -> Tensor:
    """What LyCORIS 1.9 to 2.2 compute: scaled after the first and again after the second factor of either pair."""
    op = F.linear if x.ndim == 3 else F.conv2d
    a1, a2, b1, b2 = (tensors[name] for name in NAMES)
    mixed = op(op(x, a1) * scale, a2) * scale
    return module(x + mixed) + op(op(x, b1) * scale, b2) * scale


@pytest.mark.parametrize("name", m.PLAIN)
def test_equals_lycoris_forward(name: str) -> None:
    module, x = m.base(name), m.inputs(name)
    theirs = lycoris_module(module)
    layer = registry.build({key: tensor.detach().clone() for key, tensor in theirs.state_dict().items()})
    assert isinstance(layer, GLoRA)
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("options", [{"use_scalar": True}, {"alpha": 0}])
def test_options_of_lycoris_that_a_file_does_not_name(options: dict[str, Any]) -> None:
    module, x = m.base("linear"), m.inputs("linear")
    theirs = lycoris_module(module, **options)
    layer = registry.build({key: tensor.detach().clone() for key, tensor in theirs.state_dict().items()})
    assert isinstance(layer, GLoRA)
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


def test_a_tucker_core_equals_lycoris_formula() -> None:
    general = pytest.importorskip("lycoris.functional.general")
    module, x = m.base("conv3x3"), m.inputs("conv3x3")
    tensors = factors("conv1x1")
    tensors["bm.weight"] = torch.zeros(m.RANK, m.RANK, 3, 3).double()
    m.fill([tensors["bm.weight"]])
    layer = registry.build(tensors)
    assert isinstance(layer, GLoRA)
    beside = general.tucker_weight_from_conv(*(tensors[f"{name}.weight"] for name in ("b1", "b2", "bm")))
    mix = tensors["a1.weight"].flatten(1) @ tensors["a2.weight"].flatten(1)
    weight = module.weight + (torch.einsum("oikl,ij->ojkl", module.weight, mix) + beside) * (m.ALPHA / m.RANK)
    m.check_forward("LyCORIS' Tucker formula", layer, module, x, F.conv2d(x, weight, module.bias, padding=1))
    m.check_round_trip(tensors)


@pytest.mark.parametrize("name", OLD)
def test_the_older_layout_equals_the_older_forward(name: str) -> None:
    module, x = m.base(name), m.inputs(name)
    tensors = old_factors(m.WIDTH_OUT, m.WIDTH_IN, m.RANK, conv=name != "linear")
    layer = registry.build({**tensors, "alpha": torch.tensor(m.ALPHA)})
    assert isinstance(layer, GLoRA) and [layout.old for layout in layer.layouts] == [True]
    m.check_forward("LyCORIS 2 forward", layer, module, x, old_forward(module, x, tensors, m.ALPHA / m.RANK))


@pytest.mark.parametrize("width", [16, 3])
def test_square_weights_show_the_layout_by_their_width(width: int) -> None:
    """On a square weight both layouts' shapes are the same but for which side is the rank, here also the longer one."""
    rank, module = 5, nn.Linear(width, width).double().requires_grad_(False)
    x = torch.randn(2, 4, width, dtype=torch.float64)
    old = old_factors(width, width, rank)
    layer = registry.build({**old, "alpha": torch.tensor(2.5)})
    assert isinstance(layer, GLoRA) and len(layer.layouts) == 2
    m.check_forward("LyCORIS 2 forward", layer, module, x, old_forward(module, x, old, 0.5))
    theirs = lycoris_module(module, lora_dim=rank, alpha=2.5)
    new = registry.build({key: tensor.detach().clone() for key, tensor in theirs.state_dict().items()})
    assert isinstance(new, GLoRA) and len(new.layouts) == 2
    m.check_forward("LyCORIS 4 forward", new, module, x, theirs(x).detach())


def test_a_rank_as_large_as_a_square_weight_is_read_as_the_newer_layout() -> None:
    module, x = nn.Linear(6, 6).double().requires_grad_(False), torch.randn(2, 6, dtype=torch.float64)
    theirs = lycoris_module(module, lora_dim=6, alpha=1.5)
    layer = registry.build({key: tensor.detach().clone() for key, tensor in theirs.state_dict().items()})
    assert isinstance(layer, GLoRA) and len(layer.layouts) == 2
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("name", m.PLAIN)
def test_strength_is_linear_between_the_base_and_strength_1(name: str) -> None:
    m.check_strengths(GLoRA.from_tensors(factors(name)), m.base(name).weight)


@pytest.mark.parametrize("name", OLD)
def test_strength_is_linear_in_the_older_layout_too(name: str) -> None:
    tensors = old_factors(m.WIDTH_OUT, m.WIDTH_IN, m.RANK, conv=name != "linear")
    m.check_strengths(GLoRA.from_tensors({**tensors, "alpha": torch.tensor(1.0)}), m.base(name).weight)


@pytest.mark.parametrize("name", ["linear", "conv3x3"])
def test_file_round_trip_outline_and_dtypes(name: str) -> None:
    tensors = factors(name, torch.float32)
    m.check_outline(tensors)
    m.check_dtypes(tensors, m.base(name).weight)
    old = {name: t.half() for name, t in old_factors(8, 6, 2).items()}
    m.check_outline(old)
    assert "alpha" not in m.check_round_trip(old).to_tensors()


@pytest.mark.parametrize("tensors, width", [(factors(), (m.WIDTH_OUT, m.WIDTH_IN)), (old_factors(8, 6, 2), (8, 6))])
def test_missing_alpha_means_scale_one(tensors: dict[str, Tensor], width: tuple[int, int]) -> None:
    rank = 2
    bare = GLoRA.from_tensors({name: t for name, t in tensors.items() if name != "alpha"})
    full = GLoRA.from_tensors({**tensors, "alpha": torch.tensor(float(rank))})
    weight = torch.randn(width, dtype=torch.float64)
    assert torch.equal(bare.delta(weight), full.delta(weight))


def test_missing_alpha_means_scale_one_whichever_side_the_rank_is() -> None:
    tensors, weight = old_factors(3, 3, 5), torch.randn(3, 3, dtype=torch.float64)
    bare, full = GLoRA.from_tensors(tensors), GLoRA.from_tensors({**tensors, "alpha": torch.tensor(5.0)})
    assert bare.rank == 3  # the weight, not known yet, will show that it is 5
    assert torch.equal(bare.delta(weight), full.delta(weight))


@pytest.mark.parametrize("target", OLD)
@pytest.mark.parametrize("of", OLD)
def test_linear_and_1x1_factors_fit_either_weight(of: str, target: str) -> None:
    weight = m.base(target).weight
    old = old_factors(m.WIDTH_OUT, m.WIDTH_IN, m.RANK, conv=of != "linear")
    for tensors in (factors(of), old):
        own = m.base(of).weight
        layer = GLoRA.from_tensors(tensors)
        assert m.error(layer.delta(weight).flatten(), layer.delta(weight.reshape(own.shape)).flatten()) < m.RELATIVE


@pytest.mark.parametrize("name", m.PLAIN)
def test_a_new_layer_is_zero_and_learns(name: str) -> None:
    module = m.base(name)
    layer = GLoRA.init(LayerSpec(tuple(module.weight.shape), m.RANK, m.ALPHA))
    m.check_zero_start(layer, module, m.inputs(name))


def test_a_new_layer_is_drawn_as_lycoris_draws_it_and_repeats() -> None:
    spec = LayerSpec((64, 96, 3, 3), 16, 8.0)
    one, two = (GLoRA.init(spec, torch.Generator().manual_seed(3)) for _ in range(2))
    theirs = pytest.importorskip("lycoris.modules.glora").GLoRAModule("x", nn.Conv2d(96, 64, 3), 1.0, 16, 8.0)
    for name in ("a1", "a2", "b1", "b2"):
        ours, wanted = one.get_parameter(name), theirs.get_parameter(f"{name}.weight")
        assert ours.shape == wanted.shape and torch.equal(ours, two.get_parameter(name))
        assert abs(float(ours.std() - wanted.std())) <= 0.1 * float(wanted.std())


def test_what_does_not_fit_is_named() -> None:
    tensors = factors()
    with pytest.raises(ShapeMismatch, match=r"a1.weight \(24, 2\).* does not fit a weight \(40, 25\)"):
        GLoRA.from_tensors(tensors).delta(torch.zeros(40, 25))
    with pytest.raises(ShapeMismatch, match=r"b2.weight \(3, 24\).*neither of the two layouts"):
        GLoRA.from_tensors({**tensors, "b2.weight": torch.zeros(3, 24)})
    with pytest.raises(ShapeMismatch, match="does not fit"):
        GLoRA.from_tensors(old_factors(8, 6, 2)).delta(torch.zeros(8, 6, 3, 3))


@given(case=m.shapes(NAMES, ("bm.weight", "alpha")))
@settings(max_examples=120, deadline=None)
def test_no_shapes_crash(case: m.Shapes) -> None:
    m.check_any_shapes(GLoRA, *case)
