"""What every network type is tested with: base layers, the rules all types keep, and a table of the worst errors.

A test of a type brings its own references; `agrees` compares and remembers, the suite prints the table at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import Layer, Op
from lib_lora.patch.merge import Share, merged

WIDTH_IN, WIDTH_OUT = 24, 40
RELATIVE = 1e-12
RANK, ALPHA = 2, 1.5  # alpha / rank is exact in binary: some references keep it in float32
Shapes = tuple[dict[str, tuple[int, ...]], tuple[int, ...]]
STRENGTHS = (-0.7, 0.0, 0.5, 2.0)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES += [getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)]
CONVS: dict[str, dict[str, Any]] = {
    "conv1x1": {"kernel_size": 1},
    "conv3x3": {"kernel_size": 3, "padding": 1},
    "conv3x3 stride 2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "conv3x3 dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "conv3x1": {"kernel_size": (3, 1), "padding": (1, 0)},
    "conv3x3 groups": {"kernel_size": 3, "padding": 1, "groups": 4},
}
BASES = ("linear", *CONVS)
PLAIN = tuple(name for name in BASES if name != "conv3x3 groups")
# (type, reference) -> worst relative error of this session
WORST: dict[tuple[str, str], float] = {}


def base(name: str, *, bias: bool = True) -> Any:
    """A float64 base layer of the matrix, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        if name == "linear":
            return nn.Linear(WIDTH_IN, WIDTH_OUT, bias=bias).double().requires_grad_(False)
        return nn.Conv2d(WIDTH_IN, WIDTH_OUT, bias=bias, **CONVS[name]).double().requires_grad_(False)


def inputs(name: str) -> Tensor:
    """Inputs for `base(name)`."""
    shape = (2, 7, WIDTH_IN) if name == "linear" else (2, WIDTH_IN, 8, 9)
    return torch.randn(shape, generator=torch.Generator().manual_seed(12), dtype=torch.float64)


def fill(tensors: Iterable[Tensor], seed: int = 13, std: float = 0.3) -> None:
    """Random numbers in place, so that nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * std)


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return float((actual - expected).abs().max() / expected.abs().max())


def agrees(kind: str, reference: str, actual: Tensor, expected: Tensor) -> None:
    """`actual` is `expected` but for float64 rounding; the error goes into the table."""
    assert actual.shape == expected.shape
    worst = error(actual, expected)
    WORST[kind, reference] = max(WORST.get((kind, reference), 0.0), worst)
    assert worst < RELATIVE, f"{kind} against {reference}: {worst:.2e}"


def applied(layer: Layer, module: Any, x: Tensor) -> Tensor:
    """The base layer's output for x with the layer's deltas added to its weight and bias."""
    weight, bias = module.weight, module.bias
    if layer.changes_weight:
        weight = weight + layer.delta(weight)
    if layer.changes_bias:
        bias = torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias
        bias = bias + layer.bias_delta(bias)
    return Op.of(module).apply(x, weight, bias)


def check_forward(reference: str, layer: Layer, module: Any, x: Tensor, expected: Tensor) -> None:
    """`expected`, the reference's output for x, comes out of the changed weight and out of base and branch."""
    kind, plain = layer.kind, Op.of(module).apply(x, module.weight, module.bias)
    with torch.no_grad():
        assert (expected - plain).abs().max() > 1e-2, "the reference changes nothing, so this would prove nothing"
        agrees(kind, reference, applied(layer, module, x), expected)
        agrees(kind, reference, plain + layer.branch(x, Op.of(module), module.weight), expected)


def check_strengths(layer: Layer, weight: Tensor) -> None:
    """W' = W + m (W_1 - W) through the merge, at every strength."""
    with torch.no_grad():
        whole = merged(weight, [Share(layer, 1.0)])
        assert not torch.equal(whole, weight)
        for strength in STRENGTHS:
            agrees(
                layer.kind,
                "W + m (W_1 - W)",
                merged(weight, [Share(layer, strength)]),
                weight + strength * (whole - weight),
            )
        assert torch.equal(merged(weight, [Share(layer, 0.0)]), weight)


def check_round_trip(tensors: Mapping[str, Tensor]) -> Layer:
    """Tensors -> layer -> tensors keeps every bit and dtype; an alpha is kept as a float32 number."""
    layer = registry.build(tensors)
    assert layer is not None
    back = layer.to_tensors()
    assert back.keys() - {"alpha"} == tensors.keys() - {"alpha"}
    for name, tensor in tensors.items():
        if name == "alpha":
            assert back[name].dtype == torch.float32 and float(back[name]) == float(tensor)
        else:
            assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
            assert torch.equal(_bits(back[name]), _bits(tensor))
    again = registry.build(back)
    assert type(again) is type(layer)
    return layer


def check_outline(tensors: Mapping[str, Tensor]) -> None:
    """A layer can be made of tensors on the meta device: nothing but the one-number tensors is read."""
    outline = {name: t if t.numel() == 1 else t.to("meta") for name, t in tensors.items()}
    layer = registry.build(outline)
    assert layer is not None
    assert {name: t.shape for name, t in layer.to_tensors().items() if name != "alpha"} == {
        name: t.shape for name, t in tensors.items() if name != "alpha"
    }
    real = registry.build(tensors)
    assert real is not None
    assert (layer.rank, layer.alpha, layer.scale) == (real.rank, real.alpha, real.scale)


def check_dtypes(tensors: Mapping[str, Tensor], weight: Tensor) -> None:
    """Factors of every dtype give a float32 delta (float64 for float64) of their exact values; inputs stay the same."""
    for dtype in DTYPES:
        cast = {name: t.to(dtype) if t.is_floating_point() and name != "alpha" else t for name, t in tensors.items()}
        layer = check_round_trip(cast)
        for target in (torch.float16, torch.float32, torch.float64):
            given = weight.to(target)
            before = given.clone()
            with torch.no_grad():
                change = layer.delta(given)
            wide = torch.float64 if torch.float64 in (dtype, target) else torch.float32
            assert change.dtype == wide and change.shape == weight.shape
            assert torch.equal(given, before)
            exact = registry.build({name: t.double() if t.dtype == dtype else t for name, t in cast.items()})
            assert exact is not None
            with torch.no_grad():
                expected = exact.delta(given.double())
            assert error(change.double(), expected) < (1e-12 if wide == torch.float64 else 1e-5)


def check_zero_start(layer: Layer, module: Any, x: Tensor) -> None:
    """A new layer is float32 and changes nothing at all, and training can leave that state."""
    assert all(p.dtype == torch.float32 for p in layer.parameters())
    with torch.no_grad():
        assert not layer.delta(module.weight).any()
        assert not layer.branch(x.float(), Op.of(module), module.weight.float()).any()
    layer = layer.double()
    layer.branch(x, Op.of(module), module.weight).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in layer.parameters())
    check_gradients(layer, module, x)


def check_gradients(layer: Layer, module: Any, x: Tensor) -> None:
    """Gradients reach every factor, through delta and through branch."""
    layer = layer.double()
    fill(layer.parameters())
    for use in ("delta", "branch"):
        layer.zero_grad()
        if use == "delta":
            layer.delta(module.weight).square().sum().backward()
        else:
            layer.branch(x, Op.of(module), module.weight).square().sum().backward()
        dead = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
        assert not dead, f"{use} gives {dead} no gradient"


# Mostly equal sizes, so that many draws hold together.
SIZES = st.sampled_from([2, 2, 2, 1, 3, 0])
SHAPES = st.lists(SIZES, max_size=4).map(tuple)
WEIGHTS = st.one_of(
    st.tuples(st.integers(1, 4)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
)
NUMBERS = ("alpha", "on_input", "scalar")  # tensors of one number
CORES = ("hada_t1", "hada_t2", "lokr_t2", "bm.weight", "lora_mid.weight")  # tensors of four axes


@st.composite
def shapes(draw: st.DrawFn, names: Sequence[str], optional: Sequence[str] = ()) -> Shapes:
    """Shapes for tensors of these names and for a weight: of few sizes, so that many of them hold together."""
    pool = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    size, odd = st.sampled_from(pool), st.sampled_from([*pool, 0, 1])
    matrix = st.tuples(size, size)
    shape = st.one_of(matrix, st.lists(odd, max_size=4).map(tuple))
    more = draw(st.sets(st.sampled_from(optional), max_size=4)) if optional else ()
    found = {}
    conv = st.tuples(size, size, size, size)
    for name in (*names, *sorted(more)):
        likely = st.sampled_from([(), (1,)]) if name in NUMBERS else conv if name in CORES else matrix
        found[name] = draw(st.one_of(likely, likely, shape))
    return found, draw(st.one_of(matrix, matrix, st.tuples(size), conv))


def check_any_shapes(cls: type[Layer], shapes: Mapping[str, tuple[int, ...]], weight: tuple[int, ...]) -> bool:
    """Tensors of any shape give a layer or ShapeMismatch, and so does its delta; returns whether there was a delta."""
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    assert cls.matches(frozenset(tensors))
    outline = {name: t if t.numel() == 1 else t.to("meta") for name, t in tensors.items()}
    try:
        layer = cls.from_tensors(tensors)
    except ShapeMismatch:
        try:
            cls.from_tensors(outline)
        except ShapeMismatch:
            return False
        raise
    cls.from_tensors(outline)
    try:
        change = layer.delta(torch.ones(weight))
        if layer.changes_bias:
            layer.bias_delta(torch.ones(weight[0]))
    except ShapeMismatch:
        return False
    assert change.shape == weight
    return True


def _bits(tensor: Tensor) -> Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(-1).view(kinds[tensor.element_size()])
