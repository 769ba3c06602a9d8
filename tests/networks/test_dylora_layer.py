"""DyLoRA while it is trained: one unit of ranks learns, those before it help, and `dyn` gives what was trained."""

from __future__ import annotations

import pytest
import torch

from lib_lora.errors import BadConfig
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec, Op
from lib_lora.networks.dylora import DyLora
from lib_lora.networks.lora import Lora
from tests.networks import matrix as m

RANK, UNIT, ALPHA = 6, 2, 3.0


def layer_for(name: str) -> DyLora:
    spec = LayerSpec(tuple(m.base(name).weight.shape), RANK, ALPHA, {"unit": UNIT})
    layer = DyLora.init(spec, torch.Generator().manual_seed(1))
    m.check_zero_start(layer, m.base(name), m.inputs(name))
    return layer.double()


@pytest.mark.parametrize("name", m.PLAIN)
def test_one_unit_learns_and_those_before_it_help(name: str) -> None:
    module, x, op = m.base(name), m.inputs(name), Op.of(m.base(name))
    layer = layer_for(name)
    m.fill(layer.parameters())
    for chosen in range(RANK // UNIT):
        layer.zero_grad()
        layer.chosen = chosen
        first = layer.truncated((chosen + 1) * UNIT)
        assert first.scale == layer.scale == ALPHA / RANK
        out = layer.branch(x, op, module.weight)
        with torch.no_grad():
            m.agrees("dylora", "its first ranks", out.detach(), first.branch(x, op, module.weight))
        assert torch.allclose(layer.delta(module.weight), first.delta(module.weight), rtol=0, atol=1e-12)
        out.square().sum().backward()
        for parts in (layer.ups, layer.downs):
            assert [part.grad is not None and bool(part.grad.any()) for part in parts] == [
                unit == chosen for unit in range(RANK // UNIT)
            ]
        with torch.no_grad():  # a preview has all ranks
            whole = layer.branch(x, op, module.weight)
            assert torch.allclose(whole, layer.whole().branch(x, op, module.weight))


def test_the_gradient_is_that_of_lycoris() -> None:
    """But for the scale, which LyCORIS sets anew for each unit: gradients of a unit given those before it."""
    dylora = pytest.importorskip("lycoris.modules.dylora")
    module, x = m.base("linear"), m.inputs("linear")
    theirs = dylora.DyLoraModule("x", module, 1.0, lora_dim=RANK, alpha=ALPHA, block_size=UNIT).double()
    m.fill(theirs.parameters())
    layer = DyLora.of(Lora(torch.cat(list(theirs.up_list), 1), torch.cat(list(theirs.down_list)), ALPHA), UNIT)
    for chosen in range(RANK // UNIT):
        theirs.zero_grad()
        layer.zero_grad()
        layer.chosen = chosen
        weight, _ = theirs.get_diff_weight(rank=chosen * UNIT)
        scale = (chosen + 1) / RANK  # ours / theirs: alpha / rank in place of alpha / (chosen + 1)
        (torch.nn.functional.linear(x, weight * scale)).square().sum().backward()
        layer.branch(x, Op(), module.weight).square().sum().backward()
        for ours, other in ((layer.ups, theirs.up_list), (layer.downs, theirs.down_list)):
            for a, b in zip(ours, other):
                assert (a.grad is None or not a.grad.any()) == (b.grad is None or not b.grad.any())
                if a.grad is not None and a.grad.any():
                    assert m.error(a.grad, b.grad) < 1e-12


def test_its_file_is_a_lora() -> None:
    layer = layer_for("conv3x3")
    m.fill(layer.parameters())
    layer.chosen = 0  # whatever was drawn last
    tensors = layer.to_tensors()
    again = registry.build(tensors)
    assert isinstance(again, Lora) and not isinstance(again, DyLora)
    assert again.rank == RANK and again.alpha == ALPHA
    weight = m.base("conv3x3").weight
    assert torch.equal(again.delta(weight), layer.whole().delta(weight))
    back = DyLora.of(again, UNIT)
    assert all(torch.equal(t, back.to_tensors()[n]) for n, t in tensors.items())
    factors = layer.factors()
    assert factors is not None and factors.up.shape[1] == RANK


def test_units_must_divide_the_rank_and_cores_are_refused() -> None:
    with pytest.raises(BadConfig, match="network.unit = 4 does not divide rank 6"):
        DyLora.init(LayerSpec((8, 8), 6, 1.0, {"unit": 4}))
    core = Lora.init(LayerSpec((8, 8, 3, 3), 4, 1.0, {"tucker": True}))
    with pytest.raises(BadConfig, match="no Tucker form"):
        DyLora.of(core, 2)
    assert not DyLora.matches(frozenset({"lora_up.weight", "lora_down.weight", "alpha"}))
