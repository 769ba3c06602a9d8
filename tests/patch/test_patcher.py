"""The patcher on real torch modules: what is merged is right, and what is restored is the same bit for bit."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.networks.base import Layer
from lib_lora.networks.lora import Lora
from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Patcher
from lib_lora.ports import Conditioning
from tests.patch.bare import DTYPES, Bare, bare, bits, expected, key, loaded, network_for, random_lora, same, weights


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_pristine_plus_all_deltas_rounded_once(dtype: torch.dtype) -> None:
    model, patcher = bare(dtype), Patcher()
    before = weights(model)
    one, two = network_for(model, 1), network_for(model, 2)
    report = patcher.apply(model, [loaded(one, te=0.5, unet=0.7), loaded(two, te=-0.3, unet=1.2)])
    assert report.complete and [n.applied for n in report.networks] == [4, 4]
    for name in one.layers:
        first, second = (0.5, -0.3) if name.part == TE1 else (0.7, 1.2)
        want = expected(before[f"{name}.weight"], [(one.layers[name], first), (two.layers[name], second)])
        got = model.modules[name].weight
        assert isinstance(got, Tensor) and got.dtype == dtype
        assert not torch.equal(bits(got), bits(before[f"{name}.weight"]))
        unit = torch.finfo(dtype).eps * want.abs().max()
        # Half a unit for the one rounding; float32 sums add a little of their own.
        assert (got.double() - want).abs().max() <= unit * (4 if dtype in (torch.float32, torch.float64) else 0.5001)
    patcher.restore()
    assert same(weights(model), before)
    assert len(patcher.pristine) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameter_objects_stay_and_only_touched_weights_are_kept(dtype: torch.dtype) -> None:
    model, patcher = bare(dtype), Patcher()
    objects = [id(p) for m in model.modules.values() for p in m.parameters()]
    patcher.apply(model, [loaded(network_for(model, 1, ["lin"]))])
    assert len(patcher.pristine) == 1
    weight = model.modules[key("lin")].weight
    assert isinstance(weight, Tensor) and patcher.pristine.bytes == weight.nbytes
    patcher.restore()
    assert objects == [id(p) for m in model.modules.values() for p in m.parameters()]


requests = st.lists(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0.0, 0.5, 1.0, -0.7]), st.booleans()), max_size=3),
    min_size=1,
    max_size=5,
)


@given(steps=requests, dtype=st.sampled_from(DTYPES))
@settings(max_examples=60, deadline=None)
def test_any_sequence_equals_applying_only_its_last_request(
    steps: list[list[tuple[int, float, bool]]], dtype: torch.dtype
) -> None:
    model, fresh = bare(dtype), bare(dtype)
    before = weights(model)
    nets = {
        (seed, some): network_for(model, seed, ["lin", "words"] if some else ["lin", "conv", "point", "words"])
        for seed in (1, 2, 3)
        for some in (True, False)
    }
    patcher = Patcher()
    for step in steps:
        loads = [loaded(nets[seed, some], unet=m, mtime=1 + some) for seed, m, some in step]
        patcher.apply(model, loads)
    Patcher().apply(fresh, loads)
    assert same(weights(model), weights(fresh))
    patcher.apply(model, [])
    assert same(weights(model), before)
    assert len(patcher.pristine) == 0


def test_an_unchanged_request_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, patcher = bare(torch.float32), Patcher()
    load = loaded(network_for(model, 1))
    first = patcher.apply(model, [load])
    calls: list[int] = []
    monkeypatch.setattr("lib_lora.patch.patcher.merged", lambda *a, **k: calls.append(1))
    assert patcher.apply(model, [load]) is first
    assert not calls
    patcher.apply(model, [loaded(load.network, te=0.5)])
    assert len(calls) == 1, "only the text encoder's strength changed"


def test_an_overwritten_file_is_merged_anew() -> None:
    model, patcher = bare(torch.float32), Patcher()
    patcher.apply(model, [loaded(network_for(model, 1), mtime=1)])
    one = weights(model)
    other = Network("net1", network_for(model, 2).layers)
    patcher.apply(model, [loaded(other, mtime=2)])
    assert not same(weights(model), one)


def test_strength_zero_and_dyn() -> None:
    model, patcher = bare(torch.float32), Patcher()
    before = weights(model)
    network = network_for(model, 2)
    report = patcher.apply(model, [loaded(network, te=0, unet=0)])
    assert report.networks[0].applied == 4 and same(weights(model), before) and len(patcher.pristine) == 0
    assert patcher.current(model, [loaded(network, te=0, unet=0).source]) is report
    patcher.apply(model, [loaded(network, dyn=1)])
    layer = network.layers[key("lin")]
    assert isinstance(layer, Lora)
    want = before["unet:lin.weight"] + layer.scale * layer.up[:, :1] @ layer.down[:1]
    torch.testing.assert_close(model.modules[key("lin")].weight, want)
    patcher.restore()


def test_misfits_are_reported_and_cost_nothing_else() -> None:
    model, patcher = bare(torch.float32), Patcher()
    before = weights(model)
    good = network_for(model, 1)
    layers = {**good.layers, key("lin"): random_lora((3, 3), 2, 5), key("nowhere"): random_lora((3, 3), 2, 6)}
    bad = Network("bad", {**layers, key("norm"): random_lora((6, 6), 2, 7)}, unknown=("odd.key",))
    report = patcher.apply(model, [loaded(good), loaded(bad)])
    fine, wrong = report.networks
    assert (fine.applied, fine.unmatched, fine.mismatched) == (4, (), ())
    assert wrong.applied == 3
    assert set(wrong.unmatched) == {"odd.key", "unet:nowhere"}
    linear, norm = sorted(wrong.mismatched)
    assert "(8, 6)" in linear and "(3, 2)" in linear and norm.startswith("unet:norm") and "(6,)" in norm
    assert not report.complete
    lines = report.summary().splitlines()
    assert lines[0] == "net1: 4 layers applied" and lines[1].startswith("bad: 3 of 7 layers applied; 2 not in")
    want = expected(before["unet:lin.weight"], [(good.layers[key("lin")], 1.0)])
    torch.testing.assert_close(model.modules[key("lin")].weight.detach(), want.float())  # type: ignore[union-attr]
    again = patcher.apply(model, [loaded(good), loaded(bad)])
    assert again is report
    patcher.apply(model, [loaded(bad)])
    assert torch.equal(weights(model)["unet:lin.weight"], before["unet:lin.weight"])
    patcher.restore()
    assert same(weights(model), before)


def test_an_error_in_the_middle_restores_everything() -> None:
    class Broken(Lora):
        def delta(self, weight: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    model, patcher = bare(torch.float16), Patcher()
    before = weights(model)
    patcher.apply(model, [loaded(network_for(model, 2))])
    layer = random_lora((8, 4, 3, 3), 2, 1, tucker=True)
    broken = Broken(layer.up.data, layer.down.data, 1.0, layer.mid.data if layer.mid is not None else None)
    good = network_for(model, 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        patcher.apply(model, [loaded(Network("b", {**good.layers, key("conv"): broken}))])
    assert same(weights(model), before)
    assert patcher.apply(model, [loaded(good)]).complete
    patcher.restore()


def test_other_weights_loaded_into_the_same_modules_are_not_overwritten() -> None:
    model, patcher = bare(torch.float32), Patcher()
    load = loaded(network_for(model, 1))
    patcher.apply(model, [load])
    others = {name: module.state_dict() for name, module in bare(torch.float32, seed=9).modules.items()}
    for name, module in model.modules.items():
        module.load_state_dict(others[name])
    new = weights(model)
    patcher.restore()
    assert same(weights(model), new)
    for identity in ("one", "two"):
        patcher.apply(model, [load])
        for name, module in model.modules.items():
            module.load_state_dict(others[name])
        model.identity = identity
        patcher.apply(model, [load])
        assert not same(weights(model), new)
        patcher.apply(model, [])
        assert same(weights(model), new)


def test_a_model_put_aside_is_cleaned_and_one_thrown_away_frees_its_copies() -> None:
    first, second, patcher = bare(torch.float32), bare(torch.float32, seed=5), Patcher()
    second.identity = "two"
    before = weights(first)
    load = loaded(network_for(first, 1))
    patcher.apply(first, [load])
    patcher.apply(second, [load])
    assert same(weights(first), before)
    assert len(patcher.pristine) == 4
    del second
    gc.collect()
    assert len(patcher.pristine) == 0


def test_moved_to_another_dtype_while_applied_still_restores() -> None:
    model, patcher = bare(torch.float32), Patcher()
    before = weights(model)
    patcher.apply(model, [loaded(network_for(model, 1))])
    for module in model.modules.values():
        module.half()
    patcher.restore()
    assert same(weights(model), {name: tensor.half() for name, tensor in before.items()})


def test_applied_and_context_manager_restore_after_an_exception() -> None:
    model, patcher = bare(torch.bfloat16), Patcher()
    before = weights(model)
    load = loaded(network_for(model, 1))
    with pytest.raises(KeyError), patcher.applied(model, [load]) as report:
        assert report.complete and not same(weights(model), before)
        raise KeyError
    assert same(weights(model), before)
    with pytest.raises(KeyError), Patcher() as other:
        other.apply(model, [load])
        raise KeyError
    assert same(weights(model), before)


def test_inference_mode_and_channels_last() -> None:
    model, patcher = bare(torch.float32), Patcher()
    model.modules[key("conv")].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = weights(model)
    network = network_for(model, 2)
    with torch.inference_mode():
        patcher.apply(model, [loaded(network)])
    got = model.modules[key("conv")].weight
    assert isinstance(got, Tensor) and got.is_contiguous(memory_format=torch.channels_last)
    want = expected(before["unet:conv.weight"], [(network.layers[key("conv")], 1.0)])
    torch.testing.assert_close(got.detach(), want.float())
    patcher.restore()
    assert same(weights(model), before)


def test_the_whole_unet_and_text_encoder(make_tiny: Callable[[int], DiffusersModel]) -> None:
    from lib_lora.keys.checkpoint import default_targets

    model = make_tiny(3)
    modules = model.modules_by_key()
    keys = [LayerKey(part, path) for part in (UNET, TE1) for path in default_targets(part)]
    assert len(keys) == 192 + 72
    layers: dict[LayerKey, Layer] = {
        name: random_lora(modules[name].weight.shape, 4, i)  # type: ignore[union-attr, arg-type]
        for i, name in enumerate(keys)
    }
    before = {n: p.clone() for part, root in model.roots().items() for n, p in root.state_dict(prefix=part).items()}
    text = model.encode_text(["a cat"]).states
    noise, time = torch.randn(1, 4, 16, 16), torch.tensor([500])
    plain = model.predict(noise, time, Conditioning(text))
    patcher = Patcher()
    report = patcher.apply(model, [loaded(Network("full", layers), te=0.1, unet=0.1)])
    assert report.networks[0].applied == 264 and report.complete
    assert not torch.allclose(model.predict(noise, time, Conditioning(text)), plain, atol=1e-2)
    assert not torch.allclose(model.encode_text(["a cat"]).states, text, atol=1e-2)
    patcher.restore()
    after = {n: p for part, root in model.roots().items() for n, p in root.state_dict(prefix=part).items()}
    assert same(before, after)
    assert torch.equal(model.predict(noise, time, model.encode_text(["a cat"])), plain)


def test_ldm_attention_gets_the_output_of_base_plus_branch() -> None:
    attention = pytest.importorskip("ldm.modules.attention")
    from lib_lora.networks.base import Op

    block = attention.CrossAttention(query_dim=16, context_dim=12, heads=2, dim_head=8)
    model = Bare({key("to_k"): block.to_k, key("to_q"): block.to_q})
    layers: dict[LayerKey, Layer] = {
        name: random_lora(module.weight.shape, 3, i)  # type: ignore[arg-type, union-attr]
        for i, (name, module) in enumerate(model.modules.items())
    }
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 12)
    hooks = [
        module.register_forward_hook(
            lambda m, given, result, layer=layers[name]: result + 0.8 * layer.branch(given[0], Op.of(m), m.weight)
        )
        for name, module in model.modules.items()
    ]
    want = block(x, context)
    for hook in hooks:
        hook.remove()
    with Patcher().applied(model, [loaded(Network("n", layers), unet=0.8)]):
        got = block(x, context)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("restore_inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_made_in_inference_mode(dtype: torch.dtype, restore_inside: bool) -> None:
    with torch.inference_mode():
        model = bare(dtype)
    before, patcher = weights(model), Patcher()
    network = network_for(model, 1)
    patcher.apply(model, [loaded(network)])
    assert not same(weights(model), before)
    with torch.inference_mode(restore_inside):
        patcher.restore()
    assert same(weights(model), before)
