"""Changes of a LayerNorm's or GroupNorm's weight and bias, as LyCORIS writes them; either may come alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.networks.base import Layer, LayerSpec, wide_dtype
from lib_lora.networks.bias import bias_shaped
from lib_lora.networks.full import shaped_like

W_NORM, B_NORM = "w_norm", "b_norm"


class Norm(Layer):
    """w_norm and b_norm: (channels)."""

    kind = "norm"
    second = frozenset({W_NORM})

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.w_norm = nn.Parameter(weight) if weight is not None else None
        self.b_norm = nn.Parameter(bias) if bias is not None else None
        self.changes_weight, self.changes_bias = weight is not None, bias is not None

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return bool(names & {W_NORM, B_NORM}) and names <= {W_NORM, B_NORM, "alpha"}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Norm:
        return cls(tensors.get(W_NORM), tensors.get(B_NORM))

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> Norm:
        """A new layer of zeros for weight and bias."""
        return cls(torch.zeros(spec.shape), torch.zeros(spec.shape))

    def to_tensors(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def delta(self, weight: Tensor) -> Tensor:
        if self.w_norm is None:
            return torch.zeros_like(weight, dtype=wide_dtype(weight))
        return shaped_like(weight, "norm", {W_NORM: self.w_norm}).to(wide_dtype(weight, self.w_norm))

    def bias_delta(self, bias: Tensor) -> Tensor:
        if self.b_norm is None:
            return super().bias_delta(bias)
        return bias_shaped(self.b_norm, B_NORM, bias)
