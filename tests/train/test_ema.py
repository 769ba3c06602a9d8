"""The average against diffusers' EMAModel, and parameters back bit for bit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.utils import import_utils
from torch import nn

from lib_lora.errors import BadConfig
from lib_lora.train.ema import Ema


@pytest.fixture
def ema_model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    # diffusers.training_utils would load torchvision for things not needed here
    monkeypatch.setattr(import_utils, "_torchvision_available", False)
    return importlib.import_module("diffusers.training_utils").EMAModel


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    source = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(3, 4, generator=source)) for name in ("a", "b")}


def move(chosen: dict[str, nn.Parameter], step: int) -> None:
    with torch.no_grad():
        for parameter in chosen.values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))


@pytest.mark.parametrize("decay", [0.3, 0.999])
@pytest.mark.parametrize("warmup", [True, False])
def test_diffusers_has_the_same(ema_model: Callable[..., Any], decay: float, warmup: bool) -> None:
    chosen = parameters()
    # without warmup its floor is its ceiling; its first update, which copies, is spent on the first parameters
    theirs = ema_model(chosen.values(), decay=decay, min_decay=0.0 if warmup else decay)
    theirs.step(chosen.values())
    ours = Ema(chosen, decay, warmup)
    for step in range(1, 30):
        move(chosen, step)
        theirs.step(chosen.values())
        ours.update(step)
        for average, reference in zip(ours.state().values(), theirs.shadow_params):
            assert torch.allclose(average, reference, rtol=1e-5, atol=1e-6)


def test_the_formula_in_float64() -> None:
    chosen = {"a": nn.Parameter(torch.zeros(1, dtype=torch.float64))}
    ema, want = Ema(chosen, 0.6), 0.0
    for step in range(1, 20):
        with torch.no_grad():
            chosen["a"].fill_(float(step))
        ema.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * step
        assert ema.state()["a"].item() == pytest.approx(want, rel=1e-12)


def test_swapped_and_back_bit_for_bit() -> None:
    chosen = parameters()
    ema = Ema(chosen, 0.9)
    move(chosen, 1)
    ema.update(1)
    before = {name: p.detach().clone() for name, p in chosen.items()}
    averages = {name: average.clone() for name, average in ema.state().items()}
    places = {name: p.data_ptr() for name, p in chosen.items()}
    with pytest.raises(RuntimeError, match="while sampling"), ema.swapped():
        assert {p.data_ptr() for p in chosen.values()} == {a.data_ptr() for a in ema.state().values()}, "copies"
        assert all(torch.equal(p, averages[name]) for name, p in chosen.items())
        assert not torch.equal(chosen["a"], before["a"])
        raise RuntimeError("while sampling")
    assert all(torch.equal(p, before[name]) for name, p in chosen.items())
    assert {name: p.data_ptr() for name, p in chosen.items()} == places
    assert all(torch.equal(average, averages[name]) for name, average in ema.state().items())


def test_half_parameters_are_averaged_in_float32() -> None:
    chosen = {"a": nn.Parameter(torch.ones(4, dtype=torch.bfloat16))}
    ema = Ema(chosen, 0.999, warmup=False)
    with torch.no_grad():
        chosen["a"].fill_(2.0)
    ema.update(1)
    assert ema.state()["a"].dtype == torch.float32
    assert ema.state()["a"].tolist() == pytest.approx([1.001] * 4, rel=1e-6)  # bfloat16 would say 1
    with ema.swapped():
        assert chosen["a"].dtype == torch.bfloat16


def test_resuming_is_exact() -> None:
    chosen = parameters()
    whole = Ema(chosen, 0.99)
    kept: dict[str, torch.Tensor] = {}
    for step in range(1, 7):
        move(chosen, step)
        whole.update(step)
        if step == 3:
            kept = {name: average.clone() for name, average in whole.state().items()}
            middle = {name: nn.Parameter(p.detach().clone()) for name, p in chosen.items()}
    resumed = Ema(middle, 0.99)
    resumed.load(kept)
    for step in range(4, 7):
        move(middle, step)
        resumed.update(step)
    assert all(torch.equal(average, resumed.state()[name]) for name, average in whole.state().items())


def test_averages_of_other_parameters_are_told() -> None:
    ema = Ema(parameters(), 0.9)
    with pytest.raises(BadConfig, match="1 averages are not of the job's 2 parameters; resume"):
        ema.load({"a": torch.zeros(3, 4)})
    with pytest.raises(BadConfig, match="resume with the settings"):
        ema.load({"a": torch.zeros(3, 4), "b": torch.zeros(1)})
