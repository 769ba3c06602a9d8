"""Strengths resolved for one moment of sampling: a number for every layer."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora.keys.layer_key import UNET, LayerKey
from lib_lora.prompt.blocks import IDS, MIDDLE, block_of
from lib_lora.prompt.elements import Rule, ratio_of
from lib_lora.prompt.schedule import Moment

__all__ = ["Moment", "Strengths"]
_INDEX = {block: i for i, block in enumerate(IDS)}


@dataclass(frozen=True)
class Strengths:
    """What multiplies each layer's delta; part of the key of what is applied, so it compares by value.

    `groups` replaces `unet` for the blocks going in, in the middle and going out. `ratios`, one for each of
    `blocks.IDS`, and the `rules` for elements, which replace a ratio, multiply all that.
    """

    te: float = 1.0
    unet: float = 1.0
    groups: tuple[float, float, float] | None = None
    ratios: tuple[float, ...] | None = None
    rules: tuple[Rule, ...] = ()

    def of(self, key: LayerKey) -> float:
        """The strength for one layer. UNet layers outside the blocks have ratio 1, whatever `ratios` say."""
        strength = self.unet if key.part == UNET else self.te
        if self.groups is None and self.ratios is None and not self.rules:
            return strength
        block = block_of(key)
        if self.groups is not None and block is not None and key.part == UNET:
            strength = self.groups[1 if block == MIDDLE else 0 if block.startswith("IN") else 2]
        ratio = self.ratios[_INDEX[block]] if self.ratios is not None and block is not None else 1.0
        return strength * (ratio_of(key, self.rules, ratio) if self.rules else ratio)
