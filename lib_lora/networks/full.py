"""Full: `delta = diff`, a whole change of the weight, as LyCORIS' `full` and ComfyUI's extraction write it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.networks.base import Layer, LayerSpec, wide_dtype
from lib_lora.networks.bias import Bias
from lib_lora.networks.checks import refuse_weight

DIFF = "diff"


class Full(Layer):
    """diff: of the weight's shape, which may also be a norm's (channels); a change of the bias is `Bias` round it."""

    kind = "full"
    second = frozenset({DIFF})

    def __init__(self, diff: Tensor) -> None:
        super().__init__()
        self.diff = nn.Parameter(diff)

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return names - {"alpha"} == {DIFF}  # an alpha has no rank to be divided by, and all readers pass it over

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Full:
        return cls(tensors[DIFF])

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> Layer:
        """A new layer of zeros; with the option `bias` one for the bias too."""
        layer = cls(torch.zeros(spec.shape))
        return Bias(layer, torch.zeros(spec.shape[0])) if spec.options.get("bias") else layer

    def to_tensors(self) -> dict[str, Tensor]:
        return {DIFF: self.diff.detach()}

    def delta(self, weight: Tensor) -> Tensor:
        return shaped_like(weight, "full", {DIFF: self.diff}).to(wide_dtype(weight, self.diff))


def shaped_like(weight: Tensor, kind: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The one tensor in `tensors` in the weight's shape: a 1x1 convolution's for a Linear and the other way round.

    Raises ShapeMismatch if it is not of that size.
    """
    (tensor,) = tensors.values()
    if tensor.ndim == 0 or tensor.shape[0] != weight.shape[0] or tensor.numel() != weight.numel():
        refuse_weight(kind, tensors, weight)
    return tensor.reshape(weight.shape)
