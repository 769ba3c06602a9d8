"""A moving average of what is trained, which is saved and sampled in place of the last state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from lib_lora.errors import BadConfig


class Ema:
    """average <- d average + (1 - d) parameter, after each step; it begins as the parameters are at first.

    d is the decay, or with warmup min(decay, (1 + step) / (10 + step)), step counting from 1 (the form of TensorFlow's
    ExponentialMovingAverage, which diffusers has too). Averages are float32 or wider, on their parameters' devices.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float, warmup: bool = True) -> None:
        self._parameters = dict(parameters)
        self.decay, self.warmup = decay, warmup
        self._averages = {name: _wide(p.detach()).clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after optimizer step number `step`, counted from 1."""
        share = 1.0 - (min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay)
        averages = list(self._averages.values())
        torch._foreach_lerp_(averages, [_wide(p.detach()) for p in self._parameters.values()], share)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """While open, the parameters have the averages' values; afterwards their own again, bit for bit.

        They change places: no copy is made of a model that fills the memory, but where parameters are narrower.
        """
        own = {name: p.data for name, p in self._parameters.items()}
        try:
            for name, parameter in self._parameters.items():
                parameter.data = self._averages[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = own[name]

    def state(self) -> dict[str, Tensor]:
        """The averages by name: all that resuming needs. Not copies."""
        return dict(self._averages)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the averages from a state. Raises BadConfig if it is of other parameters."""
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if shapes != {name: tuple(average.shape) for name, average in self._averages.items()}:
            raise BadConfig(
                f"the state's {len(shapes)} averages are not of the job's {len(self._averages)} parameters; "
                "resume with the settings the run began with"
            )
        for name, average in self._averages.items():
            average.copy_(state[name])


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
