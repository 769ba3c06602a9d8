"""PEFT's and OneTrainer's OFT and BOFT: exact against peft 0.13, figures of newer ones, and formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import Layer, LayerSpec
from lib_lora.networks.peft_oft import PeftBoft, PeftOft, PeftOftBlocks
from tests.networks import matrix as m

SIZE = 8  # of blocks: 24 inputs are 3 of them, with a 3x3 kernel 27
EPS = 2.0**-6  # exact in float32, in which peft multiplies it
CONVS = ("conv1x1", "conv3x3", "conv3x3 stride 2", "conv3x3 dilated", "conv3x1")


def columns(name: str) -> int:
    return int(m.base(name).weight[0].numel())


def vectors(name: str = "linear", *, shared: bool = False) -> Tensor:
    found = torch.empty(1 if shared else columns(name) // SIZE, SIZE * (SIZE - 1) // 2, dtype=torch.float64)
    m.fill([found], std=0.1)
    return found


def number(value: float) -> Tensor:
    return torch.tensor(value)


def skewed(vector: Tensor, size: int = SIZE) -> Tensor:
    """One Q, number by number: the upper triangle row by row, below it the negatives."""
    q = torch.zeros(size, size, dtype=vector.dtype)
    numbers = iter(vector.tolist())
    for row in range(size):
        for column in range(row + 1, size):
            q[row, column] = next(numbers)
            q[column, row] = -q[row, column]
    return q


def series(q: Tensor, coefficients: list[float]) -> Tensor:
    """I + c_1 Q + c_2 Q^2 + ..."""
    total = torch.eye(len(q), dtype=q.dtype)
    for power, coefficient in enumerate(coefficients, 1):
        total = total + coefficient * torch.linalg.matrix_power(q, power)
    return total


def turned(name: str, rotations: list[Tensor], *, inverse: bool = True) -> Tensor:
    """W blockdiag(R)^T, or W blockdiag(R), with one dense matrix; rotations are repeated as often as they fit."""
    weight = m.base(name).weight
    whole = torch.block_diag(*(rotations * (columns(name) // SIZE // len(rotations))))
    return (weight.flatten(1) @ (whole.T if inverse else whole)).reshape(weight.shape)


def new_weight(layer: Layer | None, name: str) -> Tensor:
    assert layer is not None
    weight = m.base(name).weight
    with torch.no_grad():
        return weight + layer.delta(weight)


# --- oft_R: upper triangles


@pytest.mark.parametrize(
    "terms, last, coefficients",
    [
        (None, None, [2, 2, 2, 1]),
        (1, None, []),
        (2, None, [2]),
        (3, None, [2, 2, 1]),  # peft 0.18 to 0.21: three terms are as four
        (4, None, [2, 2, 1]),
        (6, None, [2, 2, 2, 2, 1]),
        (1, 2, []),
        (2, 2, [2]),
        (3, 2, [2, 2]),
        (5, 2, [2, 2, 2, 2]),
    ],
)
@pytest.mark.parametrize("name", ["linear", *CONVS])
def test_series(name: str, terms: int | None, last: int | None, coefficients: list[float]) -> None:
    figures = {"neumann_terms": number(terms)} if terms is not None else {}
    figures |= {"neumann_last": number(last)} if last is not None else {}
    for shared in (False, True):
        given = vectors(name, shared=shared)
        layer = registry.build({"oft_R": given, **figures})
        assert isinstance(layer, PeftOft)
        expected = turned(name, [series(skewed(v), coefficients) for v in given])
        m.agrees("peft_oft", "series written out", new_weight(layer, name), expected)


@pytest.mark.parametrize("name", ["linear", *CONVS])
def test_exact_cayley_turns_the_other_way_than_the_series(name: str) -> None:
    given, unit = vectors(name), torch.eye(SIZE, dtype=torch.float64)
    layer = registry.build({"oft_R": given, "neumann_terms": number(0)})
    rotations = [(unit - skewed(v)) @ torch.inverse(unit + skewed(v)) for v in given]
    m.agrees("peft_oft", "Cayley written out", new_weight(layer, name), turned(name, rotations))


@pytest.mark.parametrize("name", ["linear", *CONVS])
@pytest.mark.parametrize("scaled", [False, True])
def test_onetrainer_turns_convolutions_the_other_way(name: str, scaled: bool) -> None:
    given = vectors(name)
    tensors = {"oft_R.weight": given} | ({"oft_R.scaled_oft": torch.tensor(True)} if scaled else {})
    layer = registry.build(tensors)
    rotations = [series(skewed(v) / (2 * math.sqrt(7) if scaled else 1), [2, 2, 2, 1]) for v in given]
    expected = turned(name, rotations, inverse=name == "linear")
    m.agrees("peft_oft", "OneTrainer written out", new_weight(layer, name), expected)
    m.check_round_trip(tensors)
    m.check_outline(tensors)
    off = registry.build({"oft_R.weight": given, "oft_R.scaled_oft": torch.tensor(False)})
    assert isinstance(off, PeftOft) and not off.scaled


# The second row of what peft merged, by hand: weight[i, j] = ((3i + 2j + 1) mod 7) / 4 - 1/2, 3 x 6, blocks of 3,
# vector number k = ((5k + 2) mod 9) / 16 - 1/4.
MERGED_BY_PEFT = {
    "0.21.2": ({}, [0.1446533203125, 1.1097106933594, -0.2368927001953, 0.607421875, 0.68359375, -0.142578125]),
    "0.17.1": (
        {"neumann_last": 2.0},
        [0.1455078125, 1.1107788085938, -0.2389221191406, 0.60546875, 0.6953125, -0.14453125],
    ),
    "0.21.2 use_cayley_neumann = False": (
        {"neumann_terms": 0.0},
        [0.7962962962963, 0.8148148148148, -0.1203703703704, -0.0555555555556, 0.4722222222222, -0.8055555555556],
    ),
}


@pytest.mark.parametrize("version", MERGED_BY_PEFT)
def test_figures_of_newer_peft(version: str) -> None:
    figures, expected = MERGED_BY_PEFT[version]
    weight = torch.tensor([[((3 * i + 2 * j + 1) % 7) / 4 - 0.5 for j in range(6)] for i in range(3)]).double()
    given = torch.tensor([[((5 * (3 * i + j) + 2) % 9) / 16 - 0.25 for j in range(3)] for i in range(2)]).double()
    layer = registry.build({"oft_R": given, **{name: number(figure) for name, figure in figures.items()}})
    assert layer is not None
    with torch.no_grad():
        assert (weight + layer.delta(weight))[1].tolist() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("eps, shared", [(0.25, False), (0.25, True), (100.0, False), (0.0, False)])
def test_coft_limits_each_block(eps: float, shared: bool) -> None:
    given = vectors(shared=shared)
    if not shared:
        given[0] = 0  # a norm of 0 under a limit of 0
    layer = registry.build({"oft_R": given, "coft_eps": number(eps)})
    limit = eps / math.sqrt(len(given))
    limited = []
    for q in map(skewed, given):
        norm = float(q.square().sum()) ** 0.5
        limited.append(q if norm <= limit else q * limit / norm)
    expected = turned("linear", [series(q, [2, 2, 2, 1]) for q in limited])
    m.agrees("peft_oft", "COFT written out", new_weight(layer, "linear"), expected)
    layer.delta(m.base("linear").weight).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@given(size=st.integers(1, 6), count=st.integers(1, 4), std=st.sampled_from([1e-3, 0.3, 10.0]), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_exact_rotations_are_orthogonal_and_the_series_nearly(size: int, count: int, std: float, seed: int) -> None:
    given = torch.empty(count, size * (size - 1) // 2, dtype=torch.float64)
    m.fill([given], seed, std)
    unit = torch.eye(count * size, dtype=torch.float64)
    whole = unit + PeftOft(given, {"neumann_terms": 0.0}).delta(unit).detach()
    assert (whole @ whole.T - unit).abs().max() < 1e-13 * max(1.0, std * size)
    near = unit + PeftOft(given, {}).delta(unit).detach()
    angle = max((float(torch.linalg.matrix_norm(skewed(v, size), 2)) for v in given), default=0.0)
    # Of an eigenvalue i a of Q the series makes one of absolute value |1 - a^4|.
    error = float(torch.linalg.matrix_norm(near @ near.T - unit, 2))
    if angle < 1:
        assert error == pytest.approx(2 * angle**4 - angle**8, rel=1e-6, abs=1e-13)


def test_triangles_that_are_none_and_terms_out_of_range_are_refused() -> None:
    for shape in ((3, 2), (0, 3), (3,), (2, 3, 3)):
        with pytest.raises(ShapeMismatch, match="triangles"):
            registry.build({"oft_R": torch.ones(shape)})
    for terms in (-1.0, 1e9):
        with pytest.raises(ShapeMismatch, match="neumann_terms"):
            registry.build({"oft_R": torch.ones(3, 28), "neumann_terms": number(terms)})
    with pytest.raises(ShapeMismatch, match=r"oft_R \(3, 28\) does not fit a weight \(40, 32\)"):
        PeftOft(vectors(), {}).delta(torch.zeros(40, 32))


# --- oft_r: square blocks


def peft_model(config: Any, name: str) -> Any:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(nn.Sequential(m.base(name)), config).double().eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            m.fill([parameter])
    return model


def saved(model: Any) -> dict[str, Tensor]:
    peft = pytest.importorskip("peft")
    state = peft.get_peft_model_state_dict(model)
    return {name.removeprefix("base_model.model.0."): tensor.detach().clone() for name, tensor in state.items()}


@pytest.mark.parametrize("name", ["linear", *CONVS])
@pytest.mark.parametrize("options", [{"r": 4}, {"r": 7}, {"r": 16}, {"r": 1}, {"r": 4, "block_share": True}])
def test_equals_peft_0_13(name: str, options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    model, module, x = peft_model(peft.OFTConfig(target_modules=["0"], **options), name), m.base(name), m.inputs(name)
    layer = registry.build(saved(model))  # 40 outputs: 7 blocks of 6 and 16 of 3 stand over the edge
    assert isinstance(layer, PeftOftBlocks)
    m.check_forward("peft 0.13 oft", layer, module, x, model(x).detach())


@pytest.mark.parametrize("options", [{"r": 4}, {"r": 4, "block_share": True}])
def test_coft_equals_peft_0_13(options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    model = peft_model(peft.OFTConfig(target_modules=["0"], coft=True, eps=EPS, **options), "linear")
    tensors, x = saved(model), m.inputs("linear")
    free = registry.build(tensors)
    layer = registry.build({**tensors, "coft_eps": number(EPS)})
    assert layer is not None and free is not None
    m.check_forward("peft 0.13 oft", layer, m.base("linear"), x, model(x).detach())
    assert m.error(new_weight(free, "linear"), new_weight(layer, "linear")) > 0.05, "the constraint was not active"


@pytest.mark.parametrize("name", ["linear", *CONVS])
@pytest.mark.parametrize("shared, eps", [(False, None), (True, None), (False, 0.02)])
def test_peft_0_14_turns_the_input_side_and_scales_rows(name: str, shared: bool, eps: float | None) -> None:
    count, unit = columns(name) // SIZE, torch.eye(SIZE, dtype=torch.float64)
    blocks = torch.empty(1 if shared else count, SIZE, SIZE, dtype=torch.float64)
    rows = torch.empty(m.WIDTH_OUT, 1, dtype=torch.float64)
    m.fill([blocks, rows])
    tensors = {"oft_r": blocks, "oft_s": rows + 1} | ({"coft_eps": number(eps)} if eps is not None else {})
    rotations = []
    for block in blocks:
        if eps is not None:  # peft 0.14 takes the block size from the outputs here
            limit = float(number(eps)) * math.ceil(m.WIDTH_OUT / count) ** 2 / math.sqrt(len(blocks))
            block = block * min(1.0, limit / float(block.norm()))
        s = (block - block.T) / 2
        rotations.append((unit - s) @ torch.inverse(unit + s))
    expected = turned(name, rotations) * (rows + 1).reshape(-1, *(1,) * (m.base(name).weight.dim() - 1))
    layer = registry.build(tensors)
    assert isinstance(layer, PeftOftBlocks)
    m.agrees("peft_oft_blocks", "peft 0.14 written out", new_weight(layer, name), expected)


def test_blocks_for_another_model_are_refused() -> None:
    fit = torch.ones(5, 8, 8)
    for blocks in ((6, 8, 8), (4, 8, 8), (5, 9, 9), (1, 41, 41)):
        with pytest.raises(ShapeMismatch):
            PeftOftBlocks(torch.ones(blocks)).delta(torch.zeros(40, 24))
    assert PeftOftBlocks(fit).delta(torch.zeros(40, 24)).shape == (40, 24)
    for rows in (39, 24):
        with pytest.raises(ShapeMismatch):
            PeftOftBlocks(torch.ones(3, 8, 8), torch.ones(rows, 1)).delta(torch.zeros(40, 24))


# --- boft_R: butterflies


class _BlockDiagonal:
    """In place of peft's CUDA kernel: the same matrices."""

    @staticmethod
    def apply(blocks: Tensor) -> Tensor:
        return torch.stack([torch.block_diag(*stage) for stage in blocks])


@pytest.mark.parametrize("width, stages", [(24, 1), (24, 2), (32, 1), (32, 2), (32, 3), (32, 4)])
def test_boft_equals_peft_0_13(width: int, stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    theirs = pytest.importorskip("peft.tuners.boft.layer")
    monkeypatch.setattr(theirs, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(theirs, "FastBlockDiag", _BlockDiagonal)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = nn.Linear(width, m.WIDTH_OUT).double().requires_grad_(False)
    x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    config = peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=stages, boft_dropout=0.0, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(nn.Linear(width, m.WIDTH_OUT)), config).double().eval()
    model.base_model.model[0].base_layer.load_state_dict(module.state_dict())
    m.fill(p for p in model.parameters() if p.requires_grad)
    layer = registry.build(saved(model))
    assert isinstance(layer, PeftBoft) and len(layer.blocks) == stages
    m.check_forward("peft 0.13 boft", layer, module, x, model(x).detach())


@pytest.mark.parametrize("name", CONVS)
def test_boft_of_convolutions_is_that_of_the_flat_filters(name: str) -> None:
    blocks = torch.empty(1, columns(name) // SIZE, SIZE, SIZE, dtype=torch.float64)
    rows = torch.empty(1, m.WIDTH_OUT, dtype=torch.float64)  # peft writes convolutions' factors as a row
    m.fill([blocks, rows])
    unit, skews = torch.eye(SIZE, dtype=torch.float64), [(b - b.T) / 2 for b in blocks[0]]
    expected = turned(name, [(unit - s) @ torch.inverse(unit + s) for s in skews]) * (rows + 1).reshape(-1, 1, 1, 1)
    layer = registry.build({"boft_R": blocks, "boft_s": rows + 1})
    m.agrees("peft_boft", "peft 0.14 written out", new_weight(layer, name), expected)


@given(stages=st.integers(1, 4), half=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_boft_is_orthogonal(stages: int, half: int, seed: int) -> None:
    blocks = torch.empty(stages, 2 ** (stages - 1), 2 * half, 2 * half, dtype=torch.float64)
    m.fill([blocks], seed)
    unit = torch.eye(blocks.shape[1] * blocks.shape[2], dtype=torch.float64)
    whole = unit + PeftBoft(blocks, torch.ones(len(unit), 1)).delta(unit).detach()
    assert (whole @ whole.T - unit).abs().max() < 1e-13


def test_odd_blocks_make_a_single_stage_only() -> None:
    assert PeftBoft(torch.zeros(1, 8, 3, 3), torch.ones(40, 1)).delta(torch.ones(40, 24)).shape == (40, 24)
    with pytest.raises(ShapeMismatch):
        PeftBoft(torch.zeros(2, 8, 3, 3), torch.ones(40, 1))
    with pytest.raises(ShapeMismatch, match=r"boft_R \(1, 8, 3, 3\) does not fit"):
        PeftBoft(torch.zeros(1, 8, 3, 3), torch.ones(40, 1)).delta(torch.ones(41, 24))


# --- what all of them keep


def filled(layer: Layer) -> dict[str, Tensor]:
    layer = layer.double()
    m.fill(layer.parameters(), std=0.2)
    return layer.to_tensors()


@pytest.mark.parametrize("cls", [PeftOft, PeftOftBlocks, PeftBoft])
@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3"])
def test_rules_of_all_types(cls: type[Layer], name: str) -> None:
    spec = LayerSpec(tuple(m.base(name).weight.shape), 8, 1.0)
    m.check_zero_start(cls.init(spec), m.base(name), m.inputs(name))
    tensors = filled(cls.init(spec))
    layer = m.check_round_trip(tensors)
    assert type(layer) is cls
    m.check_strengths(layer, m.base(name).weight)
    m.check_outline(tensors)
    m.check_dtypes(tensors, m.base(name).weight)


def test_figures_stay_in_a_file() -> None:
    figures = {"neumann_terms": number(4.0), "neumann_last": number(2.0), "coft_eps": number(0.5)}
    m.check_round_trip({"oft_R": vectors(), **figures})
    m.check_round_trip({"oft_r": torch.ones(5, 8, 8), "coft_eps": number(0.0)})


def test_names() -> None:
    assert registry.detect({"oft_R", "neumann_terms"}) is PeftOft
    assert registry.detect({"oft_R.weight", "oft_R.scaled_oft"}) is PeftOft
    assert registry.detect({"oft_r", "oft_s", "coft_eps"}) is PeftOftBlocks
    assert registry.detect({"boft_R", "boft_s"}) is PeftBoft
    # A fork of OneTrainer's writes these; what they mean is not what is done here, so nothing is done.
    for odd in ("oft_R.cans_oft", "oft_R.clipped_oft", "oft_R"):
        assert registry.detect({"oft_R.weight", odd}) is None


@given(shapes=st.fixed_dictionaries({"first": m.SHAPES, "second": m.SHAPES, "number": m.SHAPES}), weight=m.WEIGHTS)
@settings(max_examples=200, deadline=None)
def test_any_shapes_give_a_layer_or_shape_mismatch(shapes: dict[str, Any], weight: tuple[int, ...]) -> None:
    first, second, single = shapes["first"], shapes["second"], shapes["number"]
    m.check_any_shapes(PeftOft, {"oft_R": first, "neumann_terms": single}, weight)
    m.check_any_shapes(PeftOft, {"oft_R.weight": first, "oft_R.scaled_oft": single}, weight)
    m.check_any_shapes(PeftOftBlocks, {"oft_r": first, "coft_eps": single}, weight)
    m.check_any_shapes(PeftOftBlocks, {"oft_r": first, "oft_s": second}, weight)
    m.check_any_shapes(PeftBoft, {"boft_R": first, "boft_s": second}, weight)
