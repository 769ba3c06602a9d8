"""T-LoRA: exact against LyCORIS' forward in float64, with every start it offers, masked and whole."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_lora.errors import ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec
from lib_lora.networks.tlora import START, TLora
from tests.networks import matrix as m

NAMES = ("q_layer.weight", "p_layer.weight", "lambda_layer")


@pytest.fixture
def wide_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """LyCORIS takes its start from a float32 SVD (`.float()`): lift that step, or its rounding would hide ours."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # it collects garbage for every module, most of a second each


def lycoris_module(module: Any, **options: Any) -> Any:
    """A module as training leaves it: near its start."""
    tlora = pytest.importorskip("lycoris.modules.tlora")
    theirs = tlora.TLoraModule("x", module, 1.0, **{"lora_dim": 6, "alpha": 3.0, **options}).double().eval()
    steps = [torch.empty_like(p) for p in theirs.parameters()]
    m.fill(steps, std=0.05)
    with torch.no_grad():
        for parameter, step in zip(theirs.parameters(), steps, strict=True):
            parameter.add_(step)
    return theirs


def file_of(theirs: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in theirs.state_dict().items()}


def tensors(name: str = "linear", *, start: bool = True) -> dict[str, Tensor]:
    """The authors' own form, which holds the start; random numbers."""
    shape = m.base(name).weight.shape
    ones = (1,) * (len(shape) - 2)
    shapes = {NAMES[0]: (6, m.WIDTH_IN, *ones), NAMES[1]: (m.WIDTH_OUT, 6, *ones), NAMES[2]: (1, 6)}
    if start:
        shapes |= {"base_q.weight": shapes[NAMES[0]], "base_p.weight": shapes[NAMES[1]], "base_lambda": (1, 6)}
    given = {key: torch.empty(shape, dtype=torch.float64) for key, shape in shapes.items()}
    for seed, tensor in enumerate(given.values()):
        m.fill([tensor], seed)
    return {**given, "alpha": torch.tensor(3.0)}


def written_out(given: dict[str, Tensor], ranks: int = 6) -> Tensor:
    """The sum of the ranks' outer products, minus that of the start's."""
    total = torch.zeros(m.WIDTH_OUT, m.WIDTH_IN, dtype=torch.float64)
    for sign, (q, p, values) in ((1, NAMES), (-1, ("base_q.weight", "base_p.weight", "base_lambda"))):
        for rank in range(ranks):
            outer = torch.outer(given[p].flatten(1)[:, rank], given[q].flatten(1)[rank])
            total += sign * given[values].flatten()[rank] * outer
    return total


@pytest.mark.parametrize("sig_type", ["principal", "last", "middle"])
@pytest.mark.parametrize("name", ["linear", "conv1x1"])
@pytest.mark.usefixtures("wide_origin")
def test_equals_lycoris_forward_from_every_start(name: str, sig_type: str) -> None:
    module, x = m.base(name), m.inputs(name)
    theirs = lycoris_module(module, sig_type=sig_type)
    saved = file_of(theirs)
    assert saved.keys() == {*NAMES, "alpha"}  # no start
    layer = registry.build(saved)
    assert isinstance(layer, TLora) and not layer.has_start
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("ranks", [1, 4, 6])
@pytest.mark.parametrize("sig_type", ["principal", "last"])
@pytest.mark.usefixtures("wide_origin")
def test_a_mask_is_fewer_ranks(ranks: int, sig_type: str) -> None:
    tlora = pytest.importorskip("lycoris.modules.tlora")
    module, x = m.base("linear"), m.inputs("linear")
    theirs = lycoris_module(module, sig_type=sig_type)
    layer = registry.build(file_of(theirs))
    assert layer is not None
    mask = tlora.compute_timestep_mask(timestep=1000 - 200 * (ranks - 1), max_timestep=1000, max_rank=6)
    assert int(mask.sum()) == ranks
    try:
        tlora.set_timestep_mask(mask)
        expected = theirs(x).detach()
    finally:
        tlora.clear_timestep_mask()
    m.check_forward("LyCORIS 4 forward", layer.truncated(ranks), module, x, expected)
    assert layer.truncated(ranks).scale == layer.scale


@pytest.mark.parametrize("name", ["linear", "conv1x1"])
def test_the_authors_files_hold_the_start(name: str) -> None:
    given, weight = tensors(name), m.base(name).weight
    layer = m.check_round_trip(given)
    assert isinstance(layer, TLora) and layer.has_start
    with torch.no_grad():
        for ranks in (6, 2):
            change = layer.truncated(ranks).delta(weight)
            m.agrees("tlora", "written out", change, 0.5 * written_out(given, ranks).reshape(weight.shape))
    del given["alpha"]  # as the authors' files are: scale 1
    whole = registry.build(given)
    assert whole is not None and whole.scale == 1.0
    assert [name for name, _ in layer.named_parameters()] == ["p", "values", "q"]  # the start is not trained


@pytest.mark.usefixtures("wide_origin")
def test_a_random_start_that_is_not_in_the_file_is_refused() -> None:
    module = m.base("linear")
    theirs = lycoris_module(module, use_data_init=False)
    layer = registry.build(file_of(theirs))
    assert layer is not None
    with pytest.raises(ShapeMismatch, match="did not start from singular vectors.*base_p.weight"):
        layer.delta(module.weight)


@pytest.mark.usefixtures("wide_origin")
def test_a_rank_beyond_the_spectrum() -> None:
    module, x = m.base("linear"), m.inputs("linear")
    theirs = lycoris_module(module, lora_dim=30)  # 24 singular values: LyCORIS fills up with zeros
    layer = registry.build(file_of(theirs))
    assert layer is not None
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


def test_an_untrained_file_changes_next_to_nothing() -> None:
    module = m.base("linear")
    tlora = pytest.importorskip("lycoris.modules.tlora")
    theirs = tlora.TLoraModule("x", module, 1.0, lora_dim=6, alpha=3.0)
    layer = registry.build(file_of(theirs))
    assert layer is not None
    assert 0 < float(layer.delta(module.weight).abs().max()) < 1e-6  # the file's start is a float32 one


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("name", ["linear", "conv1x1"])
def test_strength_interpolates(name: str, start: bool) -> None:
    given = tensors(name)
    if not start:
        p, s, q = torch.linalg.svd(m.base(name).weight.flatten(1), full_matrices=False)
        near = {NAMES[0]: q[:6], NAMES[1]: p[:, :6], NAMES[2]: s[None, :6] * 1.1}
        given = {key: near[key].reshape(given[key].shape) for key in NAMES}
    layer = registry.build(given)
    assert layer is not None
    m.check_strengths(layer, m.base(name).weight)


@pytest.mark.parametrize("name", ["linear", "conv1x1"])
def test_a_new_layer_is_zero_and_learns(name: str) -> None:
    shape = tuple(m.base(name).weight.shape)
    one, two = (TLora.init(LayerSpec(shape, 6, 3.0), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.q, two.q) and torch.equal(one.p, two.p)
    unit = torch.eye(6)
    assert torch.allclose(one.q.flatten(1) @ one.q.flatten(1).T, unit, atol=1e-6)
    assert torch.allclose(one.p.flatten(1).T @ one.p.flatten(1), unit, atol=1e-6)
    assert {*START} <= one.to_tensors().keys()
    m.check_zero_start(one, m.base(name), m.inputs(name))


def test_layers_that_take_no_new_one() -> None:
    for shape, rank in (((40, 24, 3, 3), 6), ((40, 24), 25)):
        with pytest.raises(ShapeMismatch, match="leave this layer out"):
            TLora.init(LayerSpec(shape, rank, 1.0))


@pytest.mark.parametrize("start", [True, False])
def test_round_trip_and_outline(start: bool) -> None:
    given = tensors("conv1x1", start=start)
    m.check_round_trip(given)
    m.check_outline(given)
    if start:
        m.check_dtypes(given, m.base("conv1x1").weight)


def test_what_does_not_fit_is_refused() -> None:
    layer = registry.build(tensors("conv1x1"))
    assert layer is not None
    with pytest.raises(ShapeMismatch, match=r"\(40, 6, 1, 1\).*does not fit a weight \(40, 24, 3, 3\)"):
        layer.delta(m.base("conv3x3").weight)
    given = tensors()
    for key in (*NAMES, *START):
        with pytest.raises(ShapeMismatch, match="share a rank"):
            registry.build({**given, key: torch.ones(1, 7)})
    assert registry.build({key: given[key] for key in (*NAMES, START[0])}) is None


@given(shapes=st.fixed_dictionaries(dict.fromkeys(NAMES, m.SHAPES), optional={"alpha": m.SHAPES}), weight=m.WEIGHTS)
@settings(max_examples=200, deadline=None)
def test_any_shapes_give_a_layer_or_shape_mismatch(shapes: dict[str, Any], weight: tuple[int, ...]) -> None:
    m.check_any_shapes(TLora, shapes, weight)
