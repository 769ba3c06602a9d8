"""DoRA: exact against LyCORIS' forward on either axis, peft and a formula, round every type of the matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_lora.errors import BadConfig, ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import Layer, LayerSpec
from lib_lora.networks.bias import Bias
from lib_lora.networks.dora import Dora
from lib_lora.networks.lora import Lora
from tests.networks import matrix as m

ALGOS = {
    "lora": ("lycoris.modules.locon", "LoConModule"),
    "loha": ("lycoris.modules.loha", "LohaModule"),
    "lokr": ("lycoris.modules.lokr", "LokrModule"),
}


@pytest.fixture
def wide_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """LyCORIS makes its magnitudes in float32 (`.float()`), which would round them before they are even used."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def magnitudes(weight: Tensor, *, columns: bool) -> Tensor:
    """The norms of W on one axis, in LyCORIS' shape, each times a number from 0.5 to 1.5."""
    axis = 1 if columns else 0
    norms = torch.stack([part.square().sum().sqrt() for part in weight.unbind(axis)])
    spread = torch.linspace(0.5, 1.5, len(norms), dtype=norms.dtype)
    shape = [1] * weight.dim()
    shape[axis] = -1
    return (norms * spread).reshape(shape)


def lora_tensors(name: str = "linear", dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    layer = Lora.init(LayerSpec(tuple(m.base(name).weight.shape), 4, 1.5)).double()
    m.fill(layer.parameters())
    return {key: t.to(dtype) if key != "alpha" else t for key, t in layer.to_tensors().items()}


def tensors(name: str = "linear", *, columns: bool = False) -> dict[str, Tensor]:
    return {**lora_tensors(name), "dora_scale": magnitudes(m.base(name).weight, columns=columns)}


def written_out(weight: Tensor, change: Tensor, magnitude: Tensor, *, columns: bool) -> Tensor:
    """d V / ||V||, row by row or column by column."""
    parts = (weight + change).unbind(1 if columns else 0)
    scaled = [d * part / part.square().sum().sqrt() for d, part in zip(magnitude.flatten(), parts, strict=True)]
    return torch.stack(scaled, 1 if columns else 0)


@pytest.mark.parametrize("on_out", [True, False])
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("name", m.PLAIN)
@pytest.mark.usefixtures("wide_origin")
def test_equals_lycoris_forward(name: str, algo: str, on_out: bool) -> None:
    path, cls = ALGOS[algo]
    module, x = m.base(name), m.inputs(name)
    make = getattr(pytest.importorskip(path), cls)
    theirs = make("x", module, 1.0, lora_dim=4, alpha=1.5, weight_decompose=True, wd_on_out=on_out).double().eval()
    m.fill(p for key, p in theirs.named_parameters() if key != "dora_scale")
    with torch.no_grad():
        theirs.dora_scale.mul_(torch.linspace(0.5, 1.5, theirs.dora_scale.numel()).reshape(theirs.dora_scale.shape))
    layer = registry.build({key: t.detach().clone() for key, t in theirs.state_dict().items()})
    assert isinstance(layer, Dora) and layer.core.kind == algo
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3"])
def test_equals_peft(name: str, square: bool) -> None:
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(21)
        base = m.base(name) if not square else _square(name)
    x = m.inputs(name)
    config = peft.LoraConfig(r=4, lora_alpha=1.5, use_dora=True, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(_square(name) if square else m.base(name)), config).double().eval()
    model.base_model.model[0].base_layer.load_state_dict(base.state_dict())
    m.fill(p for key, p in model.named_parameters() if ".lora_A." in key or ".lora_B." in key)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "magnitude" in key:
                parameter.copy_(magnitudes(base.weight, columns=False).reshape(parameter.shape))
    saved = {
        key.removeprefix("base_model.model.0."): t.detach().clone()
        for key, t in peft.get_peft_model_state_dict(model).items()
    }
    given = {"lora_down.weight": saved["lora_A.weight"], "lora_up.weight": saved["lora_B.weight"]}
    for own_name in ("lora_magnitude_vector", "dora_scale"):
        if square and own_name == "dora_scale" and name != "linear":
            continue  # nothing tells these rows from LyCORIS' columns
        layer = registry.build({**given, "alpha": torch.tensor(1.5), own_name: saved["lora_magnitude_vector"]})
        assert isinstance(layer, Dora)
        m.check_forward("peft 0.13 use_dora", layer, base, x, model(x).detach())
        back = registry.build(layer.to_tensors())
        assert back is not None and torch.equal(back.delta(base.weight), layer.delta(base.weight))


def _square(name: str) -> Any:
    width = m.WIDTH_IN
    module = nn.Linear(width, width) if name == "linear" else nn.Conv2d(width, width, **m.CONVS[name])
    return module.double().requires_grad_(False)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(
    "core",
    [
        {"diff": (40, 24)},
        {"a1.weight": (4, 24), "a2.weight": (24, 4), "b1.weight": (4, 24), "b2.weight": (40, 4)},
        {"oft_blocks": (8, 5, 5)},
        {"oft_R.weight": (3, 28)},
        {"weight": (40,), "on_input": ()},
        {"lora_up.weight": (40, 4), "lora_down.weight": (4, 24), "scalar": ()},
    ],
)
def test_goes_round_every_type(core: Mapping[str, tuple[int, ...]], columns: bool) -> None:
    weight = m.base("linear").weight
    given = {key: torch.empty(shape, dtype=torch.float64) for key, shape in core.items()}
    m.fill(given.values())
    if "on_input" in given:
        given["on_input"] = torch.tensor(False)
    inner = registry.build(given)
    assert inner is not None
    magnitude = magnitudes(weight, columns=columns)
    layer = registry.build({**given, "dora_scale": magnitude})
    assert isinstance(layer, Dora) and type(layer.core) is type(inner)
    with torch.no_grad():
        expected = written_out(weight, inner.delta(weight), magnitude, columns=columns)
        m.agrees("dora", "written out", weight + layer.delta(weight), expected)


def test_stands_inside_a_bias_and_outside_a_sparse_rest() -> None:
    given = {**tensors(), "diff_b": torch.ones(40, dtype=torch.float64)}
    layer = registry.build(given)
    assert isinstance(layer, Bias) and isinstance(layer.core, Dora)
    m.check_round_trip(given)
    rest = {
        "bias_indices": torch.tensor([[0, 39], [3, 23]]),
        "bias_values": torch.tensor([0.5, -2.0], dtype=torch.float64),
        "bias_size": torch.tensor([40, 24]),
    }
    sparse = registry.build({**lora_tensors(), **rest})
    both = registry.build({**tensors(), **rest})
    assert sparse is not None and isinstance(both, Dora)
    weight = m.base("linear").weight
    expected = written_out(weight, sparse.delta(weight), tensors()["dora_scale"], columns=False)
    with torch.no_grad():
        m.agrees("dora", "written out", weight + both.delta(weight), expected)


# out, in, shape of the magnitudes, their name, whether they are norms of columns
@pytest.mark.parametrize(
    "out, width_in, kernel, shape, name, columns",
    [
        (6, 4, (), (6,), "dora_scale", False),
        (6, 4, (), (6, 1), "dora_scale", False),
        (6, 4, (), (1, 4), "dora_scale", True),
        (6, 4, (), (1, 6), "dora_scale", False),
        (4, 4, (), (4,), "dora_scale", False),
        (4, 4, (), (4, 1), "dora_scale", False),
        (4, 4, (), (1, 4), "dora_scale", True),
        (4, 4, (), (4,), "lora_magnitude_vector", False),
        (6, 4, (3, 3), (6, 1, 1, 1), "dora_scale", False),
        (6, 4, (3, 3), (1, 4, 1, 1), "dora_scale", True),
        (6, 4, (3, 3), (1, 6, 1, 1), "dora_scale", False),
        (4, 4, (3, 3), (4, 1, 1, 1), "dora_scale", False),
        (4, 4, (3, 3), (1, 4, 1, 1), "dora_scale", True),
        (4, 4, (3, 3), (1, 4, 1, 1), "lora_magnitude_vector", False),
        (6, 4, (1, 1), (6, 1), "dora_scale", False),  # factors of a Linear, weight of a 1x1 convolution
        (6, 4, (), (1, 4, 1, 1), "dora_scale", True),  # and the other way round
        (1, 4, (), (1, 1), "dora_scale", False),
        (6, 1, (), (1, 1), "dora_scale", True),
    ],
)
def test_axis(
    out: int, width_in: int, kernel: tuple[int, ...], shape: tuple[int, ...], name: str, columns: bool
) -> None:
    weight, up, down, magnitude = (
        torch.empty(s, dtype=torch.float64) for s in ((out, width_in, *kernel), (out, 2), (2, 9 * width_in), shape)
    )
    m.fill([weight, up, down, magnitude])
    down = down[:, : weight[0].numel()]
    layer = registry.build({"lora_up.weight": up, "lora_down.weight": down, name: magnitude})
    assert layer is not None
    change = (up @ down).reshape(weight.shape)
    with torch.no_grad():
        expected = written_out(weight, change, magnitude, columns=columns)
        m.agrees("dora", "written out", weight + layer.delta(weight), expected)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3"])
def test_strength_interpolates(name: str, columns: bool) -> None:
    layer = registry.build(tensors(name, columns=columns))
    assert layer is not None
    m.check_strengths(layer, m.base(name).weight)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3"])
def test_round_a_new_layer_nothing_changes_and_all_learns(name: str, columns: bool) -> None:
    module = m.base(name)
    core = Lora.init(LayerSpec(tuple(module.weight.shape), 4, 1.5))
    single = Dora.around(core, module.weight.float(), columns=columns)
    assert single.magnitude.dtype == torch.float32
    assert not single.delta(module.weight.float()).any()
    layer = Dora.around(core.double(), module.weight, columns=columns)
    assert not layer.delta(module.weight).any()
    assert torch.allclose(layer.magnitude.flatten(), _norms(module.weight, columns=columns), rtol=1e-12)
    layer.branch(m.inputs(name), m.Op.of(module), module.weight).sum().backward()
    assert layer.magnitude.grad is not None and layer.magnitude.grad.any()
    m.check_gradients(layer, module, m.inputs(name))


def _norms(weight: Tensor, *, columns: bool) -> Tensor:
    return torch.stack([part.square().sum().sqrt() for part in weight.unbind(1 if columns else 0)])


def test_a_gradient_is_that_of_the_formula() -> None:
    layer = registry.build(tensors())
    assert layer is not None
    weight = m.base("linear").weight[:40, :24]
    parameters = dict(layer.named_parameters())

    def change(*values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(layer, dict(zip(parameters, values)), (weight,))
        return result.sum()

    layer.forward = layer.delta  # type: ignore[method-assign]
    assert torch.autograd.gradcheck(change, tuple(p.detach().requires_grad_() for p in parameters.values()))


def test_an_empty_row_of_the_base_stays_finite() -> None:
    weight = m.base("linear").weight.clone()
    weight[3] = 0
    given = tensors()
    given["lora_up.weight"][3] = 0
    layer = registry.build(given)
    assert layer is not None
    assert not layer.delta(weight)[3].any() and layer.delta(weight).isfinite().all()


def test_fewer_ranks() -> None:
    layer, weight = registry.build(tensors()), m.base("linear").weight
    cut = lora_tensors()
    cut = {
        "lora_up.weight": cut["lora_up.weight"][:, :2],
        "lora_down.weight": cut["lora_down.weight"][:2],
        "alpha": torch.tensor(0.75),  # the scale of all 4 ranks
    }
    expected = registry.build({**cut, "dora_scale": tensors()["dora_scale"]})
    assert layer is not None and expected is not None
    assert torch.equal(layer.truncated(2).delta(weight), expected.delta(weight))


@pytest.mark.parametrize("columns", [False, True])
def test_round_trip_dtypes_and_outline(columns: bool) -> None:
    given = tensors("conv3x3", columns=columns)
    layer = m.check_round_trip(given)
    assert (layer.rank, layer.alpha, layer.scale) == (4, 1.5, 0.375) and layer.factors() is None
    m.check_outline(given)
    m.check_dtypes(given, m.base("conv3x3").weight)


def test_rows_are_written_as_a_column() -> None:
    for shape, name in (((40,), "dora_scale"), ((40,), "lora_magnitude_vector")):
        layer = registry.build({**lora_tensors(), name: torch.ones(shape)})
        assert layer is not None and layer.to_tensors()["dora_scale"].shape == (40, 1)
    layer = registry.build({**lora_tensors("conv3x3"), "lora_magnitude_vector": torch.ones(1, 40, 1, 1)})
    assert layer is not None and layer.to_tensors()["dora_scale"].shape == (40, 1, 1, 1)


def test_what_is_no_dora_is_refused() -> None:
    assert registry.build({"dora_scale": torch.ones(40, 1)}) is None
    assert registry.build({"dora_scale": torch.ones(40, 1), "alpha": torch.tensor(1.0)}) is None
    assert registry.build({"dora_scale": torch.ones(40, 1), "strange": torch.ones(3)}) is None
    assert registry.build({"dora_scale": torch.ones(40, 1), "b_norm": torch.ones(40)}) is None  # no weight to norm
    for shape in ((40, 24), (40, 1, 3, 3), (), (2, 20)):
        with pytest.raises(ShapeMismatch, match="expected one vector"):
            registry.build({**lora_tensors(), "dora_scale": torch.ones(shape)})
    both = {name: torch.ones(40) for name in ("dora_scale", "lora_magnitude_vector")}
    with pytest.raises(ShapeMismatch, match="expected one vector"):
        registry.build({**lora_tensors(), **both})
    layer = registry.build({**lora_tensors(), "dora_scale": torch.ones(39, 1)})
    assert layer is not None
    with pytest.raises(ShapeMismatch, match=r"dora_scale \(39, 1\) does not fit a weight \(40, 24\)"):
        layer.delta(m.base("linear").weight)
    with pytest.raises(ShapeMismatch):
        Dora.from_tensors({"dora_scale": torch.ones(3)})
    with pytest.raises(BadConfig):
        Dora.init(LayerSpec((4, 4), 2, 1.0))


@given(
    out=st.integers(1, 5),
    width_in=st.integers(1, 5),
    kernel=st.sampled_from([(), (1, 1), (3, 3)]),
    columns=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_norms_are_the_magnitudes(out: int, width_in: int, kernel: tuple[int, ...], columns: bool, seed: int) -> None:
    weight = torch.empty(out, width_in, *kernel, dtype=torch.float64)
    magnitude = torch.empty((1, width_in) if columns else (out, 1), dtype=torch.float64)
    core: Layer = Lora.init(LayerSpec(tuple(weight.shape), 2, 1.0)).double()
    m.fill([weight, *core.parameters(), magnitude], seed, 1.0)
    magnitude = magnitude.abs() + 0.1
    changed = weight + Dora(core, magnitude).delta(weight).detach()
    assert torch.allclose(_norms(changed, columns=columns), magnitude.flatten(), rtol=1e-10)
