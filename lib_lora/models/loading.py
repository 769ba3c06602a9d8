"""How a base model is to be loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from lib_lora.keys.checkpoint import VAE
from lib_lora.models.diffusers_model import vae_dtype

_OWN = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Loading:
    """`dtype` None is the UNet's in the file, half where that is of 8 bits. `use_ema` takes its averaged weights."""

    dtype: torch.dtype | None
    device: torch.device
    use_ema: bool = False

    def settled(self, stored: Iterable[str]) -> Loading:
        """The same with a number format, the most frequent of these file dtype names if it had none."""
        if self.dtype is not None:
            return self
        (name, _), *_ = Counter(stored).most_common(1)
        return replace(self, dtype=_OWN.get(name, torch.float16))

    def dtype_of(self, part: str, version: str) -> torch.dtype:
        """The number format of a part, once it is settled."""
        assert self.dtype is not None
        return vae_dtype(version, self.dtype) if part == VAE else self.dtype
