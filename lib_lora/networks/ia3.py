"""IA3: `delta = w o W`, one number for each row (output) or column (input) of the base weight.

https://arxiv.org/abs/2205.05638. LyCORIS keeps `weight` = w and says in `on_input` which axis it is for. peft keeps
`ia3_l` = 1 + w and scales the bias along with the rows; LyCORIS before 3.0 did the same while training, but leaves no
trace of that in its files, which are read as LyCORIS 3 and 4 read them: without the bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.networks.base import Layer, LayerSpec, wide_dtype
from lib_lora.networks.checks import refuse, refuse_weight

WEIGHT, ON_INPUT, PEFT = "weight", "on_input", "ia3_l"


class Ia3(Layer):
    """LyCORIS' IA3: weight (n) or, for a convolution, (1, n, 1, 1); on_input a single number, not 0 for columns."""

    kind = "ia3"
    second = frozenset({WEIGHT})

    def __init__(self, weight: Tensor, on_input: Tensor) -> None:
        super().__init__()
        if weight.ndim == 0 or weight.numel() != max(weight.shape) or on_input.numel() != 1:
            refuse("IA3", {WEIGHT: weight, ON_INPUT: on_input}, "expected a vector and one number")
        self.weight = nn.Parameter(weight)
        self.on_input: Tensor
        self.register_buffer(ON_INPUT, on_input)
        # An outline, all on the meta device, is never applied.
        self.columns = not on_input.is_meta and bool(on_input.float() != 0)

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        # `weight` alone is no IA3: files of whole weights use that name too.
        return names - {"alpha"} == {WEIGHT, ON_INPUT}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Ia3:
        return cls(tensors[WEIGHT], tensors[ON_INPUT])

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> Ia3:
        """A new layer of zeros; the option `train_on_input` scales columns instead of rows."""
        columns = bool(spec.options.get("train_on_input"))
        width = spec.shape[1] if columns else spec.shape[0]
        shape = (1, width, 1, 1) if len(spec.shape) == 4 else (width,)
        return cls(torch.zeros(shape), torch.tensor(int(columns)))

    def to_tensors(self) -> dict[str, Tensor]:
        return {WEIGHT: self.weight.detach(), ON_INPUT: self.on_input}

    def delta(self, weight: Tensor) -> Tensor:
        wide = wide_dtype(weight, self.weight)
        axis = 1 if self.columns else 0
        if weight.ndim < 2 or self.weight.numel() != weight.shape[axis]:
            refuse_weight("IA3", self.to_tensors(), weight)
        return _along(self.weight.to(wide), axis, weight.ndim) * weight.to(wide)


class PeftIa3(Layer):
    """peft's IA3: ia3_l (1, in) for the columns or (out, 1) for the rows of a Linear, (1, n, 1, 1) for a Conv2d.

    A Conv2d's axis is known from the base weight only; where both would fit, it is the rows, which is peft's default
    (columns are for `feedforward_modules`, which name no convolution of a diffusion model). For rows the bias is
    scaled as well, which `branch` cannot show, since it does not see the base bias.
    """

    kind = "ia3_peft"

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        if factor.ndim not in (2, 4) or factor.numel() != math.prod(factor.shape[:2]) or 1 not in factor.shape[:2]:
            refuse("IA3", {PEFT: factor}, "expected (1, in), (out, 1) or (1, n, 1, 1)")
        self.ia3_l = nn.Parameter(factor)
        self.changes_bias = factor.ndim == 4 or factor.shape[0] > 1

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return names - {"alpha"} == {PEFT}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PeftIa3:
        return cls(tensors[PEFT])

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> PeftIa3:
        """A new layer of ones for the rows, or with the option `train_on_input` for the columns of a Linear."""
        if len(spec.shape) == 4:
            return cls(torch.ones(1, spec.shape[0], 1, 1))
        return cls(torch.ones((1, spec.shape[1]) if spec.options.get("train_on_input") else (spec.shape[0], 1)))

    def to_tensors(self) -> dict[str, Tensor]:
        return {PEFT: self.ia3_l.detach()}

    def delta(self, weight: Tensor) -> Tensor:
        wide, numbers = wide_dtype(weight, self.ia3_l), self.ia3_l.numel()
        if weight.ndim < 2 or numbers not in weight.shape[:2]:
            refuse_weight("IA3", self.to_tensors(), weight)
        rows = self.changes_bias and numbers == weight.shape[0]
        if not rows and numbers != weight.shape[1]:
            refuse_weight("IA3", self.to_tensors(), weight)
        return _along(self.ia3_l.to(wide) - 1, 0 if rows else 1, weight.ndim) * weight.to(wide)

    def bias_delta(self, bias: Tensor) -> Tensor:
        wide = wide_dtype(bias, self.ia3_l)
        if self.ia3_l.numel() != bias.numel():
            return torch.zeros_like(bias, dtype=wide)  # a convolution's columns: the bias stays
        return (self.ia3_l.to(wide).flatten() - 1) * bias.to(wide)


def _along(vector: Tensor, axis: int, dims: int) -> Tensor:
    """A vector shaped to be broadcast along one axis of a tensor of `dims` axes."""
    return vector.reshape([-1 if i == axis else 1 for i in range(dims)])
