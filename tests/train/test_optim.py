"""Rates, averages, and resuming bit for bit with every optimizer, through a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.files.tensors import read_tensors, write_tensors
from lib_lora.train.optim import (
    averaged,
    make_optimizer,
    optimizer_state,
    rate_factor,
    restore_optimizer,
    set_rates,
)
from lib_lora.train.optimizers import Groups
from lib_lora.train.sections import OPTIMIZERS, OptimizerSection

NEEDS = {
    **dict.fromkeys(("adamw8bit", "paged_adamw8bit", "lion8bit", "paged_lion8bit"), "bitsandbytes"),
    "adafactor": "transformers",
    "prodigy": "prodigyopt",
    "schedulefree": "schedulefree",
}
SHAPES = ((64, 96), (96, 64), (7,))  # the first two are kept in 8 bits where something is
STEPS, HALF = 6, 3


def section(name: str, **settings: Any) -> OptimizerSection:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} needs {NEEDS[name]}, which is not installed")
    path = {"path": "torch.optim.NAdam"} if name == "custom" else {}
    return OptimizerSection(name=name, schedule="cosine", warmup_steps=2, **path, **settings)


def groups(values: list[Tensor] | None = None, rate: float = 1e-2) -> Groups:
    """Two groups; one of the tensors is all zeros, as the second factor of a new layer is."""
    source = torch.Generator().manual_seed(0)
    values = values or [torch.randn(shape, generator=source) * (shape[0] != 96) for shape in SHAPES]
    chosen = [nn.Parameter(value.clone()) for value in values]
    return [
        {"params": chosen[:2], "lr": rate, "base_lr": rate},
        {"params": chosen[2:], "lr": rate, "base_lr": rate, "text": True},
    ]


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def run(optimizer: torch.optim.Optimizer, job: OptimizerSection, steps: range) -> None:
    for step in steps:
        for p in parameters(optimizer):
            p.grad = torch.sin(p.detach() * 7 + step)
        set_rates(optimizer, rate_factor(job, step, STEPS))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resuming_is_exact(name: str, tmp_path: Path) -> None:
    job, rate = section(name), 1.0 if name == "prodigy" else 1e-2

    def make(values: list[Tensor] | None = None) -> torch.optim.Optimizer:
        return make_optimizer(job, groups(values, rate))

    whole, half = make(), make()
    run(whole, job, range(STEPS))
    run(half, job, range(HALF))
    tensors, plain = optimizer_state(half)
    values = {f"parameter/{n}": p.detach() for n, p in enumerate(parameters(half))}
    write_tensors(tmp_path / "state", {**tensors, **values}, {"plain": json.dumps(plain)})
    read, again = read_tensors(tmp_path / "state"), json.loads(json.dumps(plain))
    resumed = make([read.pop(name) for name in values])
    restore_optimizer(resumed, read, again)
    run(resumed, job, range(HALF, STEPS))
    for one, two in zip(parameters(whole), parameters(resumed)):
        assert torch.equal(one, two)
    (tensors, plain), (others, other) = optimizer_state(whole), optimizer_state(resumed)
    assert plain == other
    assert tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors)


@pytest.mark.parametrize(("name", "moved"), [("prodigy", {"d", "k", "d_max"}), ("schedulefree", {"k", "weight_sum"})])
def test_what_moves_in_the_groups_is_state(name: str, moved: set[str]) -> None:
    job = section(name)
    optimizer = make_optimizer(job, groups(rate=1.0))
    run(optimizer, job, range(HALF))
    plain = optimizer_state(optimizer)[1]
    assert {f"groups/1/{key}" for key in moved} <= plain.keys()
    fresh = make_optimizer(job, groups(rate=1.0))
    assert any(plain[f"groups/1/{key}"] != fresh.param_groups[1][key] for key in moved)


def test_the_jobs_own_settings_are_not_state() -> None:
    """So a run that failed can be resumed with a lower rate, as its message advises."""
    old, new = section("adamw", weight_decay=0.1, beta1=0.8), section("adamw", weight_decay=0.2, beta1=0.9)
    before = make_optimizer(old, groups(rate=1e-2))
    run(before, old, range(HALF))
    after = make_optimizer(new, groups(rate=1e-3))
    restore_optimizer(after, *optimizer_state(before))
    group = after.param_groups[0]
    assert (group["lr"], group["base_lr"], group["weight_decay"], group["betas"]) == (1e-3, 1e-3, 0.2, (0.9, 0.999))
    assert torch.equal(after.state[group["params"][0]]["exp_avg"], next(iter(before.state.values()))["exp_avg"])


def test_a_state_of_other_parameters_is_told() -> None:
    job = section("adamw")
    before = make_optimizer(job, groups())
    run(before, job, range(1))
    fewer = make_optimizer(job, [{"params": [nn.Parameter(torch.ones(2))], "lr": 0.1, "base_lr": 0.1}])
    with pytest.raises(BadConfig, match="other parameters than the job's 1 in 1 groups; resume with"):
        restore_optimizer(fewer, *optimizer_state(before))


def test_what_cannot_be_kept_is_told() -> None:
    optimizer = make_optimizer(section("sgd"), groups())
    optimizer.state[parameters(optimizer)[0]]["odd"] = object()
    with pytest.raises(BadConfig, match="SGD keeps state/0/odd = <object .*use another optimizer"):
        optimizer_state(optimizer)


def test_groups_keep_their_own_rates() -> None:
    chosen: Groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": rate, "base_lr": rate} for rate in (1e-3, 1e-5)]
    optimizer = make_optimizer(OptimizerSection(beta1=0.5, weight_decay=0.1), chosen)
    assert set_rates(optimizer, 0.5) == 5e-4
    assert set_rates(optimizer, 0.5) == 5e-4  # of the base rate, not of the last
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-6]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_has_no_gradient_stands_still(name: str) -> None:
    """So text encoders do after training.te_fraction; a rate of 0 would not do for Prodigy and schedule-free."""
    job = section(name)
    optimizer = make_optimizer(job, groups(rate=1.0 if name == "prodigy" else 1e-2))
    run(optimizer, job, range(2))
    before = [p.detach().clone() for p in parameters(optimizer)]
    for p in parameters(optimizer)[:2]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    still = [torch.equal(p, value) for p, value in zip(parameters(optimizer), before)]
    assert still == [False, False, True]


def test_averaged_shows_the_average_and_gives_back_every_bit() -> None:
    job = section("schedulefree")
    optimizer = make_optimizer(job, groups())
    run(optimizer, job, range(HALF))
    trained = [p.detach().clone() for p in parameters(optimizer)]
    with pytest.raises(RuntimeError, match="while sampling"), averaged(optimizer):
        for p, value in zip(parameters(optimizer), trained):
            z = optimizer.state[p]["z"]
            want = value + (z - value) * (1 - 1 / 0.9)  # from y = beta x + (1 - beta) z
            assert torch.allclose(p, want, atol=1e-6) and not torch.equal(p, value)
        assert optimizer.param_groups[0]["train_mode"] is False
        raise RuntimeError("while sampling")
    assert all(torch.equal(p, value) for p, value in zip(parameters(optimizer), trained))
    assert [group["train_mode"] for group in optimizer.param_groups] == [True, True]
    run(optimizer, job, range(HALF, STEPS))
    other = make_optimizer(job, groups())
    run(other, job, range(STEPS))
    assert all(torch.equal(p, q) for p, q in zip(parameters(optimizer), parameters(other)))


def test_averaged_leaves_other_optimizers_alone() -> None:
    optimizer = make_optimizer(section("adamw"), groups())
    before = [p.detach().clone() for p in parameters(optimizer)]
    with averaged(optimizer):
        assert all(torch.equal(p, value) for p, value in zip(parameters(optimizer), before))
