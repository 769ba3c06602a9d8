"""Whether what was written into a narrow dtype still is finite, told by one number for each parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from lib_lora.patch.targets import EIGHT_BIT

CHUNK = 1 << 18


def peak(data: Tensor) -> Tensor:
    """A number that is finite if all of `data` is; for 8 bits, if none of it stands at the dtype's end.

    Some versions of torch cut off what is too large for 8 bits, others make it NaN.
    """
    if data.dtype in EIGHT_BIT:
        largest = data.half().abs().max().float()
        return largest / (largest < torch.finfo(data.dtype).max)
    if data.device.type != "cpu" or not data.is_contiguous():
        return data.sum(dtype=torch.float32)
    # torch's own sum of half numbers takes a CPU several times as long.
    if data.numel() <= CHUNK:
        return data.float().sum()
    buffer = torch.empty(CHUNK)
    return torch.stack([buffer[: c.numel()].copy_(c).sum() for c in data.view(-1).split(CHUNK)]).sum()


def reason(dtype: torch.dtype) -> str:
    """What to tell about a parameter that does not stay finite."""
    name = str(dtype).removeprefix("torch.")
    return f"the result is too large for {name}; lower the strength, or run the model in float32 (--no-half)"
