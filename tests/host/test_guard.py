"""What a job must leave as it was."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from torch import nn

from lib_lora.errors import TrainingFailed
from lib_lora.host.guard import checksums, unharmed


def test_random_states_and_flags_come_back_after_an_error() -> None:
    expected = (random.getstate()[1], numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    benchmark = torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError, match="boom"), unharmed(nn.Linear(2, 2).half()):
        random.seed(5)
        numpy.random.seed(5)
        torch.manual_seed(5)
        torch.backends.cudnn.benchmark = not benchmark
        torch.use_deterministic_algorithms(True)
        raise RuntimeError("boom")
    assert (random.getstate()[1], numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == expected
    assert torch.backends.cudnn.benchmark == benchmark and not torch.are_deterministic_algorithms_enabled()


def test_one_changed_bit_is_noticed_and_named() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Conv2d(2, 2, 1).to(memory_format=torch.channels_last))
    with pytest.raises(TrainingFailed, match=r"1 base weights differ .*'1.bias'"), unharmed(net):
        net[1].bias.data.view(torch.int32)[0] ^= 1


def test_changes_that_are_undone_pass() -> None:
    net = nn.Linear(3, 3)
    before = checksums(net)
    with unharmed(net):
        net.weight.data += 1
        net.weight.data -= 1
        net.load_state_dict(net.state_dict())
        kept = net.weight.data.clone()
    assert checksums(net) == before or not torch.equal(kept, net.weight)
