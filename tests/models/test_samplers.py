"""The sampler formulas in float64 against diffusers' schedulers, and sampling with a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lib_lora.errors import BadConfig, Cancelled
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.sample import SampleRequest, sample, seeded_noise, split, to_images
from lib_lora.models.samplers import SAMPLERS, Course, ddim, dpmpp_2m, euler
from lib_lora.models.schedule import (
    ends_in_noise,
    even_timesteps,
    leading_timesteps,
    linear,
    scaled_linear,
    sigmas_of,
    trailing_timesteps,
    zero_terminal,
)
from lib_lora.ports import TextOptions

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BAR = scaled_linear()
NOISE = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def output(z: Tensor, t: int) -> Tensor:
    """Some smooth nonlinear model."""
    return torch.tanh(z * 0.7 + t / 500) + 0.3 * z.roll(1, -1)


def guess(kind: str) -> Any:
    return lambda z, t: split(output(z, t), z, float(BAR[t]), kind)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_ddim_equals_diffusers(kind: str, steps: int) -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(**BETAS, prediction_type=kind, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.alphas_cumprod, theirs.final_alpha_cumprod = BAR, BAR[0]  # in float64: only the formula is compared
    theirs.set_timesteps(steps)
    assert theirs.timesteps.tolist() == leading_timesteps(steps).tolist()
    z = NOISE
    for t in theirs.timesteps.tolist():
        z = theirs.step(output(z, t), t, z).prev_sample
    torch.testing.assert_close(ddim(guess(kind), NOISE, Course(BAR, steps)), z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 10, 28])  # here linspace(999, 0, steps) is whole numbers on both sides
def test_euler_equals_diffusers(kind: str, steps: int) -> None:
    from diffusers import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler(**BETAS, prediction_type=kind, timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    want = [*sigmas_of(BAR)[even_timesteps(steps)].tolist(), 0.0]
    np.testing.assert_allclose(theirs.sigmas.numpy(), want, rtol=1e-4)  # theirs are float32
    theirs.sigmas = torch.tensor(want, dtype=torch.float64)
    x = NOISE * (want[0] ** 2 + 1) ** 0.5
    for t in theirs.timesteps:
        z = theirs.scale_model_input(x, t)
        x = theirs.step(output(z, int(t)), t, x).prev_sample
    # Their step goes through float32.
    torch.testing.assert_close(euler(guess(kind), NOISE, Course(BAR, steps)), x.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [2, 10, 28])
def test_dpmpp_2m_equals_diffusers(kind: str, steps: int) -> None:
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        **BETAS, prediction_type=kind, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    theirs.set_timesteps(steps)
    timesteps = even_timesteps(steps)
    theirs.timesteps = timesteps
    theirs.sigmas = torch.cat([sigmas_of(BAR)[timesteps], torch.zeros(1, dtype=torch.float64)])
    theirs.num_inference_steps = steps
    z = NOISE
    for i, t in enumerate(timesteps):
        if i + 1 == steps:
            x0 = guess(kind)(z, int(t))[1]  # the last step goes to x0 in the paper's first order
            break
        z = theirs.step(output(z, int(t)), t, z).prev_sample
    got = dpmpp_2m(guess(kind), NOISE, Course(BAR, steps))
    torch.testing.assert_close(got, x0.double(), rtol=1e-4, atol=1e-4)  # theirs is float32


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_point_of_data_is_found_exactly(name: str) -> None:
    """Where the data is a single picture the ideal guess is that picture, and every sampler must end there."""
    data = torch.randn(1, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def ideal(z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        bar = float(BAR[t])
        return (z - bar**0.5 * data) / (1 - bar) ** 0.5, data.expand_as(z)

    seen: list[int] = []
    got = SAMPLERS[name](ideal, NOISE, Course(BAR, 9, seen.append))
    assert seen == list(range(1, 10))
    torch.testing.assert_close(got, data.expand_as(NOISE), rtol=0, atol=0.15 if name == "DDIM" else 1e-9)


@pytest.mark.parametrize("name", ["Euler", "DDIM", "DPM++ 2M"])
def test_more_steps_converge_to_one_solution(name: str) -> None:
    ends = [SAMPLERS[name](guess("epsilon"), NOISE, Course(BAR, steps)) for steps in (20, 80, 250)]
    fine = SAMPLERS["Euler"](guess("epsilon"), NOISE, Course(BAR, 1000))
    errors = [float((end - fine).abs().mean() / fine.abs().mean()) for end in ends]
    assert errors[2] < errors[0] and errors[2] < 0.05


def test_eps_and_v_are_the_same_picture() -> None:
    x0, eps, bar = torch.randn(3).double(), torch.randn(3).double(), 0.3
    z = bar**0.5 * x0 + (1 - bar) ** 0.5 * eps
    v = bar**0.5 * eps - (1 - bar) ** 0.5 * x0
    for kind, out in (("epsilon", eps), ("v_prediction", v)):
        got = split(out, z, bar, kind)
        torch.testing.assert_close(got[0], eps)
        torch.testing.assert_close(got[1], x0)


def ask(**changes: Any) -> SampleRequest:
    return SampleRequest(**{"prompts": ["a cat"], "steps": 2, "width": 128, "height": 128, "seed": 3, **changes})


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_is_the_same_in_any_batch_and_leaves_torchs_generator_alone(
    tiny_model: DiffusersModel, name: str
) -> None:
    before = torch.get_rng_state()
    alone = [np.asarray(sample(tiny_model, ask(seed=3 + i, sampler=name))[0], dtype=int) for i in range(2)]
    steps: list[tuple[int, int]] = []
    both = sample(tiny_model, ask(batch=2, sampler=name), on_step=lambda i, n: steps.append((i, n)))
    assert steps == [(1, 2), (2, 2)]
    for one, other in zip(alone, both):
        assert other.size == (128, 128)
        assert np.abs(one - np.asarray(other, dtype=int)).max() <= 1  # sums in another order
    assert np.abs(alone[0] - alone[1]).max() > 5
    assert torch.equal(before, torch.get_rng_state())


def test_prompts_of_a_batch_negative_and_guidance_matter(tiny_model: DiffusersModel) -> None:
    cat, dog = sample(tiny_model, ask(prompts=["a cat", "a dog"], batch=2, seed=3))
    cats = sample(tiny_model, ask(batch=2))
    assert np.abs(np.asarray(cat, dtype=int) - np.asarray(cats[0], dtype=int)).max() <= 1
    assert np.abs(np.asarray(dog, dtype=int) - np.asarray(cats[1], dtype=int)).max() > 1
    assert not np.array_equal(np.asarray(cat), np.asarray(sample(tiny_model, ask(negative="red"))[0]))
    unguided = np.asarray(sample(tiny_model, ask(cfg=1))[0])
    assert np.array_equal(unguided, np.asarray(sample(tiny_model, ask(cfg=1, negative="red"))[0]))


def test_cancel(tiny_model: DiffusersModel) -> None:
    with pytest.raises(Cancelled, match="step 1 of 2"):
        sample(tiny_model, ask(), cancelled=lambda: True)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 100},
        {"height": 0},
        {"steps": 0},
        {"batch": 0},
        {"sampler": "none"},
        {"prompts": ["a", "b"]},
        {"prompts": []},
        {"seed": -1},
    ],
)
def test_bad_requests(changes: dict[str, Any]) -> None:
    with pytest.raises(BadConfig):
        ask(**changes)


def test_noise_and_pixels() -> None:
    rows = seeded_noise(5, 3, (4, 2, 2))
    assert torch.equal(rows[2], seeded_noise(7, 1, (4, 2, 2))[0])
    (image,) = to_images(torch.tensor([-2.0, float("nan"), 1.5]).reshape(1, 3, 1, 1))
    assert image.getpixel((0, 0)) == (0, 0, 255)


def test_other_schedules_equal_diffusers() -> None:
    from diffusers import DDIMScheduler

    plain = DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    torch.testing.assert_close(linear(), plain.alphas_cumprod.double(), rtol=1e-4, atol=1e-9)
    theirs = DDIMScheduler(**BETAS, rescale_betas_zero_snr=True)
    got = zero_terminal(BAR)
    torch.testing.assert_close(got[:-1], theirs.alphas_cumprod[:-1].double(), rtol=1e-3, atol=1e-7)
    assert 0 < float(got[-1]) < 1e-7 and ends_in_noise(got) and not ends_in_noise(BAR)
    torch.testing.assert_close(got[0], BAR[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 4, 7, 20, 1000])
def test_trailing_timesteps_equal_diffusers(steps: int) -> None:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    for kind in (DDIMScheduler, EulerDiscreteScheduler):
        theirs = kind(**BETAS, timestep_spacing="trailing")
        theirs.set_timesteps(steps)
        assert trailing_timesteps(steps).tolist() == [int(t) for t in theirs.timesteps]


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_a_schedule_that_ends_in_noise_is_drawn_as_diffusers_draws_it(steps: int) -> None:
    from diffusers import DDIMScheduler

    bars = zero_terminal(BAR)
    theirs = DDIMScheduler(
        **BETAS,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )
    theirs.alphas_cumprod, theirs.final_alpha_cumprod = bars, bars[0]
    theirs.set_timesteps(steps)
    want = NOISE
    for t in theirs.timesteps.tolist():
        want = theirs.step(output(want, t), t, want).prev_sample
    course = Course(bars, steps, trailing=True)
    ours = lambda z, t: split(output(z, t), z, float(bars[t]), "v_prediction")  # noqa: E731
    torch.testing.assert_close(ddim(ours, NOISE, course), want, rtol=1e-9, atol=1e-9)
    for sampler in (euler, dpmpp_2m):
        got = sampler(ours, NOISE.float(), course)
        assert got.isfinite().all()
        # The first sigma is 4519, and float32 subtracts two numbers of its size.
        bound = 4 * float(sigmas_of(bars)[-1]) * torch.finfo(torch.float32).eps
        torch.testing.assert_close(got.double(), sampler(ours, NOISE, course), rtol=0, atol=bound)


def test_a_model_whose_schedule_ends_in_noise_begins_there(
    tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    predict = tiny_model.predict
    monkeypatch.setattr(tiny_model, "predict", lambda z, t, text: seen.append(int(t[0])) or predict(z, t, text))
    monkeypatch.setattr(tiny_model, "prediction_type", "v_prediction")
    request: Any = {"prompts": ["x"], "steps": 4, "width": 128, "height": 64, "sampler": "DDIM", "cfg": 1}
    sample(tiny_model, SampleRequest(**request))
    assert seen == [751, 501, 251, 1]
    seen.clear()
    sample(tiny_model, SampleRequest(**request, trailing=True))
    assert seen == [999, 749, 499, 249]
    seen.clear()
    monkeypatch.setattr(tiny_model, "bars", zero_terminal(BAR))
    (picture,) = sample(tiny_model, SampleRequest(**request))
    assert seen == [999, 749, 499, 249] and picture.size == (128, 64)


def test_prompts_are_read_as_asked(tiny_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    predict = tiny_model.predict
    monkeypatch.setattr(
        tiny_model, "predict", lambda z, t, text: shapes.append(tuple(text.states.shape)) or predict(z, t, text)
    )
    asked: Any = {"prompts": ["a (cat:1.4)"], "steps": 1, "width": 64, "height": 64}
    sample(tiny_model, SampleRequest(**asked, options=TextOptions(windows=2, weights=True)))
    assert shapes == [(2, 154, 32)]
