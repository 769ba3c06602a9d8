"""Steps, epochs and rates are exact."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_lora.errors import BadConfig
from lib_lora.train.config import OptimizerSection, Training
from lib_lora.train.optim import make_optimizer, rate_factor, set_rates
from lib_lora.train.plan import Plan


@given(count=st.integers(1, 9), epochs=st.integers(1, 4), batch=st.integers(1, 5), parts=st.integers(1, 3))
def test_epochs_visit_everything_equally_often(count: int, epochs: int, batch: int, parts: int) -> None:
    plan = Plan(range(count), Training(epochs=epochs, batch_size=batch, accumulation=parts, seed=3))
    seen = [visit.index for step in range(plan.steps) for visit in plan.visits(step)]
    assert Counter(seen) == dict.fromkeys(range(count), epochs)
    for epoch in range(epochs):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert plan.epoch(plan.steps) == epochs
    assert all(plan.visits(step) for step in range(plan.steps))


def test_steps_are_full_and_run_over_the_ends_of_epochs() -> None:
    plan = Plan(range(3), Training(steps=5, batch_size=2))
    assert [len(plan.visits(step)) for step in range(5)] == [2] * 5
    assert Counter(v.index for step in range(3) for v in plan.visits(step)) == {0: 2, 1: 2, 2: 2}
    assert plan.epoch(3) == 2


def test_epochs_are_shuffled_differently_and_by_seed() -> None:
    orders = [
        [v.index for v in Plan(range(9), Training(batch_size=9, seed=s)).visits(e)] for s in (0, 1) for e in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_schedules() -> None:
    cosine = OptimizerSection(schedule="cosine", warmup_steps=4)
    factors = [rate_factor(cosine, step, 14) for step in range(14)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[9] == pytest.approx(0.5)
    assert factors == pytest.approx(factors[:4] + sorted(factors[4:], reverse=True))
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), T_max=10)
    for step in range(10):
        assert rate_factor(OptimizerSection(schedule="cosine"), step, 10) == pytest.approx(reference.get_last_lr()[0])
        reference.optimizer.step()
        reference.step()
    assert {rate_factor(OptimizerSection(), step, 10) for step in range(10)} == {1.0}


def test_groups_keep_their_own_rates() -> None:
    groups: list[dict[str, Any]] = [
        {"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate, "base_lr": rate} for rate in (1e-3, 1e-5)
    ]
    optimizer = make_optimizer(OptimizerSection(beta1=0.5, weight_decay=0.1), groups)
    assert set_rates(optimizer, 0.5) == 5e-4
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-6]
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)


def test_missing_bitsandbytes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(BadConfig, match="adamw8bit.*pip install bitsandbytes"):
        make_optimizer(OptimizerSection(name="adamw8bit"), [{"params": [torch.nn.Parameter(torch.ones(1))]}])
