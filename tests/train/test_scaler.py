"""The scale moves as torch's GradScaler's does, and gradients through a float16 base are the float32 ones."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lib_lora.errors import TrainingFailed
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train import keyed
from lib_lora.train.attach import attach, frozen, new_layers
from lib_lora.train.objective import EPSILON, Objective
from lib_lora.train.scaler import Scaler, make_scaler
from lib_lora.train.sections import NetworkSection
from lib_lora.train.sections_data import Training

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
PATTERN = [False, True, True, True, False, True, True, True, True, True, True, False, False, True, True, True]


@pytest.mark.skipif(TORCH < (2, 3), reason="this torch has no GradScaler for the CPU")
def test_the_scale_moves_as_torchs() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    ours = Scaler(1024.0, interval=3)
    for finite in PATTERN:
        factor = torch.tensor(1.0 if finite else float("inf"))
        theirs.scale((parameter * factor).sum()).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        assert ours.accepts(finite) == finite
        assert ours.scale == theirs.get_scale()
    assert ours.state()["good"] == theirs._get_growth_tracker()


def test_scaling_and_unscaling_change_no_digit() -> None:
    parameter, other = nn.Parameter(torch.randn(50)), nn.Parameter(torch.ones(2))
    scaler = Scaler()
    parameter.sin().sum().backward()
    plain = parameter.grad
    parameter.grad = None
    scaler.scaled(parameter.sin().sum()).backward()
    assert plain is not None and parameter.grad is not None
    assert torch.equal(parameter.grad, plain * 65536)
    scaler.unscale([parameter, other])  # one without a gradient
    assert torch.equal(parameter.grad, plain)


def test_bad_gradients_in_a_row_end_the_run() -> None:
    scaler = Scaler(1024.0, patience=3)
    assert [scaler.accepts(finite) for finite in (False, False, True, False, False, False)] == [False] * 2 + [
        True,
        *[False] * 3,
    ]
    assert scaler.scale == 32.0
    with pytest.raises(TrainingFailed, match="4 times in a row, down to a loss scale of 32; set base.dtype = bf16"):
        scaler.accepts(False)


def test_resuming_is_exact() -> None:
    whole = Scaler(1024.0, interval=3)
    for finite in PATTERN[:7]:
        whole.accepts(finite)
    resumed = Scaler(1.0, interval=3)
    resumed.load(json.loads(json.dumps(whole.state())))
    for finite in PATTERN[7:]:
        assert whole.accepts(finite) == resumed.accepts(finite)
        assert whole.state() == resumed.state()


def test_only_float16_is_scaled() -> None:
    assert make_scaler(torch.float16, True) is not None
    for dtype, wanted in ((torch.float32, True), (torch.bfloat16, True), (torch.float16, False)):
        assert make_scaler(dtype, wanted) is None


def direction(model: DiffusersModel, scaler: Scaler | None) -> Tensor:
    """The gradient of a min-SNR loss at a low timestep, where it is smallest, through layers on `model`."""
    layers = new_layers(model, NetworkSection(rank=2, alpha=2.0), keyed.generator(0))
    for layer in layers.values():
        layer.up.data.normal_(std=0.05, generator=keyed.generator(1))
    parameters = [p for layer in layers.values() for p in layer.parameters()]
    objective = Objective(model.alphas_cumprod(), EPSILON, Training(min_snr_gamma=0.01))
    latents, times = torch.randn(1, 4, 16, 16, generator=keyed.generator(2)), torch.tensor([10])
    noise = objective.draw(0, [(0, 0)], latents).noise
    with frozen(model, checkpointing=False), attach(model, layers):
        output = model.predict(objective.noisy(latents, noise, times), times, model.encode_text(["a toy"]))
        loss = objective.losses(output, objective.target(latents, noise, times), times).sum()
        (scaler.scaled(loss) if scaler else loss).backward()
    if scaler:
        scaler.unscale(parameters)
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])


@pytest.mark.skipif(TORCH < (2, 2), reason="this torch has no float16 convolution on the CPU")
def test_a_scaled_loss_gives_a_float16_base_the_float32_direction(make_tiny: Callable[[int], DiffusersModel]) -> None:
    full = direction(make_tiny(5), None)
    half = make_tiny(5)
    for root in half.roots().values():
        root.to(torch.float16)
    plain, scaled = direction(half, None), direction(half, Scaler(65536.0))

    def agreement(other: Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(full, other, dim=0))

    assert scaled.isfinite().all()
    assert agreement(scaled) > 0.999
    assert float(scaled.norm() / full.norm()) == pytest.approx(1.0, rel=0.01)
    assert agreement(plain) < 0.9  # so much is lost without: 0.15 seen, and 44 % of the values are 0
    assert scaled.all() and (plain == 0).double().mean() > 0.1
