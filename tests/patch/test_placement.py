"""Weights that move, are loaded anew, shared or thrown away while networks are applied."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Patcher
from lib_lora.patch.pristine import Pristine, Room, has_room
from lib_lora.patch.targets import Target
from tests.patch.bare import (
    AWAY,
    HERE,
    Bare,
    bare,
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


def move(module: nn.Module) -> None:
    """What moving between devices does: the same parameter objects, other memory."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


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


@pytest.mark.parametrize("free, stays", [(29 << 29, True), (27 << 29, False)])
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
