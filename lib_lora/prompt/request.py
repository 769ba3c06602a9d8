"""What one tag asks for: a network, and the strength of each of its layers at each moment."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from lib_lora.errors import WrongBaseModel
from lib_lora.prompt.blocks import BlockWeights
from lib_lora.prompt.elements import Rule
from lib_lora.prompt.schedule import Moment, Schedule, Strength, strength_at
from lib_lora.prompt.strengths import Strengths

Groups = tuple[Strength | None, Strength | None, Strength | None]


@dataclass(frozen=True)
class NetworkRequest:
    """One tag.

    `te` and `unet` are the strengths of text encoders and UNet, `hr_te` and `hr_unet` those of the hires pass where it
    has its own, `groups` the UNet's for the blocks going in, in the middle and going out where they have their own.
    `dyn` is the ranks to use of a DyLoRA. `blocks` and `elements` scale layers on top. In the UNet the network acts
    from step `start` to before `stop`, counted from 0 in each pass.
    """

    name: str
    te: Strength = 1.0
    unet: Strength = 1.0
    dyn: int | None = None
    hr_te: Strength | None = None
    hr_unet: Strength | None = None
    groups: Groups = (None, None, None)
    blocks: BlockWeights | None = None
    elements: tuple[Rule, ...] = ()
    start: int = 0
    stop: int | None = None

    @property
    def scheduled(self) -> bool:
        """Whether the strengths differ between moments of one picture.

        A text encoder's schedule alone does not count: it runs once for a pass, at the strength of the first step.
        """
        hires = (self.hr_te is not None and self.hr_te != self.te) or (
            self.hr_unet is not None and (self.hr_unet != self.unet or self.groups != (None, None, None))
        )
        over_time = (self.unet, self.hr_unet, *self.groups)
        varies = any(isinstance(strength, Schedule) and strength.varies for strength in over_time)
        return hires or varies or self.start > 0 or self.stop is not None

    def strengths(self, moment: Moment = Moment(), seed: int = 0) -> Strengths:  # noqa: B008 - frozen
        """What the tag means at one moment.

        `seed`: the picture's (a batch's first); random block weights are the same for the same seed and name.
        Raises WrongBaseModel for block weights of Flux, which no model here has.
        """
        te = self.hr_te if moment.hires and self.hr_te is not None else self.te
        unet, groups = self.unet, self.groups
        if moment.hires and self.hr_unet is not None:
            unet, groups = self.hr_unet, (None, None, None)
        acts = self.start <= moment.step and (self.stop is None or moment.step < self.stop)
        level = strength_at(unet, moment) if acts else 0.0
        levels: tuple[float, float, float] | None = None
        if acts and groups != (None, None, None):
            first, middle, last = (level if own is None else strength_at(own, moment) for own in groups)
            levels = first, middle, last
        return Strengths(
            te=strength_at(te, Moment(0, moment.steps, moment.hires)),
            unet=level,
            groups=levels,
            ratios=self._ratios(seed),
            rules=self.elements,
        )

    def _ratios(self, seed: int) -> tuple[float, ...] | None:
        if self.blocks is None:
            return None
        if self.blocks.for_flux:
            raise WrongBaseModel(
                f"the block weights of {self.name!r} are the 61 of Flux; give 12 or 20 for SDXL, 17 or 26 for SD 1.x"
            )
        return self.blocks.ratios(Random(f"{seed} {self.name}"))  # a text seeds the same everywhere
