"""Weights that move, are cast, loaded anew, shared, missing or stored in eight bits, while networks are applied."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_lora.keys.layer_key import TE1
from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Patcher
from lib_lora.patch.pristine import Pristine, Room, has_room
from lib_lora.patch.targets import Target
from lib_lora.ports import Slot
from tests.patch.bare import Bare, Shift, bare, bits, expected, key, loaded, network_for, random_lora, same, weights

HERE, AWAY = has_room, lambda _device, _bytes: False  # where originals are kept: on the device, in main memory
LIN = key("lin")


@pytest.fixture(params=[HERE, AWAY], ids=["kept here", "kept in main memory"])
def patcher(request: pytest.FixtureRequest) -> Patcher:
    return Patcher(request.param)


def move(module: nn.Module) -> None:
    """What moving between devices does: the same parameter objects, other memory."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


def weight(model: Bare, path: str = "lin") -> nn.Parameter:
    found = model.modules[key(path)].weight
    assert isinstance(found, nn.Parameter)
    return found


def applied_anew(model: Bare, base: dict[str, Tensor], loads: list[object]) -> dict[str, Tensor]:
    """What a fresh model with these base weights has after these networks are applied for the first time."""
    fresh = bare(weight(model).dtype)
    for name, module in fresh.modules.items():
        for part, parameter in module.named_parameters():
            parameter.data = base[f"{name}.{part}"].clone()
    Patcher().apply(fresh, loads)  # type: ignore[arg-type]
    return weights(fresh)


def test_modules_streamed_by_hooks_between_devices(patcher: Patcher) -> None:
    model = bare(torch.float16)
    before, network = weights(model), network_for(model, 1)
    for module in model.modules.values():
        module.register_forward_pre_hook(lambda module, _args: move(module))
    linear = model.modules[LIN].float()
    base = linear.weight.detach().clone()
    x = torch.randn(3, 6)
    for strength in (1.0, 0.3, -2.0):
        patcher.apply(model, [loaded(network, unet=strength)])
        want = nn.functional.linear(x, expected(base, [(network.layers[LIN], strength)]).float(), linear.bias)
        for _ in range(2):
            torch.testing.assert_close(linear(x), want)
    linear(x)
    patcher.restore()
    linear.half()
    assert same(weights(model), before)


events = st.lists(
    st.one_of(
        st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0.0, 0.5, -0.7]), st.booleans()), max_size=2),
        st.sampled_from(["move", "other name", "load", "load a part", "assign", "aside"]),
    ),
    max_size=8,
)


@given(steps=events, dtype=st.sampled_from([torch.float32, torch.float16, torch.float8_e4m3fn]), here=st.booleans())
@settings(max_examples=80, deadline=None)
def test_whatever_happens_to_the_model_the_next_request_holds_on_its_own_weights(
    steps: list[str | list[tuple[int, float, bool]]], dtype: torch.dtype, here: bool
) -> None:
    model, aside, patcher = bare(dtype), bare(dtype, seed=50), Patcher(HERE if here else AWAY)
    base, asides = weights(model), weights(aside)
    aside.identity = "aside"
    nets = {
        (s, some): network_for(model, s, ["lin", "words"] if some else ["conv", "lin"])
        for s in (1, 2, 3)
        for some in (True, False)
    }
    for number, step in enumerate(steps):
        if isinstance(step, list):
            loads = [loaded(nets[seed, some], unet=m, mtime=1 + some) for seed, m, some in step]
            patcher.apply(model, loads)
            assert same(weights(model), applied_anew(model, base, loads))  # type: ignore[arg-type]
        elif step == "move":
            for module in model.modules.values():
                move(module)
        elif step == "other name":
            model.identity = f"{number}"
        elif step == "aside":
            patcher.apply(aside, [loaded(nets[1, False])])
            assert same(weights(model), base)
        else:
            others = bare(dtype, seed=number + 100).modules
            for name, module in model.modules.items():
                if step != "load a part" or name == LIN:
                    module.load_state_dict(others[name].state_dict(), assign=step == "assign")
                    base |= {f"{name}.{n}": p.data.clone() for n, p in others[name].named_parameters()}
    patcher.restore()
    assert same(weights(model), base) and same(weights(aside), asides)
    assert len(patcher.pristine) == 0 and patcher.pristine.bytes == 0


@pytest.mark.parametrize("inference", [False, True])
def test_another_name_for_the_same_weights_loses_nothing(patcher: Patcher, inference: bool) -> None:
    with torch.inference_mode(inference):
        model = bare(torch.float32)
    before, network = weights(model), network_for(model, 2)
    patcher.apply(model, [loaded(network)])
    model.identity = "the same file found under another name"
    patcher.apply(model, [loaded(network, unet=0.5)])
    want = expected(before["unet:lin.weight"], [(network.layers[LIN], 0.5)])
    torch.testing.assert_close(weight(model).detach(), want.float())
    model.identity = "yet another"
    patcher.apply(model, [])
    assert same(weights(model), before)


@pytest.mark.parametrize("same_name", [False, True])
def test_weights_loaded_in_inference_mode_are_not_overwritten(patcher: Patcher, same_name: bool) -> None:
    """torch does not count writes there."""
    with torch.inference_mode():
        model = bare(torch.float32)
    others = weights(bare(torch.float32, seed=9))
    patcher.apply(model, [loaded(network_for(model, 2))])
    with torch.inference_mode():
        for name, module in model.modules.items():
            for part, parameter in module.named_parameters():
                parameter.copy_(others[f"{name}.{part}"])
    if not same_name:
        model.identity = "two"
        patcher.apply(model, [])
    patcher.restore()
    assert same(weights(model), others)


def test_originals_here_cost_no_copy_and_elsewhere_leave_the_weights_memory_in_place() -> None:
    for room in (HERE, AWAY):
        model, patcher = bare(torch.float32), Patcher(room)
        place = weight(model).data_ptr()
        patcher.apply(model, [loaded(network_for(model, 1, ["lin"]))])
        assert (weight(model).data_ptr() == place) is (room is AWAY)
        assert patcher.pristine.bytes == weight(model).nbytes
        changed = weight(model).data_ptr()
        patcher.apply(model, [loaded(network_for(model, 1, ["lin"]), unet=0.5)])
        assert weight(model).data_ptr() == changed, "a changed strength takes no further memory"
        patcher.restore()
        assert room is AWAY or weight(model).data_ptr() == place


@pytest.mark.parametrize("free, stays", [(15 << 30, True), (13 << 30, False)])
def test_a_third_of_a_gpu_stays_free(free: int, stays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free - (1 << 30), 24 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 9 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 8 << 30)  # one more is torch's own to give
    assert has_room(torch.device("cuda", 0), 6 << 30) is stays
    assert has_room(torch.device("cpu"), 1 << 50)
    assert not has_room(torch.device("xpu"), 1), "memory that cannot be asked for is not taken"


def test_weights_not_in_memory_are_told_and_work_once_they_are(patcher: Patcher) -> None:
    model = bare(torch.float32)
    before = weights(model)
    load = loaded(network_for(model, 1))
    model.modules[LIN].to("meta")
    report = patcher.apply(model, [load])
    assert report.networks[0].applied == 3
    assert report.networks[0].mismatched == ("unet:lin: the weight is not in memory; load the checkpoint again",)
    model.modules[LIN].to_empty(device="cpu")
    model.modules[LIN].load_state_dict(bare(torch.float32).modules[LIN].state_dict())
    assert patcher.apply(model, [load]).complete
    assert same(weights(model), applied_anew(model, before, [load]))
    patcher.restore()
    assert same(weights(model), before)


def test_a_model_thrown_away_to_the_meta_device_frees_its_originals_at_once(patcher: Patcher) -> None:
    model = bare(torch.float32)
    patcher.apply(model, [loaded(network_for(model, 1))])
    assert patcher.pristine.bytes > 0
    gc.disable()
    try:
        for module in model.modules.values():
            module.to("meta")
        assert patcher.pristine.bytes == 0
    finally:
        gc.enable()
    patcher.restore()
    assert all(p.is_meta for module in model.modules.values() for p in module.parameters())


@pytest.mark.parametrize("room", [HERE, AWAY])
def test_an_original_given_back_is_freed_at_once(room: Room) -> None:
    target, pristine = Target(nn.Linear(6, 8)), Pristine(room)
    pristine.expect([target])
    original = pristine.of(target)
    pristine.set(target, torch.zeros_like(original))
    freed = weakref.ref(original)
    del original
    gc.disable()
    try:
        assert freed() is not None
        pristine.put_back(target.module, target.name)
        assert freed() is None
    finally:
        gc.enable()


def test_a_model_in_the_place_of_a_freed_one_does_not_pass_for_it(patcher: Patcher) -> None:
    model = bare(torch.float32)
    load = loaded(network_for(model, 1))
    patcher.apply(model, [load])
    del model
    gc.collect()
    model = bare(torch.float32)  # of the same identity
    before = weights(model)
    assert patcher.current(model, [load.source]) is None
    patcher.apply(model, [load])
    assert not same(weights(model), before)


def test_a_parameter_of_two_modules_is_merged_once_with_the_gifts_of_both(patcher: Patcher) -> None:
    one, two = nn.Linear(6, 8), nn.Linear(6, 8)
    two.weight = one.weight
    model = Bare({key("one"): one, key("two"): two})
    before = weights(model)
    first, second = random_lora((8, 6), 2, 1), random_lora((8, 6), 3, 2)
    a, b = loaded(Network("a", {key("one"): first})), loaded(Network("b", {key("two"): second}))
    base = before["unet:one.weight"]
    cases = [([a], [first]), ([a, b], [first, second]), ([b], [second]), ([b, a], [first, second]), ([], [])]
    for loads, layers in cases:
        report = patcher.apply(model, loads)
        assert report.complete and all(n.applied == 1 for n in report.networks)
        assert two.weight is one.weight
        torch.testing.assert_close(one.weight.detach(), expected(base, [(layer, 1.0) for layer in layers]).float())
    assert same(weights(model), before)


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


def test_autocast_precision_and_inference_mode_round_it_change_nothing(patcher: Patcher) -> None:
    """The webui activates networks inside autocast; with 8-bit weights on a CPU that is autocast to bfloat16."""
    model, plain = bare(torch.float32), bare(torch.float32)
    one, two = network_for(model, 1), network_for(model, 2)  # one has a Tucker core: a delta, no pair of factors
    loads = [loaded(one), loaded(two, unet=0.5)]
    Patcher().apply(plain, loads)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            patcher.apply(model, loads)
            assert (
                torch.is_inference_mode_enabled()
                and torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.bfloat16
            )
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert same(weights(model), weights(plain))
    assert not any(p.is_inference() for module in model.modules.values() for p in module.parameters())
    assert torch.is_grad_enabled()


def test_autocasts_memory_of_the_old_weights_is_dropped(patcher: Patcher) -> None:
    model = bare(torch.float32)
    linear, x = model.modules[LIN], torch.randn(2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        outputs = [linear(x)]
        for load in (loaded(network_for(model, 2)), loaded(network_for(model, 2), unet=-1.0)):
            patcher.apply(model, [load])
            outputs.append(linear(x))
        patcher.restore()
        outputs.append(linear(x))
    assert not any(torch.equal(a, b) for a, b in pairwise(outputs)) and torch.equal(outputs[0], outputs[-1])


def test_factors_that_need_gradients_leave_none_behind(patcher: Patcher) -> None:
    model = bare(torch.float32)
    patcher.apply(model, [loaded(network_for(model, 1))])
    assert all(p.grad_fn is None and p.is_leaf for module in model.modules.values() for p in module.parameters())
