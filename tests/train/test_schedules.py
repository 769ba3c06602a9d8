"""Learning rates over a run against diffusers' schedulers and the papers' formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.train.schedules import rate_factor
from lib_lora.train.sections import SCHEDULES, OptimizerSection

FALLING = [name for name in SCHEDULES if name != "constant"]
WARMUP, STEPS = 6, 40


def ours(steps: int = STEPS, **settings: Any) -> list[float]:
    section = OptimizerSection(**settings)
    return [rate_factor(section, step, steps) for step in range(steps)]


def of_diffusers(name: str, **options: Any) -> list[float]:
    """Its factors after warmup; during warmup it begins with a step at rate 0, which ours does not."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    factor = get_scheduler(name, optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS, **options)
    return [factor.lr_lambdas[0](step) for step in range(WARMUP, STEPS)]


@pytest.mark.parametrize(
    ("settings", "name", "options"),
    [
        ({"schedule": "constant"}, "constant_with_warmup", {}),
        ({"schedule": "linear"}, "linear", {}),
        ({"schedule": "cosine"}, "cosine", {}),
        ({"schedule": "cosine_restarts", "cycles": 1}, "cosine_with_restarts", {"num_cycles": 1}),
        ({"schedule": "cosine_restarts", "cycles": 3}, "cosine_with_restarts", {"num_cycles": 3}),
        ({"schedule": "polynomial", "power": 2.5, "end_factor": 1e-7}, "polynomial", {"power": 2.5}),
        ({"schedule": "polynomial", "power": 1.0, "end_factor": 1e-7}, "polynomial", {"power": 1.0}),
    ],
)
def test_diffusers_has_the_same(settings: dict[str, Any], name: str, options: dict[str, Any]) -> None:
    assert ours(warmup_steps=WARMUP, **settings)[WARMUP:] == pytest.approx(of_diffusers(name, **options), abs=1e-12)


def test_cosine_equals_torch() -> None:
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), T_max=10)
    for factor in ours(10, schedule="cosine"):
        assert factor == pytest.approx(reference.get_last_lr()[0])
        reference.optimizer.step()
        reference.step()


def test_rex_is_the_papers() -> None:
    for step, factor in enumerate(ours(schedule="rex")):
        left = 1 - step / STEPS
        assert factor == pytest.approx(left / (0.5 + 0.5 * left), rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_wastes_no_step(schedule: str) -> None:
    factors = ours(14, schedule=schedule, warmup_steps=4)
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("schedule", FALLING)
def test_the_end_factor_is_where_it_ends(schedule: str) -> None:
    section = OptimizerSection(schedule=schedule, end_factor=0.25, power=2.0, cycles=2)
    assert rate_factor(section, STEPS, STEPS) == 0.25
    plain = ours(schedule=schedule, power=2.0, cycles=2)
    assert ours(schedule=schedule, end_factor=0.25, power=2.0, cycles=2) == pytest.approx(
        [0.25 + 0.75 * factor for factor in plain]
    )


def test_constant_has_no_end() -> None:
    assert ours(schedule="constant", end_factor=0.25) == [1.0] * STEPS


def test_restarts_begin_at_one_again() -> None:
    factors = ours(40, schedule="cosine_restarts", cycles=4)
    assert [step for step, factor in enumerate(factors) if factor == 1.0] == [0, 10, 20, 30]
    assert factors[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.9)))


@given(
    schedule=st.sampled_from(SCHEDULES),
    steps=st.integers(1, 200),
    warmup=st.integers(0, 250),
    end=st.floats(0.0, 1.0),
    power=st.floats(0.0, 8.0),
    cycles=st.integers(1, 7),
)
def test_every_step_has_a_rate(schedule: str, steps: int, warmup: int, end: float, power: float, cycles: int) -> None:
    factors = ours(steps, schedule=schedule, warmup_steps=warmup, end_factor=end, power=power, cycles=cycles)
    assert all(0.0 < factor <= 1.0 + 1e-12 for factor in factors[: warmup + 1])
    assert all(min(end, 1.0) - 1e-12 <= factor <= 1.0 + 1e-12 for factor in factors[warmup:])
    if schedule not in ("cosine_restarts", "constant"):
        assert all(after <= before + 1e-12 for before, after in pairwise(factors[warmup:]))
