"""Which pictures each step sees: exact in steps and epochs, shuffled by key, no remainder dropped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from lib_lora.train import keyed
from lib_lora.train.config import Training
from lib_lora.train.latents import Visit


class Plan:
    """The run as one stream of visits: epoch after epoch, each in its own order, cut into steps.

    With `training.steps` every step is full and the stream runs over the ends of epochs. With `training.epochs` the
    stream ends after the last epoch and the last step holds what is left.
    """

    def __init__(self, visits: Sequence[int], training: Training) -> None:
        self._visits = tuple(visits)
        self._seed = training.seed
        self.per_step = training.batch_size * training.accumulation
        if training.epochs is None:
            self.steps = training.steps
            self._total = self.steps * self.per_step
        else:
            self._total = training.epochs * len(self._visits)
            self.steps = -(-self._total // self.per_step)
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def visits(self, step: int) -> list[Visit]:
        """The visits of `step`, counted from 0."""
        start = step * self.per_step
        stop = min(start + self.per_step, self._total)
        return [Visit(self._at(place), step, place - start) for place in range(start, stop)]

    def epoch(self, step: int) -> int:
        """How many epochs are complete after `step` steps."""
        return min(step * self.per_step, self._total) // len(self._visits)

    def _at(self, place: int) -> int:
        epoch, within = divmod(place, len(self._visits))
        return self._visits[self._order(epoch)[within]]

    def _shuffle(self, epoch: int) -> list[int]:
        return keyed.order(self._seed, epoch, len(self._visits))
