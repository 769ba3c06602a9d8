"""Text to pictures with any DiffusionModel: small, seeded per image, and without touching torch's global generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib_lora.errors import BadConfig, Cancelled
from lib_lora.keys import versions
from lib_lora.models.samplers import SAMPLERS, Course, Guess
from lib_lora.models.schedule import ends_in_noise
from lib_lora.ports import PLAIN_TEXT, Conditioning, DiffusionModel, TextOptions

if TYPE_CHECKING:
    from PIL.Image import Image

FACTOR = 8  # pixels per latent


@dataclass(frozen=True)
class SampleRequest:
    """What to draw. `prompts`: one for all images, or one per image; image i is drawn from `seed + i`.

    `trailing` begins at the noisiest timestep and ends above the least noisy one, as models distilled to few steps want
    it; one whose schedule ends in noise alone is always drawn so. `options` say how prompts are read.

    Raises BadConfig if a value cannot be used.
    """

    prompts: Sequence[str]
    negative: str = ""
    seed: int = 0
    steps: int = 20
    cfg: float = 7.0
    width: int = 512
    height: int = 512
    batch: int = 1
    sampler: str = "DPM++ 2M"
    options: TextOptions = PLAIN_TEXT
    trailing: bool = False

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if value <= 0 or value % FACTOR:
                raise BadConfig(f"{name} {value} is not a multiple of {FACTOR}; use {max(value // 8, 1) * 8} or so")
        for name, value, top in (("steps", self.steps, 1000), ("batch", self.batch, 1024)):
            if not 1 <= value <= top:
                raise BadConfig(f"{name} {value} is out of range; use 1 to {top}")
        if not math.isfinite(self.cfg):
            raise BadConfig(f"cfg {self.cfg} is not a usable number; use for example 7")
        if not 0 <= self.seed < 2**63 - self.batch:
            raise BadConfig(f"seed {self.seed} is out of range; use 0 to 9223372036854774783")
        if len(self.prompts) not in (1, self.batch):
            raise BadConfig(f"{len(self.prompts)} prompts for {self.batch} images; give one, or one for each image")
        if self.sampler not in SAMPLERS:
            raise BadConfig(f"unknown sampler {self.sampler!r}; choose one of: {', '.join(SAMPLERS)}")


def sample(
    model: DiffusionModel,
    request: SampleRequest,
    on_step: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Image]:
    """The pictures, in order. `on_step(done, steps)` follows every step; raises Cancelled when `cancelled()` is true.

    Noise comes from a generator of its own for each image, so image i does not depend on the batch it is drawn in.
    """

    def step(i: int) -> None:
        if on_step is not None:
            on_step(i, request.steps)
        if cancelled is not None and cancelled():
            raise Cancelled(f"stopped after step {i} of {request.steps}; start again when you like")

    with torch.no_grad():
        return to_images(model.decode_latents(sample_latents(model, request, step)))


def sample_latents(model: DiffusionModel, request: SampleRequest, on_step: Callable[[int], None]) -> Tensor:
    """Scaled latents (batch, 4, height/8, width/8) without gradients; `on_step(i)` follows the i-th step."""
    parameter = next(model.roots()["unet"].parameters())
    shape = (4, request.height // FACTOR, request.width // FACTOR)
    noise = seeded_noise(request.seed, request.batch, shape).to(parameter.device)
    bars = model.alphas_cumprod()
    course = Course(bars, request.steps, on_step, request.trailing or ends_in_noise(bars))
    with torch.no_grad():
        guess = _guess(model, request, parameter.dtype)
        return SAMPLERS[request.sampler](guess, noise, course)


def seeded_noise(seed: int, batch: int, shape: tuple[int, ...]) -> Tensor:
    """(batch, *shape) float32 on the CPU; row i is what a generator seeded with seed + i draws first."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)]
    return torch.stack(rows)


def _guess(model: DiffusionModel, request: SampleRequest, dtype: torch.dtype) -> Guess:
    """The guided guess: classifier-free guidance (Ho & Salimans 2022) on eps or v, both halves in one batch."""
    rows = list(request.prompts) * (request.batch if len(request.prompts) == 1 else 1)
    guided = request.cfg != 1
    # Each text once through the encoder, however many images share it.
    texts = list(dict.fromkeys([request.negative, *rows] if guided else rows))
    states = model.encode_text(texts, request.options)
    negatives = [request.negative] * request.batch if guided else []
    places = torch.tensor([texts.index(prompt) for prompt in negatives + rows])
    text: Conditioning = states.map(lambda t: t[places.to(t.device)].to(dtype))  # (2 batch, tokens, width)
    if guided and not request.negative and model.version == versions.SDXL:
        text = text.map(lambda t: _silenced(t, request.batch))
    bars = model.alphas_cumprod().double()

    def guess(z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        both = torch.cat([z, z]) if guided else z
        times = torch.full((len(both),), t, device=z.device, dtype=torch.long)
        output = model.predict(both.to(dtype), times, text).to(z.dtype)
        if guided:
            without, with_prompt = output.chunk(2)
            output = without + request.cfg * (with_prompt - without)
        return split(output, z, float(bars[t]), model.prediction_type)

    return guess


def _silenced(tensor: Tensor, rows: int) -> Tensor:
    """The first rows zero: SDXL was taught to draw without a prompt by zeros, not by the states of an empty one."""
    return torch.cat([torch.zeros_like(tensor[:rows]), tensor[rows:]])


def split(output: Tensor, z: Tensor, bar: float, prediction_type: str) -> tuple[Tensor, Tensor]:
    """(eps, x0) from the UNet's output at alpha_bar; v = alpha eps - sigma x0 (Salimans & Ho 2022, app. D)."""
    alpha, sigma = bar**0.5, (1 - bar) ** 0.5
    if prediction_type == "v_prediction":
        return alpha * output + sigma * z, alpha * z - sigma * output
    return output, (z - sigma * output) / alpha


def to_images(pixels: Tensor) -> list[Image]:
    """PIL pictures of pixels (batch, 3, H, W) in [-1, 1]; what lies outside is cut, NaN becomes black."""
    from PIL import Image

    scaled = ((pixels.float().nan_to_num(-1.0) + 1) * 127.5).round().clamp(0, 255)
    return [Image.fromarray(row) for row in scaled.byte().permute(0, 2, 3, 1).cpu().numpy()]
