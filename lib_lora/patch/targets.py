"""The parameters of a model that a network changes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Target:
    """One parameter of one module, or `rows` of it (the q, k or v of a fused attention projection)."""

    module: nn.Module
    name: str = "weight"
    rows: slice | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now; the module's own object."""
        return getattr(self.module, self.name)

    @property
    def tensor(self) -> Tensor:
        """The part of it that is meant: a view without gradient history, writes go to the parameter."""
        data = self.parameter.data
        return data if self.rows is None else data[self.rows]


def writing(parameter: nn.Parameter) -> AbstractContextManager[object]:
    """In here `parameter` may be written: one that was made in inference mode nowhere but in that mode."""
    return torch.inference_mode() if parameter.is_inference() else nullcontext()


def weight_of(module: nn.Module) -> Target | None:
    """The weight of anything that looks like a Linear (2-D) or Conv2d (4-D); None for every other module.

    By shape, not by class: the webui and Forge have their own Linear and Conv2d. A norm's weight is 1-D, and no
    network type that changes it exists yet.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        return None
    linear = weight.dim() == 2 and hasattr(module, "in_features")
    conv = weight.dim() == 4 and hasattr(module, "kernel_size")
    return Target(module) if linear or conv else None
