"""BOFT: exact against LyCORIS' forward in float64; butterflies are orthogonal; strength interpolates the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_lora.errors import BadConfig, ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec
from lib_lora.networks.boft import Boft
from tests.networks import matrix as m

ACTIVE, INACTIVE = 2.0**-8, 8.0


@pytest.fixture(autouse=True)
def wide_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """LyCORIS inverts in float32 (`.float()`): lift that one step, or its rounding would hide ours."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def lycoris_module(module: Any, size: int = 10, **options: Any) -> Any:
    boft = pytest.importorskip("lycoris.modules.boft")
    theirs = boft.ButterflyOFTModule("x", module, 1.0, lora_dim=size, **options).double().eval()
    m.fill([theirs.oft_blocks])
    if options.get("rescaled"):
        m.fill([theirs.rescale], seed=14)
        with torch.no_grad():
            theirs.rescale += 1
    return theirs


def file_of(theirs: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in theirs.state_dict().items()}


def tensors(name: str = "linear", *, rescale: bool = False, alpha: float = 0.0) -> dict[str, Tensor]:
    """A file's tensors for a base layer: 4 blocks of 10 in 3 stages."""
    blocks = torch.empty(3, 4, 10, 10, dtype=torch.float64)
    factors = torch.empty(m.WIDTH_OUT, *(1,) * (m.base(name).weight.dim() - 1), dtype=torch.float64)
    m.fill([blocks, factors])
    return {"oft_blocks": blocks, "alpha": torch.tensor(alpha)} | ({"rescale": factors + 1} if rescale else {})


@pytest.mark.parametrize("constraint", [0.0, ACTIVE, INACTIVE])
@pytest.mark.parametrize("name", m.BASES)
def test_equals_lycoris_forward(name: str, constraint: float) -> None:
    module, x = m.base(name), m.inputs(name)
    for rescaled in (False, True):
        theirs = lycoris_module(module, constraint=constraint, rescaled=rescaled)
        layer = registry.build(file_of(theirs))
        assert isinstance(layer, Boft) and layer.blocks.shape == (3, 4, 10, 10)
        m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("out, size, stages", [(32, 2, 5), (32, 4, 4), (32, 32, 1), (24, 6, 3), (48, 6, 4)])
def test_every_number_of_stages_equals_lycoris(out: int, size: int, stages: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = nn.Linear(m.WIDTH_IN, out).double().requires_grad_(False)
    theirs, x = lycoris_module(module, size), m.inputs("linear")
    layer = registry.build(file_of(theirs))
    assert isinstance(layer, Boft) and layer.blocks.shape == (stages, out // size, size, size)
    assert Boft.init(LayerSpec((out, m.WIDTH_IN), size, 1.0)).blocks.shape == layer.blocks.shape
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3"])
def test_strength_interpolates_the_end_where_lycoris_interpolates_stages(name: str) -> None:
    module = m.base(name)
    for rescale in (False, True):
        m.check_strengths(Boft.from_tensors(tensors(name, rescale=rescale)), module.weight)
    theirs = lycoris_module(module)
    layer = registry.build(file_of(theirs))
    assert layer is not None
    with torch.no_grad():
        apart = m.error(module.weight + 0.5 * layer.delta(module.weight), theirs.make_weight(0.5, "cpu"))
    assert apart > 0.05, "LyCORIS' rule is ours after all: say so in the docstring"


@given(stages=st.integers(1, 4), half=st.integers(1, 3), std=st.sampled_from([1e-6, 0.1, 3.0]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_butterflies_are_orthogonal(stages: int, half: int, std: float, seed: int) -> None:
    count, size = 2 ** (stages - 1), 2 * half
    blocks = torch.empty(stages, count, size, size, dtype=torch.float64)
    m.fill([blocks], seed, std)
    unit = torch.eye(count * size, dtype=torch.float64)
    turned = unit + Boft(blocks).delta(unit).detach()
    assert (turned @ turned.T - unit).abs().max() < 1e-13 * max(1.0, std * size)


def test_all_stages_together_mix_every_row_with_every_other() -> None:
    unit = torch.eye(m.WIDTH_OUT, dtype=torch.float64)
    assert bool(((unit + Boft.from_tensors(tensors()).delta(unit)) != 0).all())


@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3"])
@pytest.mark.parametrize("options", [{}, {"rescale": True, "constraint": 0.25}])
def test_a_new_layer_is_zero_and_learns(name: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    layer = Boft.init(LayerSpec(tuple(m.base(name).weight.shape), 12, 1.0, options))
    assert layer.blocks.shape == (3, 4, 10, 10)
    m.check_zero_start(layer, m.base(name), m.inputs(name))


def test_ranks_and_outputs_without_a_butterfly_are_refused() -> None:
    with pytest.raises(BadConfig, match="rank = 8 is too small for BOFT on 40 outputs; choose at least 10"):
        Boft.init(LayerSpec((40, 8), 8, 1.0))
    with pytest.raises(BadConfig, match="9 outputs; leave this layer out"):
        Boft.init(LayerSpec((9, 8), 16, 1.0))


@pytest.mark.parametrize("rescale", [False, True])
def test_round_trip_dtypes_and_outline(rescale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    given = tensors("conv3x3", rescale=rescale, alpha=0.25)
    m.check_round_trip(given)
    m.check_outline(given)
    m.check_dtypes(given, m.base("conv3x3").weight)


@pytest.mark.parametrize("blocks", [(3, 2, 4, 4), (2, 2, 3, 3), (0, 2, 4, 4), (2, 2, 4, 2), (2, 2, 0, 0)])
def test_blocks_that_are_no_butterfly_are_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match="stages"):
        registry.build({"oft_blocks": torch.ones(blocks)})


def test_another_models_weight_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"does not fit a weight \(41, 3\)"):
        Boft.from_tensors(tensors()).delta(torch.zeros(41, 3))
    with pytest.raises(ShapeMismatch):
        Boft(torch.zeros(1, 2, 4, 4), rescale=torch.ones(7))


@given(
    shapes=st.fixed_dictionaries({"oft_blocks": m.SHAPES}, optional={"rescale": m.SHAPES, "alpha": m.SHAPES}),
    weight=m.WEIGHTS,
)
@settings(max_examples=150, deadline=None)
def test_any_shapes_give_a_layer_or_shape_mismatch(shapes: dict[str, Any], weight: tuple[int, ...]) -> None:
    m.check_any_shapes(Boft, shapes, weight)
