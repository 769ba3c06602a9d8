"""LoRA and LoCon: exact against LyCORIS and peft in float64, on Linear and every kind of convolution."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks.base import LayerSpec, Op
from lib_lora.networks.lora import Lora

RELATIVE = 1e-12
CASES: dict[str, tuple[nn.Module, tuple[int, ...], bool]] = {
    "linear": (nn.Linear(12, 20), (2, 7, 12), False),
    "conv1x1": (nn.Conv2d(12, 20, 1), (2, 12, 8, 9), False),
    "conv3x3": (nn.Conv2d(12, 20, 3, padding=1), (2, 12, 8, 9), False),
    "conv3x3 stride 2": (nn.Conv2d(12, 20, 3, stride=2, padding=1), (2, 12, 8, 9), False),
    "conv3x3 tucker": (nn.Conv2d(12, 20, 3, padding=1), (2, 12, 8, 9), True),
    "conv3x3 tucker stride 2": (nn.Conv2d(12, 20, 3, stride=2, padding=1), (2, 12, 8, 9), True),
    "conv3x3 dilated": (nn.Conv2d(12, 20, 3, padding=2, dilation=2), (2, 12, 8, 9), False),
}


def random_layer(base: nn.Module, *, tucker: bool, rank: int = 4, alpha: float = 2.5) -> Lora:
    shape = tuple(base.weight.shape)  # type: ignore[arg-type, union-attr]
    layer = Lora.init(LayerSpec(shape, rank, alpha, {"tucker": tucker})).double()
    nn.init.normal_(layer.up, std=0.3)
    return layer


def merged(base: nn.Module, layer: Lora) -> nn.Module:
    other: Any = copy.deepcopy(base)
    with torch.no_grad():
        other.weight += layer.delta(other.weight)
    return other


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, bool]:
    torch.manual_seed(5)
    base, shape, tucker = CASES[request.param]
    return copy.deepcopy(base).double(), torch.randn(shape, dtype=torch.float64), tucker


def test_delta_and_branch_equal_lycoris_forward(case: tuple[nn.Module, Tensor, bool]) -> None:
    locon = pytest.importorskip("lycoris.modules.locon")
    base, x, tucker = case
    layer = random_layer(base, tucker=tucker)
    theirs = locon.LoConModule("x", base, 1.0, lora_dim=4, alpha=2.5, use_tucker=tucker, rank_dropout_scale=False)
    theirs = theirs.double()
    with torch.no_grad():
        theirs.lora_up.weight.copy_(layer.up)
        theirs.lora_down.weight.copy_(layer.down)
        if layer.mid is not None:
            theirs.lora_mid.weight.copy_(layer.mid)
        expected = theirs(x)
        change = expected - base(x)
        assert change.abs().max() > 1e-2
        worst = error(merged(base, layer)(x), expected)
        assert worst < RELATIVE, f"delta: {worst:.2e}"
        worst = error(layer.branch(x, Op.of(base), base.weight), change)
        assert worst < RELATIVE, f"branch: {worst:.2e}"


# peft has no Tucker core, and its `lora_A` ignores dilation.
@pytest.mark.parametrize("name", [name for name in CASES if "tucker" not in name and "dilated" not in name])
def test_delta_equals_peft(name: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(6)
    base, shape, _ = CASES[name]
    base = copy.deepcopy(base).double()
    x = torch.randn(shape, dtype=torch.float64)
    layer = random_layer(base, tucker=False)
    config = peft.LoraConfig(r=4, lora_alpha=2.5, target_modules=["0"])
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(base)), config).double().eval()
    wrapped = theirs.base_model.model[0]
    with torch.no_grad():
        wrapped.lora_A["default"].weight.copy_(layer.down)
        wrapped.lora_B["default"].weight.copy_(layer.up)
        worst = error(merged(base, layer)(x), theirs(x))
    assert worst < RELATIVE, f"{worst:.2e}"


@pytest.mark.parametrize("strength", [1.0, -0.7])
def test_onto_adds_the_branch(case: tuple[nn.Module, Tensor, bool], strength: float) -> None:
    base, x, tucker = case
    layer, op = random_layer(base, tucker=tucker), Op.of(base)
    output, x = base(x).detach().requires_grad_(), x.requires_grad_()
    weight: Any = base.weight
    results = []
    for out in (layer.onto(output, x, op, weight, strength), output + strength * layer.branch(x, op, weight)):
        given = [output, x, *layer.parameters()]
        results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for mine, theirs in zip(*results):
        assert mine.shape == theirs.shape and error(mine, theirs) < RELATIVE


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 5, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_onto_keeps_shape_and_dtype_of_the_output(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Also of a base in half precision on a CPU, whose branch is computed in float32."""
    torch.manual_seed(0)
    base = nn.Linear(12, 20)
    layer, x = random_layer(base, tucker=False).float(), torch.randn(shape)
    output = base(x).to(dtype)
    out = layer.onto(output, x, Op(), base.weight, 0.5)
    assert out.shape == output.shape and out.dtype == dtype
    assert error(out, output + 0.5 * layer.branch(x, Op(), base.weight)) < (1e-6 if dtype == torch.float32 else 1e-3)


def test_onto_rounds_a_half_output_once() -> None:
    torch.manual_seed(0)
    base = nn.Linear(64, 64).half()
    layer, x = random_layer(base, tucker=False).half(), torch.randn(32, 64).half()
    output = torch.randn(32, 64).half()
    exact = output.double() + layer.double().branch(x.double(), Op(), base.weight.double())
    layer.half()

    def wrong(out: Tensor) -> float:
        return float((out.double() - exact).abs().mean())

    assert wrong(layer.onto(output, x, Op(), base.weight)) < wrong(output + layer.branch(x, Op(), base.weight))


def test_gradients_through_a_small_scale_do_not_overflow_halves() -> None:
    """kohya's default: alpha 1 at rank 128."""
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(32, 32).half()
    layer = random_layer(base, tucker=False, rank=128, alpha=1.0).half()
    x = torch.randn(4096, 1, generator=generator).abs().expand(-1, 32).half()
    out = layer.onto(base(x).detach(), x, Op(), base.weight)
    (gradient,) = torch.autograd.grad(out, layer.up, torch.full_like(out, 32.0))
    assert gradient.isfinite().all() and gradient.abs().max() > 100


def test_onto_drops_ranks_as_branch_does() -> None:
    base = nn.Linear(12, 20).double()
    layer, x = random_layer(base, tucker=False, rank=8), torch.randn(3, 5, 12, dtype=torch.float64)
    layer.rank_dropout = 0.5
    found = []
    for use in (
        lambda: layer.onto(base(x), x, Op(), base.weight),
        lambda: base(x) + layer.branch(x, Op(), base.weight),
    ):
        torch.manual_seed(7)
        found.append(use())
    whole = base(x) + layer.factors().scale * x @ layer.down.t() @ layer.up.t()  # type: ignore[union-attr]
    assert error(*found) < RELATIVE < error(found[0], whole)


def test_branch_equals_delta_with_groups() -> None:
    torch.manual_seed(7)
    base = nn.Conv2d(12, 20, 3, padding=1, groups=4).double()
    layer = random_layer(base, tucker=False)
    x = torch.randn(2, 12, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        assert error(layer.branch(x, Op.of(base), base.weight), merged(base, layer)(x) - base(x)) < RELATIVE


@pytest.mark.parametrize("factors", ["linear", "conv1x1"])
@pytest.mark.parametrize("target", ["linear", "conv1x1"])
def test_linear_and_1x1_factors_fit_either_weight(factors: str, target: str) -> None:
    torch.manual_seed(8)
    layer = random_layer(CASES[factors][0], tucker=False)
    base, shape, _ = CASES[target]
    base = copy.deepcopy(base).double()
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        assert layer.delta(base.weight).shape == base.weight.shape  # type: ignore[arg-type, union-attr]
        assert error(layer.branch(x, Op.of(base), base.weight), merged(base, layer)(x) - base(x)) < RELATIVE


def test_a_new_layer_is_zero_and_learns(case: tuple[nn.Module, Tensor, bool]) -> None:
    base, x, tucker = case
    layer = Lora.init(LayerSpec(tuple(base.weight.shape), 4, 1.0, {"tucker": tucker}))  # type: ignore[arg-type, union-attr]
    assert layer.up.dtype == torch.float32
    assert not layer.delta(base.weight).any()  # type: ignore[arg-type]
    layer.double().branch(x, Op.of(base), base.weight).square().mean().backward()
    assert layer.up.grad is not None
    nn.init.ones_(layer.up)
    layer.branch(x, Op.of(base), base.weight).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_init_draws_as_kohya_and_repeats_with_its_generator() -> None:
    spec = LayerSpec((8, 64, 3, 3), 16, 8.0)
    one, two = (Lora.init(spec, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.down, two.down)
    reference = nn.init.kaiming_uniform_(torch.empty(16, 64, 3, 3), a=5**0.5)
    assert one.down.abs().max() <= 1 / (64 * 9) ** 0.5
    assert abs(one.down.std() / reference.std() - 1) < 0.05
    assert one.scale == 0.5


def test_missing_alpha_means_scale_one() -> None:
    layer = Lora.from_tensors({"lora_up.weight": torch.ones(3, 2), "lora_down.weight": torch.ones(2, 5)})
    assert layer.scale == 1.0
    assert torch.equal(layer.delta(torch.zeros(3, 5)), torch.full((3, 5), 2.0))


@given(rank=st.integers(1, 5), alpha=st.floats(0.01, 100), tucker=st.booleans(), half=st.booleans())
@settings(max_examples=25, deadline=None)
def test_tensors_round_trip(rank: int, alpha: float, tucker: bool, half: bool) -> None:
    layer = Lora.init(LayerSpec((6, 4, 3, 3), rank, alpha, {"tucker": tucker}))
    layer = layer.half() if half else layer
    tensors = layer.to_tensors()
    assert Lora.matches(frozenset(tensors))
    back = Lora.from_tensors(tensors).to_tensors()
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], t) and back[k].dtype == t.dtype for k, t in tensors.items())


def test_delta_is_wide_and_leaves_its_inputs_alone() -> None:
    layer = random_layer(CASES["linear"][0], tucker=False).half()
    weight = torch.randn(20, 12, dtype=torch.float16)
    before = weight.clone(), layer.up.clone(), layer.down.clone()
    assert layer.delta(weight).dtype == torch.float32
    assert layer.delta(weight.double()).dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, layer.up, layer.down), strict=True))


def test_a_dora_is_not_taken_for_a_lora() -> None:
    assert not Lora.matches(frozenset({"lora_up.weight", "lora_down.weight", "alpha", "dora_scale"}))
    assert not Lora.matches(frozenset({"lora_up.weight", "alpha"}))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ShapeMismatch, match="do not share a rank"):
        Lora(torch.zeros(4, 3), torch.zeros(2, 4))
    with pytest.raises(ShapeMismatch, match=r"\(4, 2\) x \(2, 4\) do not fit a weight \(5, 4\)"):
        Lora(torch.zeros(4, 2), torch.zeros(2, 4)).delta(torch.zeros(5, 4))


@pytest.mark.parametrize(
    "up, mid",
    [((4, 2, 3, 3), None), ((4, 2), (2, 2, 3)), ((4, 2), (2, 2, 3, 3, 3))],
)
def test_factors_of_odd_shapes_are_refused(up: tuple[int, ...], mid: tuple[int, ...] | None) -> None:
    with pytest.raises(ShapeMismatch):
        Lora(torch.ones(up), torch.ones(2, 4), mid=None if mid is None else torch.ones(mid))


def test_factors_that_do_not_fit_are_refused_before_they_are_multiplied() -> None:
    huge = Lora(torch.ones(1 << 40, 0), torch.ones(0, 1 << 40))  # no data, but a product of 2^80 numbers
    with pytest.raises(ShapeMismatch):
        huge.delta(torch.ones(4, 4))
