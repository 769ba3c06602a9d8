"""A sparse rest beside a low-rank layer: `delta = core + alpha / rank * rest`.

LyCORIS' extraction (`use_bias`) writes the largest numbers of what its SVD left over as `bias_indices`, `bias_values`
and `bias_size`. In spite of the name it belongs to the weight, flattened to (out, in * kh * kw).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.errors import ShapeMismatch
from lib_lora.networks.around import Around
from lib_lora.networks.base import Factors, Layer, wide_dtype
from lib_lora.networks.checks import refuse, refuse_weight

INDICES, VALUES, SIZE = "bias_indices", "bias_values", "bias_size"


class SparseRest(Around):
    """bias_indices (2, n) rows and columns, bias_values (n), bias_size (2) = out, in * kh * kw; whole numbers."""

    kind = "sparse"
    NAMES = frozenset({INDICES, VALUES, SIZE})

    def __init__(self, core: Layer, indices: Tensor, values: Tensor, size: Tensor) -> None:
        super().__init__(core)
        if indices.ndim != 2 or indices.shape != (2, values.numel()) or size.numel() != 2:
            refuse("sparse", {INDICES: indices, VALUES: values, SIZE: size}, "expected (2, n), (n) and (2)")
        self.core: Layer = core
        self.values = nn.Parameter(values)
        self.indices: Tensor
        self.size: Tensor
        self.register_buffer("indices", indices)
        self.register_buffer("size", size)

    @classmethod
    def wrap(cls, core: Layer | None, tensors: Mapping[str, Tensor]) -> SparseRest | None:
        if core is None or tensors.keys() != cls.NAMES:
            return None
        return cls(core, tensors[INDICES], tensors[VALUES], tensors[SIZE])

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SparseRest:
        raise ShapeMismatch(f"{VALUES} without the factors beside it; the file is damaged, get it again")

    def own_tensors(self) -> dict[str, Tensor]:
        return {INDICES: self.indices, VALUES: self.values.detach(), SIZE: self.size}

    def factors(self) -> Factors | None:
        return None

    def truncated(self, ranks: int) -> SparseRest:
        return SparseRest(self.core.truncated(ranks), self.indices, self.values.detach(), self.size)

    def delta(self, weight: Tensor) -> Tensor:
        change = self.core.delta(weight)
        rows, columns = self.indices.long()
        size = [int(n) for n in self.size.flatten().tolist()]
        outside = ((rows < 0) | (rows >= size[0]) | (columns < 0) | (columns >= size[1])).any()
        if size != [weight.shape[0], weight.numel() // max(weight.shape[0], 1)] or bool(outside):
            refuse_weight("sparse", {INDICES: self.indices, VALUES: self.values}, weight)
        wide = wide_dtype(weight, self.values)
        rest = torch.zeros(weight.numel(), dtype=wide, device=weight.device)
        rest = rest.index_add(0, rows * size[1] + columns, self.values.to(wide).flatten())
        return change + rest.reshape(weight.shape) * self.scale
