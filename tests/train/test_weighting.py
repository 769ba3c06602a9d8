"""Every weighting against kohya's numbers, diffusers' signal-to-noise ratio and the formulas written out."""

from __future__ import annotations

import importlib

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.utils import import_utils
from torch import Tensor

from lib_lora.train.objective import zero_terminal
from lib_lora.train.sections_data import Training
from lib_lora.train.weighting import EPSILON, WEIGHTINGS, V, timestep_weights

TIMES = torch.tensor([0, 37, 250, 500, 800, 999])
ALL = torch.arange(1000)

# What kohya's functions in custom_train_functions.py make of a loss of 1 at TIMES, in float64, on SD's noise schedule
KOHYA = {
    ("min_snr", EPSILON): [0.004253615573237339, 0.18187608131040195, 1.0, 1.0, 1.0, 1.0],
    ("min_snr", V): [
        *(0.004250000000000088, 0.17549250354169876, 0.6737926252333214, 0.27633268382297455),
        *(0.03686961658305818, 0.004660098513077238),
    ],
    ("debiased", EPSILON): [
        *(0.03162277660168379, 0.19072287818214256, 0.6957989370616524, 1.618278826018617),
        *(5.111027658207933, 14.614641229333639),
    ],
    ("debiased", V): [
        *(0.000999000999000999, 0.03509850070833975, 0.32620737476667855, 0.7236673161770254),
        *(0.9631303834169418, 0.9953399014869226),
    ],
}
KOHYA_SCALE_V = [0.999000999000999, 0.9649014992916602, 0.6737926252333214, 0.27633268382297455]
KOHYA_SCALE_V += [0.03686961658305818, 0.004660098513077238]
KOHYA_V_LIKE = [1.3003, 1.310912564878624, 1.4452408482448376, 2.0856479076220578]  # v_pred_like_loss 0.3
KOHYA_V_LIKE += [9.13678111688994, 65.3763214786416]


@pytest.fixture(scope="module")
def scheduler() -> DDPMScheduler:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    return scheduler


@pytest.fixture(scope="module")
def bars(scheduler: DDPMScheduler) -> Tensor:
    return scheduler.alphas_cumprod


def close(one: Tensor, two: Tensor | list[float]) -> bool:
    return torch.allclose(one, torch.as_tensor(two, dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("name", "prediction"), KOHYA)
def test_kohya(bars: Tensor, name: str, prediction: str) -> None:
    weights = timestep_weights(bars, prediction, Training(weighting=name, min_snr_gamma=5.0))
    assert weights.dtype == torch.float64
    assert close(weights[TIMES], KOHYA[name, prediction])


def test_kohyas_extra_scales(bars: Tensor) -> None:
    assert close(timestep_weights(bars, V, Training(weighting="none", scale_v_pred=True))[TIMES], KOHYA_SCALE_V)
    assert close(timestep_weights(bars, EPSILON, Training(weighting="none", v_pred_like=0.3))[TIMES], KOHYA_V_LIKE)


def test_extra_scales_multiply_the_weighting(bars: Tensor) -> None:
    both = timestep_weights(bars, V, Training(weighting="min_snr", scale_v_pred=True))[TIMES]
    assert close(both, [a * b for a, b in zip(KOHYA["min_snr", V], KOHYA_SCALE_V)])


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_with_diffusers_snr(
    scheduler: DDPMScheduler, bars: Tensor, gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it would load torchvision for things not needed here
    monkeypatch.setattr(import_utils, "_torchvision_available", False)
    snr = importlib.import_module("diffusers.training_utils").compute_snr(scheduler, ALL)
    assert snr.dtype == torch.float32  # it rounds, whatever the schedule is
    least = torch.stack([snr, torch.full_like(snr, gamma)], 1).min(1)[0]
    for prediction, want in ((EPSILON, least / snr), (V, least / (snr + 1))):
        made = timestep_weights(bars, prediction, Training(min_snr_gamma=gamma))
        assert torch.allclose(made, want.double(), rtol=1e-6, atol=0)


def test_soft_min_snr_and_p2(bars: Tensor) -> None:
    snr, sigma2 = bars / (1 - bars), (1 - bars) / bars
    of_picture = 1 / (sigma2 + 1 / 5.0)  # Crowson et al., for the predicted picture
    soft = Training(weighting="soft_min_snr", min_snr_gamma=5.0)
    assert close(timestep_weights(bars, EPSILON, soft), of_picture * sigma2)
    assert close(timestep_weights(bars, V, soft), of_picture / (snr + 1))
    p2 = Training(weighting="p2")
    assert close(timestep_weights(bars, EPSILON, p2), 1 / (1 + snr))
    assert close(timestep_weights(bars, V, p2), snr / (1 + snr) ** 2)


@pytest.mark.parametrize("name", ["min_snr", "soft_min_snr", "p2"])
def test_the_v_form_weighs_the_same_error_alike(bars: Tensor, name: str) -> None:
    """An error d of the picture is sqrt(snr) d in eps and sqrt(snr + 1) d in v: both losses must weigh it the same."""
    snr, training = bars / (1 - bars), Training(weighting=name)
    of_eps, of_v = (timestep_weights(bars, kind, training) for kind in (EPSILON, V))
    assert close(of_eps * snr, of_v * (snr + 1))


def test_scale_v_pred_makes_an_unweighted_v_loss_an_eps_loss(bars: Tensor) -> None:
    snr = bars / (1 - bars)
    inside = snr < 1000  # kohya's bound
    assert inside.sum() > 990
    of_v = timestep_weights(bars, V, Training(weighting="none", scale_v_pred=True))
    assert close((of_v * (snr + 1))[inside], snr[inside])


@pytest.mark.parametrize("name", ["min_snr", "soft_min_snr"])
@pytest.mark.parametrize("prediction", [EPSILON, V])
def test_gamma_zero_weighs_all_alike(bars: Tensor, name: str, prediction: str) -> None:
    weights = timestep_weights(bars, prediction, Training(weighting=name, min_snr_gamma=0.0))
    assert torch.equal(weights, torch.ones(1000, dtype=torch.float64))


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("prediction", [EPSILON, V])
def test_the_ends_of_a_schedule_divide_by_nothing(bars: Tensor, name: str, prediction: str) -> None:
    whole = zero_terminal(bars)
    whole[0] = 1.0  # no noise at all at one end, nothing else at the other
    extra = {"v_pred_like": 1.0} if prediction == EPSILON else {"scale_v_pred": True}
    for training in (Training(weighting=name), Training(weighting=name, **extra)):
        weights = timestep_weights(whole, prediction, training)
        assert weights.isfinite().all()
        assert (weights >= 0).all()


def test_limits_at_zero_snr(bars: Tensor) -> None:
    whole = zero_terminal(bars)
    last = {
        (name, kind): timestep_weights(whole, kind, Training(weighting=name))[-1].item()
        for name in ("min_snr", "soft_min_snr", "p2")
        for kind in (EPSILON, V)
    }
    assert last == {(name, kind): float(kind == EPSILON) for name, kind in last}
