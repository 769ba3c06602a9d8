"""Learning rate over a run, as pure functions of the step: resuming needs nothing of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from lib_lora.train.sections import OptimizerSection


def rate_factor(section: OptimizerSection, step: int, steps: int) -> float:
    """The factor on the base rate at `step`, counted from 0, of a run of `steps`.

    Warmup rises to 1 in equal parts over `warmup_steps`, beginning above 0 so that no step is wasted. The schedule
    spans what is left: its progress is 0 at the first step after warmup and would be 1 just after the last. Falling
    ones end at `end_factor`: factor = end + (1 - end) * fall(progress).
    """
    if step < section.warmup_steps:
        return (step + 1) / (section.warmup_steps + 1)
    if section.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - section.warmup_steps) / max(1, steps - section.warmup_steps))
    return section.end_factor + (1.0 - section.end_factor) * FALLS[section.schedule](progress, section)


def _linear(progress: float, section: OptimizerSection) -> float:
    return 1.0 - progress


def _cosine(progress: float, section: OptimizerSection) -> float:
    """(1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _cosine_restarts(progress: float, section: OptimizerSection) -> float:
    """The same `cycles` times over, each beginning at 1."""
    return 0.0 if progress >= 1.0 else _cosine(progress * section.cycles % 1.0, section)


def _polynomial(progress: float, section: OptimizerSection) -> float:
    return (1.0 - progress) ** section.power


def _rex(progress: float, section: OptimizerSection) -> float:
    """(1 - p) / (1/2 + (1 - p) / 2) (Chen et al. 2021, arXiv:2107.04197); OneTrainer's has 1/10 and 9/10 there."""
    return 2.0 * (1.0 - progress) / (2.0 - progress)


FALLS: Mapping[str, Callable[[float, OptimizerSection], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_restarts": _cosine_restarts,
    "polynomial": _polynomial,
    "rex": _rex,
}
