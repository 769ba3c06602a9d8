"""A weight or bias replaced: `delta = S - W`, so that strength 1 gives S.

`set_weight` is ComfyUI's name, which gives S at any strength. Whole parameters that peft trained or Custom Diffusion
saved get the same names here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.networks.around import Around
from lib_lora.networks.base import Layer, LayerSpec, Op, wide_dtype
from lib_lora.networks.bias import bias_shaped
from lib_lora.networks.full import shaped_like

SET, SET_BIAS = "set_weight", "set_bias"


class SetWeight(Layer):
    """set_weight: the new weight, of the base weight's shape."""

    kind = "set"

    def __init__(self, new: Tensor) -> None:
        super().__init__()
        self.set_weight = nn.Parameter(new)

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return names - {"alpha"} == {SET}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SetWeight:
        return cls(tensors[SET])

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> SetWeight:
        """Not to be had: a new layer would have to know the base weight. Raises BadConfig."""
        raise BadConfig("network type 'set' replaces weights and cannot be trained; choose 'full' instead")

    def to_tensors(self) -> dict[str, Tensor]:
        return {SET: self.set_weight.detach()}

    def delta(self, weight: Tensor) -> Tensor:
        wide = wide_dtype(weight, self.set_weight)
        return shaped_like(weight, "set_weight", {SET: self.set_weight}).to(wide) - weight.to(wide)


class SetBias(Around):
    """`b' = set_bias`, set_bias (out), alone or beside any other type. It cannot be a branch."""

    kind = "set_bias"
    NAMES = frozenset({SET_BIAS})

    def __init__(self, core: Layer | None, new: Tensor) -> None:
        super().__init__(core)
        self.set_bias = nn.Parameter(new)
        self.changes_bias = True

    @classmethod
    def wrap(cls, core: Layer | None, tensors: Mapping[str, Tensor]) -> SetBias:
        return cls(core, tensors[SET_BIAS])

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SetBias:
        return cls(None, tensors[SET_BIAS])

    def own_tensors(self) -> dict[str, Tensor]:
        return {SET_BIAS: self.set_bias.detach()}

    def bias_delta(self, bias: Tensor) -> Tensor:
        change = bias_shaped(self.set_bias, SET_BIAS, bias)
        return super().bias_delta(bias) + change - bias.to(change.dtype)

    def truncated(self, ranks: int) -> SetBias:
        return SetBias(self.core.truncated(ranks) if self.core is not None else None, self.set_bias.detach())

    def branch(self, x: Tensor, op: Op, weight: Tensor) -> Tensor:
        raise NotImplementedError(f"{SET_BIAS} replaces a bias that a branch does not see; merge it instead")
