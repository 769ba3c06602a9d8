"""DyLoRA: what LyCORIS and kohya save is a LoRA whose first ranks stand alone; `dyn` takes them at the scale of all.

Trainers scale a rank block otherwise while they train (kohya by sqrt(R / n), LyCORIS by its number of blocks), but
write one alpha for all ranks; the webui and this keep alpha / R for any number of ranks. kohya's splitting script cuts
the factors and leaves alpha as it is: such a file is a plain LoRA of rank n at alpha / n.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_lora.networks import registry
from lib_lora.networks.base import Op
from lib_lora.networks.lora import Lora
from lib_lora.patch.merge import Share, merged
from tests.networks import matrix as m

RANK, BLOCK, ALPHA = 8, 4, 3.0
UP, DOWN = "lora_up.weight", "lora_down.weight"


def lycoris_module(module: Any) -> Any:
    dylora = pytest.importorskip("lycoris.modules.dylora")
    theirs = dylora.DyLoraModule("x", module, 1.0, lora_dim=RANK, alpha=ALPHA, block_size=BLOCK).double().eval()
    m.fill(theirs.parameters())
    return theirs


def file_of(theirs: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize("name", m.PLAIN)
def test_lycoris_files_are_loras(name: str) -> None:
    module, x = m.base(name), m.inputs(name)
    theirs = lycoris_module(module)
    saved = file_of(theirs)
    assert saved.keys() == {UP, DOWN, "alpha"} and saved[UP].dim() == 2  # up is flat for convolutions too
    layer = m.check_round_trip(saved)
    assert isinstance(layer, Lora) and layer.scale == ALPHA / RANK
    with torch.no_grad():
        # In training LyCORIS gives the whole rank alpha / blocks in place of the alpha / rank of its file.
        expected = theirs.get_diff_weight(rank=RANK - BLOCK)[0] / BLOCK
        m.agrees("dylora", "LyCORIS 4 weight", layer.delta(module.weight), expected)
        plain = Op.of(module).apply(x, module.weight, module.bias)
        out = Op.of(module).apply(x, module.weight + expected, module.bias)
        m.agrees("dylora", "LyCORIS 4 weight", plain + layer.branch(x, Op.of(module), module.weight), out)


@pytest.mark.parametrize("name", m.PLAIN)
def test_flat_factors_of_lycoris_before_3_0(name: str) -> None:
    """There `lora_down` is (rank, in * kh * kw) for convolutions too."""
    module, x = m.base(name), m.inputs(name)
    saved = file_of(lycoris_module(module))
    flat = registry.build({**saved, DOWN: saved[DOWN].flatten(1)})
    layer = registry.build(saved)
    assert flat is not None and layer is not None
    with torch.no_grad():
        assert torch.equal(flat.delta(module.weight), layer.delta(module.weight))
        branches = [some.branch(x, Op.of(module), module.weight) for some in (flat, layer)]
        m.agrees("dylora", "factors with axes", branches[0], branches[1])


@pytest.mark.parametrize("ranks", [1, BLOCK, RANK, 2 * RANK])
@pytest.mark.parametrize("name", ["linear", "conv1x1", "conv3x3"])
def test_dyn_takes_the_first_ranks_at_the_scale_of_all(name: str, ranks: int) -> None:
    weight = m.base(name).weight
    saved = file_of(lycoris_module(m.base(name)))
    layer = registry.build(saved)
    assert layer is not None
    up, down = saved[UP].flatten(1), saved[DOWN].flatten(1)
    expected = sum(torch.outer(up[:, i], down[i]) for i in range(min(ranks, RANK)))
    assert isinstance(expected, Tensor)
    expected = weight + 0.7 * ALPHA / RANK * expected.reshape(weight.shape)
    with torch.no_grad():
        m.agrees("dylora", "ranks one by one", merged(weight, [Share(layer, 0.7, ranks)]), expected)


def test_a_file_split_by_kohya_is_a_lora_at_alpha_by_n() -> None:
    weight = m.base("linear").weight
    saved = file_of(lycoris_module(m.base("linear")))
    cut = {UP: saved[UP][:, :BLOCK], DOWN: saved[DOWN][:BLOCK], "alpha": saved["alpha"]}
    split, whole = registry.build(cut), registry.build(saved)
    assert split is not None and whole is not None and split.scale == ALPHA / BLOCK
    with torch.no_grad():
        expected = whole.truncated(BLOCK).delta(weight) * RANK / BLOCK
        m.agrees("dylora", "ranks one by one", split.delta(weight), expected)


@given(ranks=st.integers(1, 12), rank=st.integers(1, 8), conv=st.booleans(), flat=st.booleans())
@settings(max_examples=40, deadline=None)
def test_ranks_add_up(ranks: int, rank: int, conv: bool, flat: bool) -> None:
    """The first n ranks and the rest are together the whole."""
    shape = (5, 3, 3, 3) if conv else (5, 3)
    up, down = torch.empty(5, rank, dtype=torch.float64), torch.empty(rank, *shape[1:], dtype=torch.float64)
    m.fill([up, down])
    down = down.flatten(1) if flat else down
    weight = torch.zeros(shape, dtype=torch.float64)
    layer = Lora(up, down, 2.0)
    first = layer.truncated(ranks).delta(weight)
    rest = Lora(up[:, ranks:], down[ranks:], layer.scale * max(rank - ranks, 0)).delta(weight)
    assert torch.allclose(first + rest, layer.delta(weight), rtol=0, atol=1e-14)
