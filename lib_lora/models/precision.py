"""What number format a live module computes in: that of its weights, or the one autocast gives it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

WIDE = (torch.float32, torch.float64)


def device_of(module: nn.Module) -> torch.device:
    """Where the module's first parameter is."""
    return next(module.parameters()).device


def stored_dtype(module: nn.Module) -> torch.dtype:
    """The weights' number format; with 8-bit storage that of the weights left out of it (norms), else half."""
    found = [p.dtype for p in module.parameters() if p.dtype.itemsize > 1]
    return found[0] if found else torch.float16


def compute_dtype(module: nn.Module) -> torch.dtype:
    """What its matrix products are in under `precision`. On a CPU halves are computed in bf16, which it is fast in."""
    stored, device = next(module.parameters()).dtype, device_of(module)
    if stored in WIDE:
        return stored
    return torch.bfloat16 if stored == torch.bfloat16 or device.type == "cpu" else torch.float16


def precision(module: nn.Module) -> AbstractContextManager[Any]:
    """Autocast where weights are half or 8-bit: norms in float32, adapters in float32 beside them."""
    dtype = compute_dtype(module)
    return nullcontext() if dtype in WIDE else torch.autocast(device_of(module).type, dtype=dtype)
