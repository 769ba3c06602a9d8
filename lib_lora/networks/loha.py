"""LoHa: `delta = alpha / rank * (w1_a @ w1_b) o (w2_a @ w2_b)`, o elementwise; with optional Tucker cores.

FedPara: https://arxiv.org/abs/2108.06098. Files are written by LyCORIS, peft and OneTrainer. Two of LyCORIS' releases
trained something else and left no trace of it in their files, which are read like every other, as all readers do: up to
1.9.0 a Tucker layer used its first core in both places, and 3.0.0 used w1_a in the place of w2_a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib_lora.networks.base import Layer, LayerSpec, wide_dtype
from lib_lora.networks.checks import alpha_of, factors_of, refuse, refuse_weight

W1_A, W1_B, W2_A, W2_B, T1, T2 = "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"


class LoHa(Layer):
    """The elementwise product of two low-rank matrices.

    Without a core: a (out, rank), b (rank, in * kh * kw); OneTrainer keeps b as (rank, in, kh, kw) and a as
    (out, rank, 1, 1). With a core t (rank, rank, kh, kw): a (rank, out), b (rank, in) and
    `product[o, i] = sum t[n, m] a[n, o] b[m, i]`. Either product may have a core.
    """

    kind = "loha"
    second = frozenset({W2_A})

    def __init__(self, factors: Mapping[str, Tensor], alpha: float | None = None) -> None:
        super().__init__()
        one = _size(factors[W1_A], factors[W1_B], factors.get(T1))
        two = _size(factors[W2_A], factors[W2_B], factors.get(T2))
        if one is None or one != two:
            refuse("LoHa", factors, "the two products cannot be built or have different sizes")
        self.size = one  # out, and in * kh * kw
        self.hada_w1_a = nn.Parameter(factors[W1_A])
        self.hada_w1_b = nn.Parameter(factors[W1_B])
        self.hada_w2_a = nn.Parameter(factors[W2_A])
        self.hada_w2_b = nn.Parameter(factors[W2_B])
        self.hada_t1 = nn.Parameter(factors[T1]) if T1 in factors else None
        self.hada_t2 = nn.Parameter(factors[T2]) if T2 in factors else None
        self.rank = int(self.hada_w1_b.shape[0])
        self.alpha = float(self.rank) if alpha is None else float(alpha)

    @classmethod
    def matches(cls, names: frozenset[str]) -> bool:
        return {W1_A, W1_B, W2_A, W2_B} <= names <= {W1_A, W1_B, W2_A, W2_B, T1, T2, "alpha"}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LoHa:
        return cls(factors_of(tensors), alpha_of(tensors))

    @classmethod
    def init(cls, spec: LayerSpec, generator: torch.Generator | None = None) -> LoHa:
        """A new layer, drawn as LyCORIS draws it; the option `tucker` gives a convolution larger than 1x1 cores."""
        width_out, width_in, *kernel = spec.shape
        rank, numbers = spec.rank, math.prod(kernel)
        tucker = bool(spec.options.get("tucker")) and numbers > 1
        left = (rank, width_out) if tucker else (width_out, rank)
        right = (rank, width_in) if tucker else (rank, width_in * numbers)
        factors = {
            W1_A: _normal(left, 0.1, generator),
            W1_B: _normal(right, 1.0, generator),
            W2_A: torch.zeros(left),
            W2_B: _normal(right, 1.0, generator),
        }
        if tucker:
            factors |= {name: _normal((rank, rank, *kernel), 0.1, generator) for name in (T1, T2)}
        return cls(factors, spec.alpha)

    def to_tensors(self) -> dict[str, Tensor]:
        return {**self._factors(), "alpha": torch.tensor(self.alpha)}

    def delta(self, weight: Tensor) -> Tensor:
        if weight.ndim < 2 or self.size != (weight.shape[0], weight[0].numel()):
            refuse_weight("LoHa", self._factors(), weight)
        wide = wide_dtype(weight, self.hada_w1_a)
        one = _product(self.hada_w1_a, self.hada_w1_b, self.hada_t1, wide)
        two = _product(self.hada_w2_a, self.hada_w2_b, self.hada_t2, wide)
        return (one * two).reshape(weight.shape) * self.scale

    def _factors(self) -> dict[str, Tensor]:
        return {name: factor.detach() for name, factor in self.named_parameters()}


def _size(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, int] | None:
    """(out, in * kh * kw) of one product; None if its factors cannot be multiplied."""
    if core is None:
        fit = a.ndim > 1 and b.ndim > 1 and math.prod(a.shape[1:]) == b.shape[0]
        return (a.shape[0], math.prod(b.shape[1:])) if fit else None
    fit = a.ndim == b.ndim == 2 and core.ndim == 4 and core.shape[:2] == (a.shape[0], b.shape[0])
    return (a.shape[1], b.shape[1] * math.prod(core.shape[2:])) if fit else None


def _product(a: Tensor, b: Tensor, core: Tensor | None, wide: torch.dtype) -> Tensor:
    a, b = a.to(wide), b.to(wide)
    if core is None:
        return a.flatten(1) @ b.flatten(1)  # (out, rank) @ (rank, in * kh * kw)
    return torch.einsum("nmkl,no,mi->oikl", core.to(wide), a, b).flatten(1)


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    return torch.empty(shape).normal_(0.0, std, generator=generator)
