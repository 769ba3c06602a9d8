"""Noise, targets and losses together, against diffusers' scheduler and kohya's numbers, in float64."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from torch import Tensor

from lib_lora.errors import BadConfig
from lib_lora.train.objective import EPSILON, Objective, V, zero_terminal
from lib_lora.train.sections_data import Training

TIMES = torch.tensor([0, 1, 400, 998, 999])
PLAIN = Training(weighting="none")


@pytest.fixture(scope="module")
def scheduler() -> DDPMScheduler:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas, 0)
    return scheduler


@pytest.fixture(scope="module")
def bars(scheduler: DDPMScheduler) -> Tensor:
    return scheduler.alphas_cumprod


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_noisy_and_targets_equal_diffusers(scheduler: DDPMScheduler, bars: Tensor) -> None:
    x, noise = normals(2, 5, 4, 3, 3)
    eps, v = (Objective(bars, kind, PLAIN) for kind in (EPSILON, V))
    for objective in (eps, v):
        noisy = objective.noisy(x, noise, TIMES)
        assert torch.allclose(noisy, scheduler.add_noise(x, noise, TIMES), rtol=1e-12, atol=1e-12)
    assert torch.equal(eps.target(x, noise, TIMES), noise)
    assert torch.allclose(v.target(x, noise, TIMES), scheduler.get_velocity(x, noise, TIMES), rtol=1e-12, atol=1e-12)


def test_a_schedule_in_float32_is_read_in_float64(bars: Tensor) -> None:
    assert Objective(bars.float(), EPSILON, PLAIN).alphas_cumprod.dtype == torch.float64


def test_zero_terminal_rescaling_equals_diffusers_and_kohya(scheduler: DDPMScheduler, bars: Tensor) -> None:
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(scheduler.betas.clone()), 0)
    ours = Objective(bars, V, Training(zero_terminal_snr=True)).alphas_cumprod
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-15)
    # alpha_bar after kohya's fix_noise_scheduler_betas_for_zero_terminal_snr, at these timesteps
    kohya = [0.99915, 0.9624145822147631, 0.6524570153414769, 0.24101878275731575, 0.01764129882232836, 0.0]
    picked = ours[[0, 37, 250, 500, 800, 999]]
    assert torch.allclose(picked, torch.tensor(kohya, dtype=torch.float64), rtol=1e-10, atol=0)
    assert ours[-1].item() == 0.0
    assert torch.allclose(zero_terminal(ours), ours, rtol=1e-12, atol=0)


def test_zero_terminal_v_is_the_picture_and_weighs_something(bars: Tensor) -> None:
    objective = Objective(bars, V, Training(zero_terminal_snr=True, weighting="none"))
    x, noise = normals(2, 1, 4, 3, 3)
    last = torch.tensor([999])
    assert torch.equal(objective.noisy(x, noise, last), noise)  # pure noise ...
    assert torch.equal(objective.target(x, noise, last), -x)  # ... from which the picture is asked
    assert objective.losses(torch.zeros_like(x), -x, last).item() == pytest.approx(x.square().mean().item())


@pytest.mark.parametrize("weighting", ["none", "min_snr", "soft_min_snr", "debiased", "p2"])
@pytest.mark.parametrize("huber", ["constant", "exponential", "snr"])
def test_eps_on_a_model_that_ends_at_zero_snr(bars: Tensor, weighting: str, huber: str) -> None:
    training = Training(weighting=weighting, loss="huber", huber_schedule=huber, v_pred_like=0.5)
    objective = Objective(zero_terminal(bars), EPSILON, training)
    x, noise = normals(2, 5, 4, 3, 3)
    noisy = objective.noisy(x, noise, TIMES).requires_grad_()
    losses = objective.losses(noisy * 0.5, objective.target(x, noise, TIMES), TIMES)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert noisy.grad is not None and noisy.grad.isfinite().all()


@pytest.mark.parametrize(
    ("prediction", "training", "message"),
    [
        ("sample", PLAIN, "base.prediction = 'sample' is not accepted; give epsilon or v_prediction"),
        (EPSILON, Training(zero_terminal_snr=True), "zero_terminal_snr.*the noise itself.*leave it off"),
        (EPSILON, Training(scale_v_pred=True), "scale_v_pred = true is for v-prediction.*leave it off"),
        (V, Training(v_pred_like=0.5), "v_pred_like = 0.5 is for models that predict eps.*set it to 0"),
        (V, Training(timestep_low=5, timestep_high=4), "timestep_low = 5 is above"),
    ],
)
def test_what_does_not_fit_is_refused(bars: Tensor, prediction: str, training: Training, message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        Objective(bars, prediction, training)


def test_losses_are_each_samples_own(bars: Tensor) -> None:
    """So class pictures in the same batch, whose losses prior.weight multiplies, have the same min-SNR weights."""
    objective = Objective(bars, V, Training(loss="huber", huber_schedule="snr"))
    output, target = normals(2, 5, 4, 2, 2)
    masks = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    together = objective.losses(output, target, TIMES, masks)
    for n in range(5):
        alone = objective.losses(output[n : n + 1], target[n : n + 1], TIMES[n : n + 1], masks[n : n + 1])
        assert torch.allclose(together[n], alone[0], rtol=1e-12)


@pytest.mark.parametrize("prediction", [EPSILON, V])
def test_the_whole_loss_written_out(bars: Tensor, prediction: str) -> None:
    """Huber whose place follows the SNR, per sample; over what a mask shows; then min-SNR."""
    training = Training(loss="huber", huber_delta=0.2, huber_schedule="snr", weighting="min_snr", min_snr_gamma=3.0)
    output, target = normals(2, 5, 4, 2, 2)
    masks = torch.rand(5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want = []
    for n, time in enumerate(TIMES.tolist()):
        a = bars[time].item()
        snr, sigma = a / (1 - a), ((1 - a) / a) ** 0.5
        d = (1 - 0.2) / (1 + sigma) ** 2 + 0.2
        value = 2 * d * (((output[n] - target[n]) ** 2 + d * d) ** 0.5 - d)
        mean = (value * masks[n]).sum() / (masks[n].sum() * 4)
        want.append(mean * min(snr, 3.0) / (snr if prediction == EPSILON else snr + 1))
    made = Objective(bars, prediction, training).losses(output, target, TIMES, masks)
    assert torch.allclose(made, torch.stack(want), rtol=1e-10)


def test_a_half_precision_output_is_compared_in_float32(bars: Tensor) -> None:
    output, target = normals(2, 5, 4, 2, 2)
    made = Objective(bars, EPSILON, PLAIN).losses(output.half(), target.half(), TIMES)
    assert made.dtype == torch.float32
    want = (output.half().float() - target.half().float()).square().flatten(1).mean(1)
    assert torch.equal(made, want)


def test_draws_depend_on_seed_and_place_only(bars: Tensor) -> None:
    training = Training(input_perturbation=0.1, offset_noise=0.1, multires_levels=3, timestep_sampling="late")
    objective, latents = Objective(bars, EPSILON, training), torch.zeros(2, 4, 8, 8)
    state = torch.get_rng_state()
    both = objective.draw(1, [(3, 0), (3, 1)], latents)
    assert torch.equal(torch.get_rng_state(), state)
    alone = objective.draw(1, [(3, 1)], latents[:1])
    for name in ("noise", "timesteps", "input_noise"):
        assert torch.equal(getattr(both, name)[1], getattr(alone, name)[0]), name
    assert not torch.equal(both.noise[0], both.noise[1])
    assert not torch.equal(objective.draw(2, [(3, 1)], latents[:1]).noise, alone.noise)
    assert both.timesteps.dtype == torch.int64


def test_settings_leave_each_others_draws_alone(bars: Tensor) -> None:
    places, latents = [(0, slot) for slot in range(16)], torch.zeros(16, 4, 8, 8)
    plain = Objective(bars, EPSILON, PLAIN).draw(0, places, latents)
    other = Objective(bars, EPSILON, Training(timestep_sampling="early", input_perturbation=0.3)).draw(
        0, places, latents
    )
    assert torch.equal(plain.noise, other.noise)
    assert not torch.equal(plain.timesteps, other.timesteps)
    offset = Objective(bars, EPSILON, Training(offset_noise=0.1)).draw(0, places, latents)
    assert torch.equal(plain.timesteps, offset.timesteps)


def test_offset_noise_enters_the_target_too(bars: Tensor) -> None:
    latents, places = torch.zeros(3, 4, 8, 8), [(0, 0), (0, 1), (0, 2)]
    shifted = Objective(bars, EPSILON, Training(offset_noise=0.5))
    drawn, plain = shifted.draw(0, places, latents), Objective(bars, EPSILON, PLAIN).draw(0, places, latents)
    assert torch.equal(drawn.input_noise, drawn.noise)
    shift = shifted.target(latents, drawn.noise, drawn.timesteps) - plain.noise
    assert shift.std((2, 3)).max() < 1e-6
    assert shift.mean((2, 3)).abs().min() > 1e-3
    v = Objective(bars, V, Training(offset_noise=0.5))
    a = bars[drawn.timesteps].sqrt().float().view(-1, 1, 1, 1)
    assert torch.allclose(v.target(latents, drawn.noise, drawn.timesteps), a * drawn.noise, atol=1e-6)


def test_input_perturbation_is_on_the_noisy_picture_only(bars: Tensor) -> None:
    latents, places = torch.zeros(64, 4, 8, 8), [(0, slot) for slot in range(64)]
    drawn = Objective(bars, EPSILON, Training(input_perturbation=0.25)).draw(0, places, latents)
    plain = Objective(bars, EPSILON, PLAIN).draw(0, places, latents)
    assert torch.equal(drawn.noise, plain.noise)
    further = drawn.input_noise - drawn.noise
    assert further.std().item() == pytest.approx(0.25, rel=0.05)
    assert abs(torch.corrcoef(torch.stack([further.flatten(), drawn.noise.flatten()]))[0, 1]) < 0.03


def test_the_timestep_range_is_kept(bars: Tensor) -> None:
    places, latents = [(step, 0) for step in range(300)], torch.zeros(300, 1, 1, 1)
    for sampling in ("uniform", "logit_normal", "early", "late"):
        training = Training(timestep_low=600, timestep_high=604, timestep_sampling=sampling)
        times = Objective(bars, V, training).draw(0, places, latents).timesteps
        assert set(times.tolist()) == set(range(600, 605)), sampling
