"""OFT: exact against LyCORIS' forward and kohya's formula in float64; rotations are orthogonal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_lora.errors import BadConfig, ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec
from lib_lora.networks.boft import Boft
from lib_lora.networks.oft import Oft, OftDiag
from tests.networks import matrix as m

ACTIVE, INACTIVE = 2.0**-8, 8.0  # exact in float32, in which a file holds them


@pytest.fixture
def wide_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """LyCORIS inverts in float32 (`.float()`): lift that one step, or its rounding would hide ours."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def lycoris_module(module: Any, **options: Any) -> Any:
    diag_oft = pytest.importorskip("lycoris.modules.diag_oft")
    theirs = diag_oft.DiagOFTModule("x", module, 1.0, lora_dim=5, **options).double().eval()
    m.fill([theirs.oft_blocks])
    if options.get("rescaled"):
        m.fill([theirs.rescale], seed=14)
        with torch.no_grad():
            theirs.rescale += 1
    return theirs


def file_of(theirs: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in theirs.state_dict().items()}


def tensors(name: str = "linear", *, rescale: bool = False, alpha: float = 0.0) -> dict[str, Tensor]:
    """A file's tensors for a base layer, blocks of 5."""
    blocks = torch.empty(m.WIDTH_OUT // 5, 5, 5, dtype=torch.float64)
    factors = torch.empty(m.WIDTH_OUT, *(1,) * (m.base(name).weight.dim() - 1), dtype=torch.float64)
    m.fill([blocks, factors])
    return {"oft_blocks": blocks, "alpha": torch.tensor(alpha)} | ({"rescale": factors + 1} if rescale else {})


def rotation(blocks: Tensor, limit: float | None = None) -> Tensor:
    """kohya's R, written out: one dense matrix from blocks inverted one by one."""
    skewed = [block - block.T for block in blocks]
    if limit is not None:
        norm = sum(float(q.square().sum()) for q in skewed) ** 0.5
        skewed = [q * (min(norm, limit) + 1e-8) / (norm + 1e-8) for q in skewed]
    unit = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
    return torch.block_diag(*((unit + q) @ torch.inverse(unit - q) for q in skewed))


@pytest.mark.parametrize("constraint", [0.0, ACTIVE, INACTIVE])
@pytest.mark.parametrize("name", m.BASES)
@pytest.mark.usefixtures("wide_origin")
def test_equals_lycoris_forward(name: str, constraint: float) -> None:
    module, x = m.base(name), m.inputs(name)
    for rescaled in (False, True):
        theirs = lycoris_module(module, constraint=constraint, rescaled=rescaled)
        layer = registry.build(file_of(theirs))
        assert isinstance(layer, Oft) and (layer.rescale is not None) == rescaled
        m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


def test_lycoris_constraint_is_active_when_it_should_be() -> None:
    weight = torch.eye(m.WIDTH_OUT, dtype=torch.float64)
    free, near, far = (Oft.from_tensors(tensors(alpha=a)).delta(weight) for a in (0.0, INACTIVE, ACTIVE))
    assert torch.equal(free, near)
    assert float(far.norm() / free.norm()) < 0.2


@pytest.mark.parametrize("constraint", [0.0, ACTIVE, INACTIVE])
@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3"])
def test_equals_kohyas_formula(name: str, constraint: float) -> None:
    weight = m.base(name).weight
    blocks = tensors()["oft_blocks"]
    layer = registry.build({"oft_blocks": blocks, "constraint": torch.tensor(constraint)})
    assert isinstance(layer, Oft)
    expected = rotation(blocks, constraint * m.WIDTH_OUT).T @ weight.flatten(1)
    with torch.no_grad():
        m.agrees("oft", "kohya's formula", weight + layer.delta(weight), expected.reshape(weight.shape))


def test_kohyas_constraint_of_0_clamps_and_lycoris_alpha_of_0_does_not() -> None:
    weight, given = m.base("linear").weight, tensors()
    kohya = registry.build({"oft_blocks": given["oft_blocks"], "constraint": torch.tensor(0.0)})
    free = [registry.build(given), registry.build({"oft_blocks": given["oft_blocks"]})]
    assert kohya is not None
    with torch.no_grad():
        assert 0 < float(kohya.delta(weight).abs().max()) < 1e-7
        for layer in free:
            assert layer is not None and float(layer.delta(weight).abs().max()) > 0.1


def test_lycoris_2_0_saved_the_rotations_themselves_with_rescale_worked_in() -> None:
    weight, given = m.base("conv3x3").weight, tensors(rescale=True)
    turned = rotation(given["oft_blocks"])
    blocks = torch.stack([turned[i : i + 5, i : i + 5] for i in range(0, m.WIDTH_OUT, 5)])
    scaled = given["rescale"].reshape(-1, 5, 1) * blocks
    layer = registry.build({"oft_diag": scaled})
    assert isinstance(layer, OftDiag)
    expected = torch.einsum("knm,kn...->km...", scaled, weight.reshape(-1, 5, *weight.shape[1:]))
    with torch.no_grad():
        m.agrees("oft_diag", "LyCORIS 2.0's formula", weight + layer.delta(weight), expected.reshape(weight.shape))
        same = Oft.from_tensors(tensors()).delta(weight)
        m.agrees("oft_diag", "the same as oft_blocks", OftDiag(blocks).delta(weight), same)


@given(
    count=st.integers(1, 5),
    size=st.integers(1, 8),
    std=st.sampled_from([1e-6, 0.1, 1.0, 30.0]),
    constraint=st.sampled_from([0.0, 1e-3, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_rotations_are_orthogonal(count: int, size: int, std: float, constraint: float, seed: int) -> None:
    blocks = torch.empty(count, size, size, dtype=torch.float64)
    m.fill([blocks], seed, std)
    unit = torch.eye(count * size, dtype=torch.float64)
    for kohya in (False, True):
        turned = unit + Oft(blocks, constraint, clamps_at_zero=kohya).delta(unit).detach()
        # A solve is as exact as its matrix is well conditioned, and I - Q is as large as Q.
        assert (turned @ turned.T - unit).abs().max() < 1e-13 * max(1.0, std * size)


@pytest.mark.parametrize("name", m.BASES)
def test_strength_interpolates(name: str) -> None:
    for rescale in (False, True):
        m.check_strengths(Oft.from_tensors(tensors(name, rescale=rescale)), m.base(name).weight)


@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3"])
@pytest.mark.parametrize("options", [{}, {"rescale": True, "constraint": 0.25}])
def test_a_new_layer_is_zero_and_learns(name: str, options: dict[str, object]) -> None:
    spec = LayerSpec(tuple(m.base(name).weight.shape), 7, 1.0, options)
    layer = Oft.init(spec)
    assert layer.blocks.shape == (8, 5, 5)  # 40 outputs: no larger divisor up to 7
    m.check_zero_start(layer, m.base(name), m.inputs(name))


def test_kohyas_clamp_gives_a_gradient_at_zero() -> None:
    layer = Oft(torch.zeros(8, 5, 5, dtype=torch.float64), 0.25, clamps_at_zero=True)
    layer.delta(m.base("linear").weight).sum().backward()
    assert layer.blocks.grad is not None and layer.blocks.grad.isfinite().all() and layer.blocks.grad.any()


def test_options_are_checked() -> None:
    for wrong in (-1.0, "0.5"):
        with pytest.raises(BadConfig, match="constraint"):
            Oft.init(LayerSpec((8, 8), 4, 1.0, {"constraint": wrong}))


@pytest.mark.parametrize("rescale", [False, True])
def test_round_trip_dtypes_and_outline(rescale: bool) -> None:
    given = tensors("conv3x3", rescale=rescale, alpha=0.25)
    m.check_round_trip(given)
    m.check_outline(given)
    m.check_dtypes(given, m.base("conv3x3").weight)


def test_kohyas_form_stays_kohyas() -> None:
    given = {"oft_blocks": tensors()["oft_blocks"], "constraint": torch.tensor(1e-3)}
    layer = m.check_round_trip(given)
    assert isinstance(layer, Oft) and layer.clamps_at_zero and layer.alpha == float(given["constraint"])
    m.check_outline(given)
    m.check_round_trip({"oft_diag": given["oft_blocks"]})


def test_rescale_may_be_a_plain_vector() -> None:
    given = tensors("conv3x3", rescale=True)
    vector = Oft.from_tensors({**given, "rescale": given["rescale"].flatten()})
    weight = m.base("conv3x3").weight
    assert torch.equal(vector.delta(weight), Oft.from_tensors(given).delta(weight))


def test_names() -> None:
    assert Oft.matches(frozenset({"oft_blocks"})) and Oft.matches(frozenset({"oft_blocks", "rescale", "alpha"}))
    for odd in ({"oft_blocks", "constraint", "rescale"}, {"oft_blocks", "dora_scale"}, {"rescale"}, {"oft_R"}):
        assert not Oft.matches(frozenset(odd))
    assert isinstance(registry.build({"oft_blocks": torch.zeros(2, 2, 4, 4)}), Boft)


@pytest.mark.parametrize(
    "blocks, rescale",
    [((8, 5, 4), None), ((8, 5), None), ((0, 5, 5), None), ((8, 0, 0), None), ((8, 5, 5), (39, 1)), ((8,), (8,))],
)
def test_shapes_that_contradict_each_other(blocks: tuple[int, ...], rescale: tuple[int, ...] | None) -> None:
    given = {"oft_blocks": torch.ones(blocks)} | ({"rescale": torch.ones(rescale)} if rescale else {})
    with pytest.raises(ShapeMismatch):
        registry.build(given)


def test_another_models_weight_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"oft_blocks \(8, 5, 5\) does not fit a weight \(41, 3\)"):
        Oft.from_tensors(tensors()).delta(torch.zeros(41, 3))
    with pytest.raises(ShapeMismatch):
        OftDiag(torch.zeros(8, 5, 5)).delta(torch.zeros(40))


@given(
    shapes=st.fixed_dictionaries({"oft_blocks": m.SHAPES}, optional={"rescale": m.SHAPES, "alpha": m.SHAPES}),
    weight=m.WEIGHTS,
)
@settings(max_examples=200, deadline=None)
def test_any_shapes_give_a_layer_or_shape_mismatch(shapes: dict[str, Any], weight: tuple[int, ...]) -> None:
    m.check_any_shapes(Oft, shapes, weight)
    m.check_any_shapes(OftDiag, {"oft_diag": shapes["oft_blocks"]}, weight)
