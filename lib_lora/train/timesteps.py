"""Which timestep a visit is noised to: the range and the density that a job asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from lib_lora.errors import BadConfig
from lib_lora.train.sections_data import Training


def timestep_range(training: Training, count: int) -> tuple[int, int]:
    """Least and largest timestep, both drawn, of a schedule of `count`. Raises BadConfig if none is between them."""
    low, high = training.timestep_low, min(training.timestep_high, count - 1)
    if low > high:
        raise BadConfig(
            f"training.timestep_low = {low} is above training.timestep_high = {high}; "
            f"give two timesteps from 0 to {count - 1}, the lower one first"
        )
    return low, high


def draw_timestep(low: int, high: int, sampling: str, source: torch.Generator) -> int:
    """A timestep from `low` to `high`, both included, with the density `sampling` over where it lies between them.

    With u in [0, 1) the place in the range, cut into high - low + 1 equal bins, the densities are
    uniform: 1; early: 2 (1 - u), low noise and fine detail; late: 2 u, strong noise and composition;
    logit_normal: that of the logistic function of a standard normal (Esser et al. 2024, arXiv:2403.03206), the middle.
    """
    count = high - low + 1
    if sampling == "uniform":
        return low + int(torch.randint(0, count, (1,), generator=source))
    place = PLACES[sampling](source)
    return low + min(count - 1, int(place * count))  # the place may round to 1


def _logit_normal(source: torch.Generator) -> float:
    return float(torch.randn(1, dtype=torch.float64, generator=source).sigmoid())


def _late(source: torch.Generator) -> float:
    return float(torch.rand(1, dtype=torch.float64, generator=source).sqrt())  # P(place < u) = u^2


def _early(source: torch.Generator) -> float:
    return 1.0 - _late(source)


PLACES: Mapping[str, Callable[[torch.Generator], float]] = {
    "logit_normal": _logit_normal,
    "early": _early,
    "late": _late,
}
