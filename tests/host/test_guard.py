"""What a job must leave as it was."""

from __future__ import annotations

import random
import zlib

import numpy
import pytest
import torch
from torch import nn

from lib_lora.errors import TrainingFailed
from lib_lora.host.guard import checksums, unharmed


def _states() -> tuple[int, int, int]:
    """Python's, numpy's and torch's random states, each as one number."""
    array = numpy.random.get_state()[1].tobytes()
    return hash(random.getstate()), zlib.crc32(array), zlib.crc32(torch.get_rng_state().numpy().tobytes())


def test_random_states_and_flags_come_back_after_an_error() -> None:
    net = nn.Linear(2, 2).half()
    expected = _states()
    benchmark = torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError, match="boom"), unharmed(net):
        random.seed(5)
        numpy.random.seed(5)
        torch.manual_seed(5)
        torch.backends.cudnn.benchmark = not benchmark
        raise RuntimeError("boom")
    assert _states() == expected
    assert torch.backends.cudnn.benchmark == benchmark


def test_one_changed_bit_is_noticed_and_named() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Conv2d(2, 2, 1).to(memory_format=torch.channels_last))
    with pytest.raises(TrainingFailed, match=r"1 base weights differ .*'1.bias'"), unharmed(net):
        net[1].bias.data.view(torch.int32)[0] ^= 1


def test_changes_that_are_undone_pass() -> None:
    net = nn.Linear(3, 3)
    before = net.weight.detach().clone()
    with unharmed(net):
        net.weight.data.zero_()
        assert checksums(net) != checksums(nn.Linear(3, 3))
        net.weight.data.copy_(before)
