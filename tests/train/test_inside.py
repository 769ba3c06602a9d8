"""Every type at every kind of place: nothing at the start, then what the merged model computes; no trace is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib_lora.errors import BadConfig
from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.models.any_module import ModuleModel
from lib_lora.networks import registry
from lib_lora.networks.base import Layer
from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Patcher
from lib_lora.patch.plan import Loaded, Source
from lib_lora.ports import Slot
from lib_lora.train.attach import Drops, attach
from tests.train.zoo import IDS, NETWORKS, fresh, section, state, stirred, zoo


def merged_output(net: nn.Module, model: ModuleModel, layers: dict[LayerKey, Layer]) -> Tensor:
    """What the net says with the layers merged into its weights by the patcher."""
    network = Network("x", layers)
    with torch.no_grad(), Patcher().applied(model, [Loaded(network, Source((Path("x"), 0, 0, 0)))]) as report:
        assert report.networks[0].applied == len(layers), report
        return net(IDS)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_at_first_then_as_merged(name: str) -> None:
    layers = _checked_start(name)
    net, model = zoo()
    before = state(net)
    stirred(layers.values())
    with attach(model, layers):
        output = net(IDS)
        output.square().sum().backward()
        with torch.no_grad():
            assert torch.allclose(net(IDS), output, rtol=0, atol=1e-10 * float(output.abs().max()))
    assert state(net) == before
    dead = [f"{key} {n}" for key, layer in layers.items() for n, p in layer.named_parameters() if not _alive(p)]
    assert dead == []
    expected = merged_output(net, model, layers)
    assert (expected - net(IDS)).abs().max() > 1e-3
    assert (output - expected).abs().max() < 1e-10 * expected.abs().max()
    for key, layer in layers.items():
        _check_round_trip(model, key, layer)


@torch.no_grad()
def _checked_start(name: str) -> dict[LayerKey, Layer]:
    """New float32 layers, which change nothing to the last bit and never have an alpha of 0."""
    net, model = zoo(torch.float32)
    layers = fresh(model, section(name))
    for key, layer in layers.items():
        assert all(p.dtype == torch.float32 for p in layer.parameters()), key
        slot = model.slots()[key]
        weight = getattr(slot.module, slot.weight)[slot.rows or slice(None)]
        assert not layer.changes_weight or not layer.delta(weight).any(), key
        alpha = layer.to_tensors().get("alpha", torch.ones(()))
        assert float(alpha) != 0 or name in ("oft", "boft"), key  # theirs is a constraint, and 0 is none
    plain = net(IDS)
    with attach(model, layers):
        assert torch.equal(net(IDS), plain)
    return layers


def _alive(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.isfinite().all()) and bool(parameter.grad.any())


def _check_round_trip(model: ModuleModel, key: LayerKey, layer: Layer) -> None:
    slot = model.slots()[key]
    weight = getattr(slot.module, slot.weight)[slot.rows or slice(None)]
    again = registry.build(layer.to_tensors())
    assert again is not None
    with torch.no_grad():
        if layer.changes_weight:
            delta = layer.delta(weight)
            assert (again.delta(weight) - delta).norm() < 1e-6 * delta.norm()  # a file's alpha is a float32
        if layer.changes_bias:
            assert torch.equal(again.bias_delta(torch.ones(len(weight))), layer.bias_delta(torch.ones(len(weight))))


def test_an_embedding_and_a_bias_that_is_not_there() -> None:
    net, model = zoo()
    layers = fresh(model, section(include=("token_embedding",)))
    key = LayerKey(UNET, "token_embedding")
    extra = registry.build({"diff_b": torch.randn(16, dtype=torch.float64)})
    assert extra is not None
    chosen = {key: layers[key], LayerKey(UNET, "block.narrow"): extra}
    stirred([layers[key]])
    before, plain = state(net), net(IDS)
    with attach(model, chosen):
        output = net(IDS)
    assert state(net) == before and not torch.allclose(output, plain)
    net.block.narrow.bias = nn.Parameter(torch.zeros(16, dtype=torch.float64))  # a patcher makes it, too
    assert (output - merged_output(net, ModuleModel(net), chosen)).abs().max() < 1e-10 * output.abs().max()


@pytest.mark.parametrize("name", ["lora", "loha", "lora dora bias norms", "oft", "dylora"])
@pytest.mark.parametrize("drops", [Drops(), Drops(0.3, 0.3, 0.3)], ids=["", "drops"])
def test_checkpointing_gives_the_same_gradients(name: str, drops: Drops) -> None:
    grads, states = [], []
    for recompute in (False, True):
        net, model = zoo()
        layers = fresh(model, section(name))
        stirred(layers.values())
        if recompute:
            inner = net.block.forward
            net.block.__dict__["forward"] = lambda x, inner=inner: checkpoint(inner, x, use_reentrant=False)
        before = state(net)
        with attach(model, layers, drops):
            torch.manual_seed(9)
            net(IDS).square().sum().backward()
            states.append(state(net) == before)  # hooks are there, but every parameter is itself again
        assert state(net) == before
        grads.append(
            [torch.zeros_like(p) if p.grad is None else p.grad for la in layers.values() for p in la.parameters()]
        )
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*grads))
    assert any(g.any() for g in grads[0])


@pytest.mark.parametrize("name", ["lora", "loha", "lora dora", "full bias norms", "ia3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_base_computes_what_is_merged(name: str, dtype: torch.dtype) -> None:
    """In the weight bit for bit; a branch is as near to the float32 answer as the merged weights are."""
    if dtype == torch.float16 and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 2):
        pytest.skip("this torch has no float16 convolution on the CPU")
    net, model = zoo(dtype)
    layers = fresh(model, section(name))
    stirred(layers.values(), torch.float32, 0.1)
    with attach(model, layers):
        net(IDS).float().square().sum().backward()
        with torch.no_grad():  # torch's attention takes another kernel with gradients than without
            output = net(IDS)
    expected = merged_output(net, model, layers)
    if name == "lora":
        full, wide = zoo(torch.float32)
        exact = merged_output(full, wide, layers)
        assert (output.float() - exact).norm() < 2 * (expected.float() - exact).norm()
    else:
        assert torch.equal(output, expected)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for la in layers.values() for p in la.parameters())


@pytest.mark.parametrize("name", ["lora", "loha", "full bias norms"])
def test_under_autocast(name: str) -> None:
    net, model = zoo(torch.float32)
    layers = fresh(model, section(name))
    stirred(layers.values(), torch.float32, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16), attach(model, layers):
        output = net(IDS)
    output.float().square().sum().backward()
    expected = merged_output(net, model, layers)
    assert (output - expected).norm() < 0.05 * expected.norm()
    assert not [n for la in layers.values() for n, p in la.named_parameters() if not _alive(p)]


class Stop(BaseException):
    """What an interrupt is: no Exception."""


@pytest.mark.parametrize("kind", [RuntimeError, Stop])
@pytest.mark.parametrize("name", ["loha", "lora dora bias norms", "lora"])
def test_an_error_in_the_middle_leaves_no_trace(name: str, kind: type[BaseException]) -> None:
    net, model = zoo()
    layers = fresh(model, section(name))
    stirred(layers.values())
    before = state(net)

    def fail(module: nn.Module, args: object) -> None:
        raise kind("boom")

    with pytest.raises(kind, match="boom"), attach(model, layers):
        with torch.no_grad():
            expected = net(IDS)
        for place in (net.block.conv, net.block.attn):
            handle = place.register_forward_pre_hook(fail)
            with pytest.raises(kind, match="boom"):
                net(IDS)
            handle.remove()
            with torch.no_grad():
                assert torch.equal(net(IDS), expected)  # goes on as if nothing had been
        net.block.conv.register_forward_pre_hook(fail)
        try:
            net(IDS)
        finally:
            net.block.conv._forward_pre_hooks.popitem()
    assert state(net) == before


def test_a_delta_that_does_not_fit_leaves_no_trace() -> None:
    net, model = zoo()
    wrong = registry.build({"diff": torch.zeros(5, 5, dtype=torch.float64)})
    before = state(net)
    with pytest.raises(Exception, match="does not fit"), attach(model, {LayerKey(UNET, "block.attn.k_proj"): wrong}):
        net(IDS)
    assert state(net) == before


def test_places_without_a_forward_pass_are_refused() -> None:
    net, model = zoo()
    layer = registry.build({"diff": torch.zeros(24, 16)})
    bias = registry.build({"diff_b": torch.zeros(16)})
    for slots, change, text in (
        ({LayerKey(UNET, "x"): Slot(net, "text_projection", None, transposed=True)}, layer, "have no module"),
        ({LayerKey(UNET, "x"): Slot(net.token_embedding, bias=None)}, bias, "cannot have one"),
    ):
        model._slots = slots
        with pytest.raises(BadConfig, match=text), attach(model, {LayerKey(UNET, "x"): change}):
            pass


def test_only_the_output_projection_of_fused_attention() -> None:
    net, _ = zoo()
    model = ModuleModel(net, [r"attn\.out_proj$"])
    layers = fresh(model, section())
    stirred(layers.values())
    with attach(model, layers):
        output = net(IDS)
    assert len(layers) == 1
    assert (output - merged_output(net, model, layers)).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["lora", "lokr", "loha", "lora dora", "full"])
@pytest.mark.parametrize(
    "drops", [Drops(inputs=0.5), Drops(ranks=0.5), Drops(modules=0.5)], ids=["inputs", "ranks", "modules"]
)
def test_drops_are_drawn_while_training_only_and_keep_the_mean(name: str, drops: Drops) -> None:
    net, _ = zoo()
    model = ModuleModel(net, ["narrow"])  # the one place, so that nothing bends the mean
    layers = fresh(model, section(name))
    stirred(layers.values())
    narrow, x = net.block.narrow, torch.randn(5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = narrow(x)
    with attach(model, layers):
        whole = narrow(x) - plain
    with attach(model, layers, drops):
        with torch.no_grad():
            assert torch.equal(narrow(x) - plain, whole)  # a preview
        torch.manual_seed(4)
        one = narrow(x) - plain
        torch.manual_seed(4)
        assert torch.equal(narrow(x) - plain, one)
        draws = torch.stack([(narrow(x) - plain).detach() for _ in range(400)])
    assert len({float(d.sum()) for d in draws}) > 1
    share = 0.5 if drops.modules else 1.0
    assert (draws.mean(0) - share * whole).norm() < 0.15 * whole.norm()
    assert all(getattr(la, "rank_dropout", 0) == 0 for la in layers.values())
