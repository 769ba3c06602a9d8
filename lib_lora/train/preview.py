"""The model as a job reads it, for sample pictures: what it predicts and its schedule may be the job's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lib_lora.models.schedule import zero_terminal
from lib_lora.ports import DiffusionModel


class AsTrained:
    """Everything of `model`, but for what the job says otherwise."""

    def __init__(self, model: DiffusionModel, prediction: str, *, ends_in_noise: bool) -> None:
        self._model = model
        self._ends_in_noise = ends_in_noise
        self.prediction_type = prediction

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def alphas_cumprod(self) -> Tensor:
        """The schedule that was trained on, (1000,)."""
        bars = self._model.alphas_cumprod()
        return zero_terminal(bars) if self._ends_in_noise else bars
