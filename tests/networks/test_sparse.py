"""A sparse rest of the weight beside a LoRA, as LyCORIS' extraction writes it under the name `bias_*`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_lora.errors import BadConfig, ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec, Op
from lib_lora.networks.lora import Lora
from lib_lora.networks.sparse import SparseRest
from tests.networks import matrix as m


def factors(name: str, alpha: float) -> dict[str, Tensor]:
    layer = Lora.init(LayerSpec(tuple(m.base(name).weight.shape), m.RANK, alpha)).double()
    m.fill(layer.parameters())
    return layer.to_tensors()


def sparse_rest(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """A rest as a matrix, and its tensors as the extraction writes them: 16-bit positions in the flattened weight."""
    rest = torch.zeros(m.WIDTH_OUT, m.base(name).weight[0].numel()).double()
    generator = torch.Generator().manual_seed(3)
    at = torch.randperm(rest.numel(), generator=generator)[:50]
    rest.view(-1)[at] = torch.randn(50, generator=generator, dtype=torch.float64)
    coo = rest.to_sparse().coalesce()
    return rest, {
        "bias_indices": coo.indices().to(torch.int16),
        "bias_values": coo.values(),
        "bias_size": torch.tensor(rest.shape).to(torch.int16),
    }


@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3", "conv3x3 groups"])
@pytest.mark.parametrize("alpha", [2.0, 1.5])  # the extraction writes alpha = rank; readers scale both by alpha / rank
def test_the_rest_is_added_to_the_weight(name: str, alpha: float) -> None:
    module, x = m.base(name), m.inputs(name)
    rest, tensors = sparse_rest(name)
    core = factors(name, alpha)
    layer = registry.build({**core, **tensors})
    assert isinstance(layer, SparseRest) and layer.factors() is None and not layer.changes_bias
    whole = Lora.from_tensors(core).up.flatten(1) @ Lora.from_tensors(core).down.flatten(1) + rest
    weight = module.weight + whole.view(module.weight.shape) * (alpha / m.RANK)
    m.check_forward("its parts", layer, module, x, Op.of(module).apply(x, weight, module.bias).detach())
    m.check_strengths(layer, module.weight)


def test_file_round_trip_outline_dtypes_and_gradients() -> None:
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in sparse_rest("conv3x3")[1].items()}
    tensors = {**{name: t.float() for name, t in factors("conv3x3", 1.5).items()}, **tensors}
    m.check_outline(tensors)
    m.check_dtypes(tensors, m.base("conv3x3").weight)
    layer = registry.build(tensors)
    assert layer is not None
    m.check_gradients(layer, m.base("conv3x3"), m.inputs("conv3x3"))
    assert torch.linalg.matrix_rank(layer.truncated(1).delta(m.base("conv3x3").weight).flatten(1)) > 1


def test_a_rest_means_nothing_alone_or_incomplete() -> None:
    tensors = sparse_rest("linear")[1]
    assert registry.build(tensors) is None
    assert registry.build({**factors("linear", 1.5), "bias_values": tensors["bias_values"]}) is None
    with pytest.raises(ShapeMismatch):
        SparseRest.from_tensors(tensors)
    with pytest.raises(BadConfig):
        SparseRest.init(LayerSpec((4, 4), 1, 1.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bias_size": torch.tensor([40, 25])},
        {"bias_indices": torch.full((2, 50), 40)},
        {"bias_indices": torch.full((2, 50), -1)},
    ],
)
def test_positions_outside_of_the_weight_are_refused(wrong: dict[str, Tensor]) -> None:
    layer = registry.build({**factors("linear", 1.5), **sparse_rest("linear")[1], **wrong})
    assert layer is not None
    with pytest.raises(ShapeMismatch, match=r"bias_values \(50,\).*does not fit a weight \(40, 24\)"):
        layer.delta(m.base("linear").weight)


@pytest.mark.parametrize(
    "wrong", [{"bias_size": torch.zeros(3)}, {"bias_indices": torch.zeros(2, 49)}, {"bias_indices": torch.zeros(100)}]
)
def test_tensors_that_contradict_each_other_are_refused(wrong: dict[str, Tensor]) -> None:
    with pytest.raises(ShapeMismatch, match="damaged"):
        registry.build({**factors("linear", 1.5), **sparse_rest("linear")[1], **wrong})
