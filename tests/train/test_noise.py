"""Noise: keyed by place, offset per channel, coarse layers; values against kohya's functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_lora.train import keyed
from lib_lora.train.noise import coarse_layers, make_noise, multires, offset_strength
from lib_lora.train.sections_data import Training

PLAIN = Training()


def noises(training: Training, latent: Tensor, count: int = 300) -> Tensor:
    return torch.stack([make_noise(0, (step, 1), latent, training) for step in range(count)])


def test_noise_is_keyed_by_place_and_leaves_the_global_state_alone() -> None:
    latent, training = torch.zeros(4, 8, 8), Training(offset_noise=0.1, multires_levels=4)
    state = torch.get_rng_state()
    one = make_noise(1, (3, 1), latent, training)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(make_noise(1, (3, 1), latent, training), one)
    for seed, place in ((2, (3, 1)), (1, (3, 0)), (1, (4, 1))):
        assert not torch.equal(make_noise(seed, place, latent, training), one)
    assert one.dtype == torch.float32


def test_plain_noise_is_standard_normal() -> None:
    values = noises(PLAIN, torch.zeros(4, 8, 8))
    assert values.mean() == pytest.approx(0.0, abs=0.02)
    assert values.var() == pytest.approx(1.0, abs=0.02)


def test_offset_noise_is_one_number_per_channel_and_adds_its_variance() -> None:
    latent = torch.zeros(4, 8, 8)
    shift = noises(Training(offset_noise=0.5), latent) - noises(PLAIN, latent)
    assert shift.std((2, 3)).max() < 1e-6  # (B, C, 1, 1): the same over a whole channel
    numbers = shift.mean((2, 3))
    assert numbers.std() == pytest.approx(0.5, rel=0.05)
    assert abs(torch.corrcoef(numbers.T) - torch.eye(4)).max() < 0.2  # each channel has its own
    assert noises(Training(offset_noise=0.5), latent).var() == pytest.approx(1.25, rel=0.05)


def test_adaptive_offset_equals_kohya() -> None:
    # what kohya's apply_noise_offset adds to a zero noise of two pictures, with sin(1), sin(2), ... for its normals,
    # noise_offset 0.1 and adaptive_noise_scale 0.5, on latents that rise evenly from -1 to 2
    kohya = [0.4337723668164649, 0.2958418388686373, 0.019081015174291907, -0.19293134035314788]
    kohya += [-0.426788832103594, -0.17748787279959938, 0.542245277252409, 1.0046863321344481]
    latents = torch.linspace(-1, 2, 72, dtype=torch.float64).reshape(2, 4, 3, 3)
    training = Training(offset_noise=0.1, offset_adaptive=0.5)
    strengths = torch.stack([offset_strength(latent, training) for latent in latents])
    numbers = torch.sin(torch.arange(8, dtype=torch.float64) + 1).reshape(2, 4, 1, 1)
    assert torch.allclose((strengths * numbers).flatten(), torch.tensor(kohya, dtype=torch.float64), rtol=1e-6)


def test_adaptive_offset_works_alone_and_reaches_the_noise() -> None:
    latent = torch.ones(4, 8, 8) * torch.tensor([0.0, -1.0, 2.0, 4.0]).view(4, 1, 1)
    shift = (noises(Training(offset_adaptive=0.5), latent) - noises(PLAIN, latent)).mean((2, 3))
    assert shift[:, 0].abs().max() < 1e-6
    assert shift.std(0)[1:].tolist() == pytest.approx([0.5, 1.0, 2.0], rel=0.15)


def test_coarse_layers_shrink_and_end_at_one() -> None:
    layers = coarse_layers((4, 32, 24), 16, keyed.generator(0))
    assert layers[0].shape == (4, 32, 24)
    sizes = [layer.shape[1:] for layer in layers]
    assert 1 in sizes[-1] and all(1 not in size for size in sizes[:-1])
    for level, (height, width) in enumerate(sizes[1:], 1):
        assert 32 / 4**level - 1 < height <= 32 / 2**level
        assert 24 / 4**level - 1 < width <= max(1, 24 / 2**level)
    assert len(coarse_layers((4, 32, 24), 2, keyed.generator(0))) == 2
    ratios = {coarse_layers((1, 4096, 1), 2, keyed.generator(n))[0].shape for n in range(3)}
    assert ratios == {(1, 4096, 1)}  # a side of 1 ends it at once
    second = {coarse_layers((1, 1000, 1000), 2, keyed.generator(n))[1].shape[1] for n in range(5)}
    assert len(second) > 1 and all(250 < size <= 500 for size in second)  # r is drawn anew, from 2 to 4


def test_multires_equals_kohya() -> None:
    # kohya's pyramid_noise_like(4 iterations, discount 0.8) with random.random() giving 0.1, 0.9, 0.35 and
    # torch.randn giving sin(1.7 n + layer), on the noise cos(2.3 n) of shape (1, 4, 12, 8); it ended after 3 layers
    kohya = [2.3029464074849244, 0.18923857015748624, -1.3235412489662264]
    kohya += [-0.06280473192193982, 0.8556984059496194, -0.2155714668133117]
    noise = torch.cos(torch.arange(384, dtype=torch.float64) * 2.3).reshape(4, 12, 8)
    layers = []
    for level, share in enumerate((0.1, 0.9, 0.35)):
        ratio = (2 + 2 * share) ** level
        size = (4, max(1, int(12 / ratio)), max(1, int(8 / ratio)))
        numbers = torch.arange(size[0] * size[1] * size[2], dtype=torch.float64)
        layers.append(torch.sin(numbers * 1.7 + level + 1).reshape(size))
    made = multires(noise, layers, 0.8).flatten()[[0, 5, 50, 100, 200, 383]]
    assert torch.allclose(made, torch.tensor(kohya, dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize("discount", [0.3, 0.9])
def test_multires_noise_has_variance_one_in_each_sample(discount: float) -> None:
    made = noises(Training(multires_levels=8, multires_discount=discount), torch.zeros(4, 16, 16), 20)
    assert made.flatten(1).var(1).tolist() == pytest.approx([1.0] * 20, rel=1e-5)
    neighbours = (made[..., 1:] * made[..., :-1]).mean()
    assert neighbours > (0.0 if discount < 0.5 else 0.2)  # it is coarser than plain noise


def test_multires_noise_is_built_on_the_offset_noise() -> None:
    latent, training = torch.zeros(4, 8, 8), Training(offset_noise=0.5, multires_levels=1, multires_discount=1.0)
    offset = make_noise(0, (1, 1), latent, Training(offset_noise=0.5))
    layer = coarse_layers((4, 8, 8), 1, keyed.generator(0, "multires", 1, 1))[0]
    total = offset + layer
    assert torch.allclose(make_noise(0, (1, 1), latent, training), total / total.std(), atol=1e-6)
