"""What a model learns: noise drawn for each visit, the target, and the weighted loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora.errors import BadConfig
from lib_lora.train import keyed
from lib_lora.train.losses import ROUNDED, distance, huber_deltas, picture_means
from lib_lora.train.noise import make_noise
from lib_lora.train.sections_data import Training
from lib_lora.train.timesteps import draw_timestep, timestep_range
from lib_lora.train.weighting import EPSILON, V, timestep_weights


@dataclass(frozen=True)
class Draw:
    """What chance adds to a batch, on the CPU.

    `noise` (batch, C, h, w) float32 is what the target is made of, `input_noise` what the noisy latents are made of:
    the same but for input perturbation. `timesteps` (batch,) int64.
    """

    noise: Tensor
    timesteps: Tensor
    input_noise: Tensor


class Objective:
    """Noise, target and loss of a noise schedule, after a job's settings.

    With alpha_bar = a: x_t = sqrt(a) x + sqrt(1 - a) eps (Ho et al. 2020, arXiv:2006.11239) and
    v = sqrt(a) eps - sqrt(1 - a) x (Salimans and Ho 2022, arXiv:2202.00512). Tables are float64, on the CPU.
    Raises BadConfig for settings that do not fit the prediction.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction: str, training: Training) -> None:
        if prediction not in (EPSILON, V):
            raise BadConfig(f"base.prediction = {prediction!r} is not accepted; give {EPSILON} or {V}")
        _refuse_misfits(prediction, training)
        bars = alphas_cumprod.detach().double().cpu()
        self.alphas_cumprod = zero_terminal(bars) if training.zero_terminal_snr else bars  # (timesteps,)
        self.prediction, self.training = prediction, training
        self._range = timestep_range(training, len(bars))
        self._signal, self._noise = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()
        self._weights = timestep_weights(self.alphas_cumprod, prediction, training)
        self._deltas = huber_deltas(self.alphas_cumprod, training)

    def draw(self, seed: int, places: Sequence[tuple[int, int]], latents: Tensor) -> Draw:
        """Noise and timesteps for the (step, slot) places of a run, each keyed by seed and place alone.

        `latents` (batch, C, h, w) give the shape and, for adaptive offset noise, the channels' means.
        """
        training = self.training
        noise = torch.stack([make_noise(seed, place, latent, training) for place, latent in zip(places, latents)])
        times = [
            draw_timestep(*self._range, training.timestep_sampling, keyed.generator(seed, "timestep", *place))
            for place in places
        ]
        inputs = noise
        if training.input_perturbation:  # Ning et al. 2023, arXiv:2301.11706
            further = [
                torch.randn(noise.shape[1:], generator=keyed.generator(seed, "perturbation", *place))
                for place in places
            ]
            inputs = noise + training.input_perturbation * torch.stack(further)
        return Draw(noise, torch.tensor(times, dtype=torch.int64), inputs)

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t (batch, C, h, w), in the latents' dtype; `noise` is the draw's `input_noise`."""
        return self._at(self._signal, timesteps, latents) * latents + self._at(self._noise, timesteps, latents) * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """eps or v (batch, C, h, w), in the latents' dtype; `noise` is the draw's `noise`."""
        if self.prediction == EPSILON:
            return noise
        return self._at(self._signal, timesteps, latents) * noise - self._at(self._noise, timesteps, latents) * latents

    def weights(self, timesteps: Tensor) -> Tensor:
        """(batch,) float64 weights on the CPU."""
        return self._weights[timesteps.cpu()]

    def losses(self, output: Tensor, target: Tensor, timesteps: Tensor, masks: Tensor | None = None) -> Tensor:
        """(batch,) weighted losses, float32 or wider: each sample's own, whatever else is in the batch.

        `masks` (batch, 1, H, W), from 0 to 1, say where the loss looks; see `losses.picture_means`.
        """
        wide = torch.promote_types(output.dtype, torch.float32)
        errors = output.to(wide) - target.to(wide)
        kind = self.training.loss
        deltas = self._at(self._deltas, timesteps, errors) if kind in ROUNDED else 1.0
        values = distance(errors, kind, deltas)
        return picture_means(values, masks) * self.weights(timesteps).to(errors)

    @staticmethod
    def _at(table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
        return table[timesteps.cpu()].to(like).view(-1, *[1] * (like.dim() - 1))


def zero_terminal(bars: Tensor) -> Tensor:
    """A noise schedule rescaled to end in pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1), float64.

    s = sqrt(alpha_bar) becomes (s - s_T) s_0 / (s_0 - s_T): the last is 0, the first stays.
    """
    roots = bars.double().sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()


def _refuse_misfits(prediction: str, training: Training) -> None:
    if prediction == EPSILON and training.zero_terminal_snr:
        raise BadConfig(
            "training.zero_terminal_snr = true does not go with a model that predicts eps: at zero SNR its input is "
            "the noise itself, so it learns nothing there; leave it off, or train a v-prediction model"
        )
    if prediction == EPSILON and training.scale_v_pred:
        raise BadConfig(
            "training.scale_v_pred = true is for v-prediction, and this model predicts eps; leave it off "
            "(or set base.prediction = v_prediction if the model is told wrongly)"
        )
    if prediction == V and training.v_pred_like:
        raise BadConfig(
            f"training.v_pred_like = {training.v_pred_like:g} is for models that predict eps, and this one predicts v; "
            "set it to 0"
        )
