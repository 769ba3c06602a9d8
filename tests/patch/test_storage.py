"""Weights of every dtype, fused, quantised, computed or missing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lib_lora.keys.layer_key import TE1
from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Patcher
from lib_lora.ports import Slot
from tests.patch.bare import (
    Bare,
    Shift,
    bare,
    bits,
    expected,
    key,
    loaded,
    network_for,
    random_lora,
    same,
    weight,
    weights,
)

LIN = key("lin")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_what_is_too_large_for_the_dtype_is_undone_and_told(patcher: Patcher, dtype: torch.dtype) -> None:
    model = bare(dtype)
    before, network = weights(model), network_for(model, 2)
    huge = Network("huge", {**network.layers, LIN: Shift(1e6, weight=True)})
    report = patcher.apply(model, [loaded(network, unet=0.1), loaded(huge, unet=0.1)])
    name = str(dtype).removeprefix("torch.")
    wrong = [why for n in report.networks for why in n.mismatched]
    assert len(wrong) == 2 and all(w.startswith("unet:lin: the result is too large for " + name) for w in wrong)
    assert [n.applied for n in report.networks] == [3, 3]
    assert "1 do not fit (first: unet:lin: the result is too large" in report.summary()
    after = weights(model)
    assert torch.equal(bits(after["unet:lin.weight"]), bits(before["unet:lin.weight"]))
    assert not torch.equal(bits(after["unet:conv.weight"]), bits(before["unet:conv.weight"]))
    assert patcher.apply(model, [loaded(network, unet=0.1), loaded(huge, unet=1e-7)]).complete
    patcher.restore()
    assert same(weights(model), before)


def test_what_overflowed_is_tried_again_on_other_weights() -> None:
    model, patcher = bare(torch.float16), Patcher()
    load = loaded(Network("high", {LIN: Shift(65000.0, weight=True)}))
    weight(model).data.fill_(1000.0)
    assert patcher.apply(model, [load]).networks[0].applied == 0
    model.modules[LIN].load_state_dict({"weight": torch.zeros(8, 6), "bias": torch.zeros(8)})
    model.identity = "two"
    assert patcher.apply(model, [load]).networks[0].applied == 1
    assert (weight(model) == 64992.0).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_weights_stored_in_an_unknown_way_are_told(patcher: Patcher, dtype: torch.dtype) -> None:
    model = bare(torch.float32)
    stored = nn.Parameter(torch.ones(8, 6, dtype=dtype), requires_grad=False)
    model.modules[LIN].weight = stored
    report = patcher.apply(model, [loaded(network_for(model, 1))])
    name = str(dtype).removeprefix("torch.")
    assert report.networks[0].applied == 3
    assert report.networks[0].mismatched == (
        f"unet:lin: the weight is stored as {name}, which cannot be merged into; load the model unquantised",
    )
    assert model.modules[LIN].weight is stored and (stored == 1).all()


def test_weights_computed_from_others_are_told(patcher: Patcher) -> None:
    model = bare(torch.float32)
    module = nn.utils.parametrizations.weight_norm(model.modules[LIN])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    report = patcher.apply(model, [loaded(network_for(model, 1))])
    assert report.networks[0].applied == 3
    assert report.networks[0].mismatched[0].startswith("unet:lin: something computes this weight from others; ")
    assert same(before, module.state_dict())


def test_every_layer_in_a_dtype_of_its_own(patcher: Patcher) -> None:
    model = bare(torch.float32)
    dtypes = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float32, torch.float64]
    for module, dtype in zip(model.modules.values(), dtypes, strict=True):
        module.to(dtype)
    before, one, two = weights(model), network_for(model, 1), network_for(model, 2)
    assert patcher.apply(model, [loaded(one, te=0.5, unet=0.5), loaded(two, te=-0.3, unet=-0.3)]).complete
    for name in one.layers:
        want = expected(before[f"{name}.weight"], [(one.layers[name], 0.5), (two.layers[name], -0.3)])
        got = model.modules[name].weight
        assert isinstance(got, Tensor) and got.dtype == before[f"{name}.weight"].dtype
        step = torch.finfo(got.dtype).eps * (want.abs() + want.abs().max() * 1e-6)
        assert ((got.double() - want).abs() <= step * 0.51 + 1e-6).all()
    patcher.restore()
    assert same(weights(model), before)


@pytest.mark.parametrize("wider", [False, True])
def test_eight_bits_with_and_without_the_wider_copy_beside(patcher: Patcher, wider: bool) -> None:
    """As the webui stores them: `module.to(float8)`, on request with `fp16_weight` and `fp16_bias` kept."""
    model = bare(torch.float32)
    module = model.modules[LIN]
    halves = {part: p.data.clone().half() for part, p in module.named_parameters()}
    if wider:
        module.fp16_weight, module.fp16_bias = halves["weight"], halves["bias"]  # type: ignore[assignment]
    module.to(torch.float8_e4m3fn)
    before = weights(model)
    base = halves if wider else {part: before[f"unet:lin.{part}"] for part in halves}
    layer = random_lora((8, 6), 2, 3)
    network, shift = Network("n", {LIN: layer}), Network("s", {LIN: Shift(0.3)})
    for strength in (0.02, 0.5):
        patcher.apply(model, [loaded(network, unet=strength), loaded(shift, unet=strength)])
        want = (base["weight"].float() + strength * layer.delta(base["weight"].float())).to(torch.float8_e4m3fn)
        assert torch.equal(bits(weight(model)), bits(want))
        bias = (base["bias"].float() + strength * 0.3).to(torch.float8_e4m3fn)
        assert torch.equal(bits(module.bias), bits(bias))  # type: ignore[arg-type]
    patcher.restore()
    assert same(weights(model), before)
    if wider:
        assert torch.equal(module.fp16_weight, halves["weight"])  # type: ignore[arg-type]


def test_to_eight_bits_and_another_strength_while_applied(patcher: Patcher) -> None:
    model = bare(torch.float16)
    before, network = weights(model), network_for(model, 2)
    patcher.apply(model, [loaded(network)])
    for module in model.modules.values():
        module.to(torch.float8_e4m3fn)
    patcher.apply(model, [loaded(network, te=0.5, unet=0.5)])
    want = expected(before["unet:lin.weight"], [(network.layers[LIN], 0.5)])
    assert torch.equal(bits(weight(model)), bits(want.float().to(torch.float8_e4m3fn)))
    patcher.restore()
    assert same(weights(model), {name: tensor.to(torch.float8_e4m3fn) for name, tensor in before.items()})


def test_memory_formats(patcher: Patcher) -> None:
    model = bare(torch.float16)
    conv = model.modules[key("conv")].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    linear = model.modules[LIN]
    linear.weight = nn.Parameter(torch.randn(6, 8).half().t())  # stored the other way round
    before, network = weights(model), network_for(model, 2)
    assert patcher.apply(model, [loaded(network)]).complete
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    for path in ("lin", "conv"):
        want = expected(before[f"unet:{path}.weight"], [(network.layers[key(path)], 1.0)])
        assert torch.equal(weight(model, path).detach(), want.float().half())
    patcher.restore()
    assert same(weights(model), before)


def fused(dtype: torch.dtype) -> tuple[Bare, nn.MultiheadAttention]:
    """Query, key and value of one torch attention as three layers, and its closing projection."""
    attention = nn.MultiheadAttention(4, 2).to(dtype)
    parts = {
        key(name, TE1): Slot(attention, "in_proj_weight", "in_proj_bias", slice(4 * i, 4 * i + 4))
        for i, name in enumerate("qkv")
    }
    return Bare({key("attention"): attention}, more={**parts, key("out"): Slot(attention.out_proj)}), attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_of_a_fused_weight_belong_to_layers_of_their_own(patcher: Patcher, dtype: torch.dtype) -> None:
    model, attention = fused(dtype)
    before = {name: p.data.clone() for name, p in attention.named_parameters()}
    layers = {name: random_lora((4, 4), 2, i) for i, name in enumerate("qkv")}

    def rows(*names: str) -> Tensor:
        parts = dict(zip("qkv", before["in_proj_weight"].chunk(3), strict=True))
        return torch.cat([expected(p, [(layers[n], 1.0)] if n in names else []) for n, p in parts.items()])

    def load(*names: str) -> object:
        return loaded(Network("".join(names), {key(name, TE1): layers[name] for name in names}))

    for request in ([("q", "v")], [("k",)], [("q",), ("v",)], [("q", "k", "v")], [("v",)]):
        report = patcher.apply(model, [load(*names) for names in request])  # type: ignore[misc]
        assert report.complete and [n.applied for n in report.networks] == [len(names) for names in request]
        want = rows(*(name for names in request for name in names)).to(dtype)
        torch.testing.assert_close(attention.in_proj_weight.detach(), want, rtol=0, atol=1e-6)
    shift = Network("shift", {key("k", TE1): Shift(0.5)})
    patcher.apply(model, [loaded(shift)])
    assert torch.equal(attention.in_proj_bias[4:8], before["in_proj_bias"][4:8] + 0.5)
    assert torch.equal(attention.in_proj_bias[:4], before["in_proj_bias"][:4])
    bad = Network("bad", {key("q", TE1): random_lora((5, 4), 2, 1), key("v", TE1): layers["v"]})
    report = patcher.apply(model, [loaded(bad)])
    assert report.networks[0].applied == 1 and report.networks[0].mismatched[0].startswith("te1:q: ")
    torch.testing.assert_close(attention.in_proj_weight.detach(), rows("v").to(dtype), rtol=0, atol=1e-6)
    patcher.restore()
    assert all(torch.equal(p, before[name]) for name, p in attention.named_parameters())


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn])
def test_a_bias_that_does_not_exist_is_made_and_goes_away(
    patcher: Patcher, dtype: torch.dtype, inference: bool
) -> None:
    with torch.inference_mode(inference):
        module = nn.Linear(6, 8, bias=False).to(dtype)
    model = Bare({LIN: module})
    before = weights(model)
    one, two = loaded(Network("one", {LIN: Shift(0.5)})), loaded(Network("two", {LIN: Shift(0.25)}))
    for loads, value in (([one], 0.5), ([one, two], 0.75), ([two], 0.25)):
        assert patcher.apply(model, loads).complete
        assert module.bias.dtype == dtype and (module.bias.float() == value).all()
        assert not module.bias.requires_grad
    model.identity = "another name"
    patcher.apply(model, [])
    assert module.bias is None and "bias" not in module.state_dict()
    patcher.apply(model, [one])
    module.weight = nn.Parameter(torch.zeros(8, 6).to(dtype))  # other weights, which have no bias either
    model.identity = "other weights"
    patcher.apply(model, [])
    assert module.bias is None and before.keys() == weights(model).keys()


def test_a_layer_that_can_have_no_bias_is_unmatched(patcher: Patcher) -> None:
    model = Bare({key("words"): nn.Embedding(4, 6)}, more={key("words"): Slot(nn.Embedding(4, 6), bias=None)})
    report = patcher.apply(model, [loaded(Network("n", {key("words"): Shift(1.0)}))])
    assert report.networks[0].unmatched == ("unet:words",)
