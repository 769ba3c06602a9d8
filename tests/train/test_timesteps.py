"""The densities that are documented, bin by bin, and both ends of the range."""

from __future__ import annotations

import math

import pytest
import torch

from lib_lora.errors import BadConfig
from lib_lora.train import keyed
from lib_lora.train.sections_data import Training
from lib_lora.train.timesteps import draw_timestep, timestep_range

LOW, HIGH, DRAWS = 100, 109, 20000


def logit_normal_below(place: float) -> float:
    """P(sigmoid(n) < place)."""
    return 0.5 * (1 + math.erf(math.log(place / (1 - place)) / math.sqrt(2))) if 0 < place < 1 else float(place >= 1)


BELOW = {
    "uniform": lambda u: u,
    "early": lambda u: 2 * u - u * u,
    "late": lambda u: u * u,
    "logit_normal": logit_normal_below,
}


@pytest.mark.parametrize("sampling", BELOW)
def test_densities(sampling: str) -> None:
    source = keyed.generator(0, sampling)
    drawn = torch.tensor([draw_timestep(LOW, HIGH, sampling, source) for _ in range(DRAWS)])
    assert drawn.min() >= LOW and drawn.max() <= HIGH
    count = HIGH - LOW + 1
    below = BELOW[sampling]
    for place in range(count):
        want = below((place + 1) / count) - below(place / count)
        spread = math.sqrt(want * (1 - want) / DRAWS)
        assert abs(int((drawn == LOW + place).sum()) / DRAWS - want) < 4 * spread, place


@pytest.mark.parametrize("sampling", BELOW)
def test_a_range_of_one(sampling: str) -> None:
    assert {draw_timestep(7, 7, sampling, keyed.generator(0, n)) for n in range(50)} == {7}


def test_the_range_ends_with_the_schedule() -> None:
    assert timestep_range(Training(), 1000) == (0, 999)
    assert timestep_range(Training(timestep_low=20, timestep_high=500), 1000) == (20, 500)
    assert timestep_range(Training(), 50) == (0, 49)


def test_an_empty_range_is_told() -> None:
    with pytest.raises(BadConfig, match="timestep_low = 600 is above training.timestep_high = 400; give two"):
        timestep_range(Training(timestep_low=600, timestep_high=400), 1000)
