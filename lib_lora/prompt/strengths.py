"""Strengths resolved for one moment of sampling: a number for every layer."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora.keys.layer_key import UNET, LayerKey


@dataclass(frozen=True)
class Moment:
    """Where sampling stands: `step` of `steps`, counted from 0, in the first or in the hires pass."""

    step: int = 0
    steps: int = 1
    hires: bool = False


@dataclass(frozen=True)
class Strengths:
    """What multiplies each layer's delta; part of the key of what is applied, so it compares by value."""

    te: float = 1.0
    unet: float = 1.0

    def of(self, key: LayerKey) -> float:
        """The strength for one layer."""
        return self.unet if key.part == UNET else self.te
