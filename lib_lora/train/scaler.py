"""Loss scaling: what a float16 base would round to zero on the way back is lifted into its range.

The scale moves as torch's GradScaler moves it. That class is not used: it knows no CPU before torch 2.3, and asks the
device after every step, while the engine already waits once a step for the norm that answers the same question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lib_lora.errors import TrainingFailed

GROWTH = 2.0  # powers of two, so that scaling and unscaling change no digit


class Scaler:
    """A loss scale that halves on every gradient that is not finite and doubles after `interval` good ones in a row.

    `patience` is how many bad gradients in a row are put up with.
    """

    def __init__(self, scale: float = 65536.0, interval: int = 2000, patience: int = 20) -> None:
        self.scale, self.interval, self.patience = scale, interval, patience
        self._good = self._bad = 0  # in a row

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to go backward from."""
        return loss * self.scale

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide gradients by the scale, once a step, before they are clipped."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1.0 / self.scale)

    def accepts(self, finite: bool) -> bool:
        """Whether to take the optimizer's step, given that all gradients are `finite`; moves the scale.

        Raises TrainingFailed at the first bad gradient beyond `patience` in a row.
        """
        if finite:
            self._good, self._bad = self._good + 1, 0
            if self._good == self.interval:
                self.scale, self._good = self.scale * GROWTH, 0
            return True
        self._good, self._bad = 0, self._bad + 1
        if self._bad > self.patience:
            raise TrainingFailed(
                f"gradients are not finite {self._bad} times in a row, down to a loss scale of {self.scale:g}; "
                "set base.dtype = bf16 or fp32, or lower optimizer.lr"
            )
        self.scale /= GROWTH
        return False

    def state(self) -> dict[str, float]:
        """Everything resuming needs, as plain numbers."""
        return {"scale": self.scale, "good": self._good, "bad": self._bad}

    def load(self, state: Mapping[str, float]) -> None:
        """Go on from a state."""
        self.scale, self._good, self._bad = float(state["scale"]), int(state["good"]), int(state["bad"])


def make_scaler(dtype: torch.dtype, wanted: bool) -> Scaler | None:
    """The scaler for a base of this number format: only float16 needs one. `wanted` is training.loss_scaling."""
    return Scaler() if wanted and dtype == torch.float16 else None
