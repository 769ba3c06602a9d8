"""What surrounds the patcher (autocast, lower precision, inference mode) changes nothing it writes."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from lib_lora.networks.network import Network
from lib_lora.patch.patcher import Patcher
from tests.patch.bare import (
    Shift,
    bare,
    key,
    loaded,
    network_for,
    same,
    weights,
)

LIN = key("lin")


class Witness(Shift):
    """Notes what surrounds the computation of its delta."""

    def delta(self, weight: Tensor) -> Tensor:
        self.seen = (
            torch.get_float32_matmul_precision(),
            torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )
        return super().delta(weight)


def test_autocast_precision_and_inference_mode_round_it_change_nothing(patcher: Patcher) -> None:
    """The webui activates networks inside autocast; with 8-bit weights on a CPU that is autocast to bfloat16."""
    model, plain = bare(torch.float32), bare(torch.float32)
    one, two = network_for(model, 1), network_for(model, 2)  # one has a Tucker core: a delta, no pair of factors
    witness = Witness(0.5, weight=True)
    loads = [loaded(one), loaded(two, unet=0.5), loaded(Network("witness", {key("norm"): witness}))]
    Patcher().apply(plain, loads)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            patcher.apply(model, loads)
            assert torch.is_inference_mode_enabled()
            assert torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert witness.seen == ("highest", torch.float32, False, False)
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
