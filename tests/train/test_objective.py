"""Noise, targets and weights against diffusers' scheduler and the papers' formulas, in float64."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from lib_lora.errors import BadConfig
from lib_lora.train.objective import EPSILON, Objective, V, draw


@pytest.fixture(scope="module")
def scheduler() -> DDPMScheduler:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


def test_noisy_and_targets_equal_diffusers(scheduler: DDPMScheduler) -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(5, 4, 3, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    times = torch.tensor([0, 1, 400, 998, 999])
    eps, v = (Objective(scheduler.alphas_cumprod, kind) for kind in (EPSILON, V))
    assert torch.allclose(eps.noisy(x, noise, times), scheduler.add_noise(x, noise, times), rtol=1e-12, atol=1e-12)
    assert torch.equal(eps.target(x, noise, times), noise)
    assert torch.allclose(v.target(x, noise, times), scheduler.get_velocity(x, noise, times), rtol=1e-12, atol=1e-12)


def test_min_snr_weights(scheduler: DDPMScheduler) -> None:
    bars, times = scheduler.alphas_cumprod, torch.arange(1000)
    snr = bars / (1 - bars)
    least = torch.minimum(snr, torch.full_like(snr, 5.0))
    assert torch.allclose(Objective(bars, EPSILON, 5.0).weights(times), least / snr, rtol=1e-12)
    assert torch.allclose(Objective(bars, V, 5.0).weights(times), least / (snr + 1), rtol=1e-12)
    assert torch.equal(Objective(bars, V).weights(times), torch.ones(1000, dtype=torch.float64))


def test_zero_terminal_snr_divides_by_nothing(scheduler: DDPMScheduler) -> None:
    bars = scheduler.alphas_cumprod.clone()
    bars[-1] = 0.0
    assert Objective(bars, EPSILON, 5.0).weights(torch.tensor([999])).item() == 1.0
    assert Objective(bars, V, 5.0).weights(torch.tensor([999])).item() == 0.0


def test_losses_are_per_sample(scheduler: DDPMScheduler) -> None:
    objective = Objective(scheduler.alphas_cumprod, EPSILON, 5.0)
    output, target = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    times = torch.tensor([5, 500, 900])
    want = torch.stack([((o - t) ** 2).mean() for o, t in zip(output, target)]) * objective.weights(times)
    assert torch.allclose(objective.losses(output, target, times), want, rtol=1e-12)


def test_draws_depend_on_seed_and_place_only() -> None:
    state = torch.get_rng_state()
    both = draw(1, [(3, 0), (3, 1)], (4, 8, 8))
    torch.manual_seed(99)
    alone = draw(1, [(3, 1)], (4, 8, 8))
    torch.set_rng_state(state)
    assert torch.equal(both.noise[1], alone.noise[0])
    assert both.timesteps[1] == alone.timesteps[0]
    assert not torch.equal(both.noise[0], both.noise[1])
    assert not torch.equal(draw(2, [(3, 1)], (4, 8, 8)).noise, alone.noise)


def test_offset_noise_shifts_whole_channels() -> None:
    places = [(0, slot) for slot in range(64)]
    plain, shifted = draw(0, places, (4, 8, 8)), draw(0, places, (4, 8, 8), offset=0.5)
    shift = shifted.noise - plain.noise
    assert shift.std((2, 3)).max() < 1e-6
    assert shift.mean((2, 3)).std() == pytest.approx(0.5, rel=0.2)
    assert torch.equal(plain.timesteps, shifted.timesteps)


def test_unknown_prediction(scheduler: DDPMScheduler) -> None:
    with pytest.raises(BadConfig, match="'sample'"):
        Objective(scheduler.alphas_cumprod, "sample")
