"""A LyCORIS scalar that was saved beside the factors instead of being multiplied into one."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora.errors import BadConfig, ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec
from lib_lora.networks.scalar import Scalar
from tests.networks import matrix as m

THEIRS = {"locon": "LoConModule", "loha": "LohaModule", "lokr": "LokrModule", "glora": "GLoRAModule"}


def parameters_of(kind: str, module: Any) -> tuple[Any, dict[str, Tensor]]:
    """LyCORIS' module with a trained scalar, and its bare parameters: not what its own state_dict gives."""
    pytest.importorskip("lycoris")
    make = getattr(importlib.import_module(f"lycoris.modules.{kind}"), THEIRS[kind])
    theirs = make("x", module, 1.0, lora_dim=m.RANK, alpha=m.ALPHA, use_scalar=True).double().eval()
    m.fill(theirs.parameters())
    theirs.scalar.data.fill_(0.875)
    tensors = {name: parameter.detach().clone() for name, parameter in theirs.named_parameters()}
    return theirs, {**tensors, "alpha": theirs.alpha}


@pytest.mark.parametrize("name", ["linear", "conv3x3"])
@pytest.mark.parametrize("kind", THEIRS)
def test_equals_lycoris_forward(kind: str, name: str) -> None:
    module, x = m.base(name), m.inputs(name)
    theirs, tensors = parameters_of(kind, module)
    layer = registry.build(tensors)
    assert isinstance(layer, Scalar)
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())
    m.check_strengths(layer, module.weight)
    m.check_gradients(layer, module, x)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_file_round_trip_outline_and_dtypes(shape: tuple[int, ...]) -> None:
    _, tensors = parameters_of("loha", m.base("linear"))
    tensors = {name: t.float() for name, t in tensors.items()}
    tensors["scalar"] = tensors["scalar"].reshape(shape)
    m.check_outline(tensors)
    m.check_dtypes(tensors, m.base("linear").weight)


def test_it_stays_round_a_shortened_lora() -> None:
    _, tensors = parameters_of("locon", m.base("linear"))
    layer = registry.build(tensors)
    assert layer is not None and layer.factors() is None
    assert torch.linalg.matrix_rank(layer.truncated(1).delta(m.base("linear").weight)) == 1


def test_it_means_nothing_alone() -> None:
    assert registry.build({"scalar": torch.tensor(1.0)}) is None
    with pytest.raises(ShapeMismatch):
        Scalar.from_tensors({"scalar": torch.tensor(1.0)})
    with pytest.raises(BadConfig):
        Scalar.init(LayerSpec((4, 4), 1, 1.0))
    _, tensors = parameters_of("loha", m.base("linear"))
    with pytest.raises(ShapeMismatch, match=r"scalar \(2,\).*one number"):
        registry.build({**tensors, "scalar": torch.ones(2)})
