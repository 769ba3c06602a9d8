"""The optimizers and learning-rate schedules a job can name."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lib_lora.errors import BadConfig
from lib_lora.keys.layer_key import UNET
from lib_lora.train.attach import Layers
from lib_lora.train.config import OptimizerSection

Groups = list[dict[str, Any]]


def parameter_groups(layers: Layers, section: OptimizerSection) -> Groups:
    """One group per part with its own rate, layers sorted; `base_lr` is the rate before the schedule."""
    groups: Groups = []
    for unet, rate in ((True, section.lr), (False, section.te_lr)):
        chosen = [p for key in sorted(layers) if (key.part == UNET) == unet for p in layers[key].parameters()]
        if chosen:
            groups.append({"params": chosen, "lr": rate, "base_lr": rate})
    return groups


def make_optimizer(section: OptimizerSection, groups: Groups) -> torch.optim.Optimizer:
    """The optimizer a job names, over these groups. Raises BadConfig if what it needs is not installed."""
    options = {"betas": (section.beta1, section.beta2), "weight_decay": section.weight_decay}
    return OPTIMIZERS[section.name](groups, options)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to its base rate times `factor`; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def rate_factor(section: OptimizerSection, step: int, steps: int) -> float:
    """The factor on the base rate at `step`, counted from 0, of a run of `steps`.

    A pure function, so resuming is exact. Warmup rises to 1 in equal parts over `warmup_steps`, beginning above 0
    so that no step is wasted.
    """
    if step < section.warmup_steps:
        return (step + 1) / (section.warmup_steps + 1)
    rest = max(1, steps - section.warmup_steps)
    return SCHEDULES[section.schedule]((step - section.warmup_steps) / rest)


def _adamw(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    on_gpu = any(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, fused=True if on_gpu else None, foreach=None if on_gpu else True, **options)


def _adamw8bit(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    try:
        bitsandbytes = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise BadConfig(
            f"optimizer.name = 'adamw8bit' needs bitsandbytes, which cannot be imported ({error}); "
            "install it (pip install bitsandbytes) or use optimizer.name = 'adamw'"
        ) from error
    return bitsandbytes.optim.AdamW8bit(groups, **options)


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


OPTIMIZERS: Mapping[str, Callable[[Groups, Mapping[str, Any]], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
}
SCHEDULES: Mapping[str, Callable[[float], float]] = {"constant": _constant, "cosine": _cosine}
