"""LoKr: exact against LyCORIS' forward and peft in float64, in every form of its factors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_lora.errors import BadConfig, ShapeMismatch
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec, Op
from lib_lora.networks.lokr import LoKr, factorized
from tests.networks import matrix as m

WHOLE1, LOW1 = {"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}
WHOLE2, LOW2 = {"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}
# What makes LyCORIS write a form, and the form.
FORMS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "w1, w2_a w2_b": ({}, WHOLE1 | LOW2),
    "w1_a w1_b, w2_a w2_b": ({"decompose_both": True}, LOW1 | LOW2),
    "w1, w2": ({"full_matrix": True}, WHOLE1 | WHOLE2),
    "w1, w2 for a high rank": ({"lora_dim": 64}, WHOLE1 | WHOLE2),
    # A low-rank w1 beside a whole w2 comes about where w1 is the larger one.
    "w1_a w1_b, w2": ({"decompose_both": True, "unbalanced_factorization": True, "lora_dim": 3}, LOW1 | WHOLE2),
    "factor 4": ({"factor": 4}, WHOLE1 | LOW2),
    "unbalanced": ({"unbalanced_factorization": True}, WHOLE1 | LOW2),
}
TUCKER = LOW2 | {"lokr_t2"}


def lycoris_module(module: nn.Module, **options: Any) -> Any:
    lokr = pytest.importorskip("lycoris.modules.lokr")
    theirs = lokr.LokrModule("x", module, 1.0, **{"lora_dim": m.RANK, "alpha": m.ALPHA, **options}).double().eval()
    m.fill(theirs.parameters())
    theirs.scalar.data.fill_(0.875 if options.get("use_scalar") else 1.0)
    return theirs


def file_of(theirs: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in theirs.state_dict().items()}


def factors(name: str = "linear", dtype: torch.dtype = torch.float64, **options: Any) -> dict[str, Tensor]:
    rank = options.pop("lora_dim", m.RANK)
    layer = LoKr.init(LayerSpec(tuple(m.base(name).weight.shape), rank, m.ALPHA, options)).double()
    m.fill(layer.parameters())
    return {key: t.to(dtype) if key != "alpha" else t for key, t in layer.to_tensors().items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", m.BASES)
def test_equals_lycoris_forward(name: str, form: str) -> None:
    options, names = FORMS[form]
    module, x = m.base(name), m.inputs(name)
    theirs = lycoris_module(module, **options)
    tensors = file_of(theirs)
    if name != "conv3x3 groups":  # its fewer inputs change which factors are worth splitting
        assert tensors.keys() - {"alpha"} == names
    layer = registry.build(tensors)
    assert isinstance(layer, LoKr)
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("name", [name for name in m.BASES if "3" in name])
def test_tucker_equals_lycoris_forward(name: str, both: bool) -> None:
    module, x = m.base(name), m.inputs(name)
    theirs = lycoris_module(module, use_tucker=True, decompose_both=both)
    tensors = file_of(theirs)
    assert tensors.keys() - {"alpha"} == (LOW1 if both and name != "conv3x3 groups" else WHOLE1) | TUCKER or both
    layer = registry.build(tensors)
    assert isinstance(layer, LoKr)
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


@pytest.mark.parametrize("options", [{"use_scalar": True}, {"alpha": 0}])
@pytest.mark.parametrize("both", [False, True])
def test_options_of_lycoris_that_a_file_does_not_name(options: dict[str, Any], both: bool) -> None:
    module, x = m.base("linear"), m.inputs("linear")
    theirs = lycoris_module(module, decompose_both=both, **options)
    layer = registry.build(file_of(theirs))
    assert isinstance(layer, LoKr)
    m.check_forward("LyCORIS 4 forward", layer, module, x, theirs(x).detach())


def test_rs_lora_is_in_the_alpha_of_the_file() -> None:
    wide = nn.Linear(256, 256).double()
    theirs = lycoris_module(wide, lora_dim=4, rs_lora=True)
    layer = registry.build(file_of(theirs))
    assert isinstance(layer, LoKr)
    assert (layer.alpha, layer.scale) == (3.0, m.ALPHA / 2)
    x = torch.randn(3, 256, dtype=torch.float64)
    m.check_forward("LyCORIS 4 forward", layer, wide, x, theirs(x).detach())


PEFT = [(name, {}) for name in m.PLAIN]
PEFT += [("linear", {"decompose_both": True}), ("conv3x3", {"use_effective_conv2d": True}), ("linear", {"r": 64})]


@pytest.mark.parametrize("name, options", PEFT)
def test_equals_peft(name: str, options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    x = m.inputs(name)
    config = peft.LoKrConfig(**{"r": m.RANK, "alpha": 7.0, "target_modules": ["0"], **options})
    model = peft.get_peft_model(nn.Sequential(m.base(name)), config).double().eval()
    m.fill(p for p in model.parameters() if p.requires_grad)
    tensors = {
        key.removeprefix("base_model.model.0."): tensor.detach().clone()
        for key, tensor in peft.get_peft_model_state_dict(model).items()
    }
    layer = registry.build(tensors)  # no alpha: peft 0.13 does not use it for LoKr
    assert isinstance(layer, LoKr)
    m.check_forward("peft 0.13", layer, m.base(name), x, model(x).detach())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3"])
def test_strength_is_linear_between_the_base_and_strength_1(name: str, form: str) -> None:
    m.check_strengths(LoKr.from_tensors(factors(name, **FORMS[form][0])), m.base(name).weight)


@pytest.mark.parametrize("form", FORMS)
def test_file_round_trip_outline_and_dtypes(form: str) -> None:
    tensors = factors("conv3x3", torch.float32, **FORMS[form][0])
    m.check_outline(tensors)
    m.check_dtypes(tensors, m.base("conv3x3").weight)


def test_tucker_round_trip_outline_and_dtypes() -> None:
    tensors = factors("conv3x3", torch.float32, tucker=True)
    assert "lokr_t2" in tensors
    m.check_outline(tensors)
    m.check_dtypes(tensors, m.base("conv3x3").weight)


@pytest.mark.parametrize("alpha", [0.25, 9_999_999_999.0, float("inf")])
def test_two_whole_factors_have_scale_one_whatever_the_alpha(alpha: float) -> None:
    tensors = {"lokr_w1": torch.full((2, 2), 2.0), "lokr_w2": torch.full((3, 4), 3.0), "alpha": torch.tensor(alpha)}
    layer = LoKr.from_tensors(tensors)
    assert torch.equal(layer.delta(torch.zeros(6, 8)), torch.full((6, 8), 6.0))
    assert torch.equal(layer.branch(torch.ones(1, 8), Op(), torch.zeros(6, 8)), torch.full((1, 6), 48.0))
    assert float(layer.to_tensors()["alpha"]) == 1  # so that no number that means nothing goes into a file


def test_missing_alpha_means_scale_one() -> None:
    tensors = {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.ones(3, 5), "lokr_w2_b": torch.ones(5, 4)}
    assert torch.equal(LoKr.from_tensors(tensors).delta(torch.zeros(6, 8)), torch.full((6, 8), 5.0))


@pytest.mark.parametrize("target", ["linear", "conv1x1"])
@pytest.mark.parametrize("of", ["linear", "conv1x1"])
@pytest.mark.parametrize("full", [False, True])
def test_linear_and_1x1_factors_fit_either_weight(of: str, target: str, full: bool) -> None:
    layer = LoKr.from_tensors(factors(of, full_matrix=full))
    module, x = m.base(target), m.inputs(target)
    with torch.no_grad():
        branch = layer.branch(x, Op.of(module), module.weight)
        assert m.error(module(x) + branch, m.applied(layer, module, x)) < m.RELATIVE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3", "conv3x3 groups"])
def test_a_new_layer_is_zero_and_learns(name: str, form: str) -> None:
    options = dict(FORMS[form][0])
    spec = LayerSpec(tuple(m.base(name).weight.shape), options.pop("lora_dim", m.RANK), m.ALPHA, options)
    m.check_zero_start(LoKr.init(spec), m.base(name), m.inputs(name))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
@pytest.mark.parametrize("widths", [(320, 320), (320, 1280), (768, 320), (77, 64), (127, 4), (10240, 1280)])
def test_a_new_layer_has_lycoris_shapes(widths: tuple[int, int], kernel: tuple[int, ...], form: str) -> None:
    lokr = pytest.importorskip("lycoris.modules.lokr")
    options = {"lora_dim": 8, **FORMS[form][0]}
    with torch.device("meta"):
        module = nn.Conv2d(widths[1], widths[0], kernel) if kernel else nn.Linear(widths[1], widths[0])
    theirs = lokr.LokrModule("x", module, 1.0, alpha=4, use_tucker=True, **options)
    rank = options.pop("lora_dim")
    ours = LoKr.init(LayerSpec((*widths, *kernel), rank, 4.0, {**options, "tucker": True}))
    assert {n: tuple(p.shape) for n, p in ours.named_parameters()} == {
        n: tuple(p.shape) for n, p in theirs.named_parameters()
    }


def test_a_new_layer_is_drawn_as_lycoris_draws_it_and_repeats() -> None:
    spec = LayerSpec((256, 256, 3, 3), 4, 4.0, {"decompose_both": True, "tucker": True})
    one, two = (LoKr.init(spec, torch.Generator().manual_seed(3)) for _ in range(2))
    lokr = pytest.importorskip("lycoris.modules.lokr")
    theirs = lokr.LokrModule("x", nn.Conv2d(256, 256, 3), 1.0, 4, 4.0, decompose_both=True, use_tucker=True)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, two.get_parameter(name))
        wanted = float(theirs.get_parameter(name).std())
        assert abs(float(parameter.std()) - wanted) <= 0.25 * wanted, name


@given(width=st.integers(1, 3000), factor=st.one_of(st.just(-1), st.integers(1, 70)))
@settings(max_examples=150, deadline=None)
def test_factorized_as_lycoris(width: int, factor: int) -> None:
    general = pytest.importorskip("lycoris.functional.general")
    assert factorized(width, factor) == general.factorization(width, factor)


def test_a_strange_factor_is_named() -> None:
    with pytest.raises(BadConfig, match="factor = 'big'"):
        LoKr.init(LayerSpec((8, 8), 2, 1.0, {"factor": "big"}))


def test_only_whole_forms_are_taken() -> None:
    assert LoKr.matches(frozenset({"lokr_w1", "lokr_w2"}))
    assert not LoKr.matches(frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2"}))
    assert not LoKr.matches(frozenset({"lokr_w1", "lokr_w2_a"}))
    assert not LoKr.matches(frozenset({"lokr_w1", "lokr_w2", "lokr_t2"}))
    assert not LoKr.matches(frozenset({"lokr_w1", "lokr_w2", "dora_scale"}))


def test_what_does_not_fit_is_named() -> None:
    tensors = factors()
    layer = LoKr.from_tensors(tensors)
    for use in (lambda w: layer.delta(w), lambda w: layer.branch(torch.zeros(1, 25), Op(), w)):
        with pytest.raises(ShapeMismatch, match=r"lokr_w1 \(5, 4\).* does not fit a weight \(40, 25\).*another base"):
            use(torch.zeros(40, 25))
    with pytest.raises(ShapeMismatch, match=r"lokr_w2_a \(8, 3\).*w1 or w2 cannot be built.*damaged"):
        LoKr.from_tensors({**tensors, "lokr_w2_a": torch.zeros(8, 3)})


NAMES = st.sampled_from([tuple(sorted(left | right)) for left in (WHOLE1, LOW1) for right in (WHOLE2, LOW2, TUCKER)])


@given(data=st.data(), names=NAMES)
@settings(max_examples=150, deadline=None)
def test_no_shapes_crash(data: st.DataObject, names: tuple[str, ...]) -> None:
    m.check_any_shapes(LoKr, *data.draw(m.shapes(names, ("alpha",))))
